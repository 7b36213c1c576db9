"""The validation split, measured while training, divided among the processes."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from facetclip.batches import PixelReader, ahead
from facetclip.losses import attribute_losses, label_targets
from facetclip.model import AttributeReader

PORTION = 64  # images at a time


@torch.inference_mode()
def measure(
    reader: AttributeReader, pixels: PixelReader, rows: np.ndarray, accelerator: Accelerator
) -> dict[str, float]:
    """`validation/loss`, and `validation/ATTRIBUTE/accuracy` and `/macro_f1`, over `rows`, equal on every process.

    A metric without a single label is left out; the loss is then NaN.
    """
    reader.eval()
    attributes = list(reader.schema.attributes.values())
    multi = [attribute.multi_valued for attribute in attributes]
    device = accelerator.device
    loss = torch.zeros((), dtype=torch.float64, device=device)
    tables = [torch.zeros(len(a.values), len(a.values), dtype=torch.int64, device=device) for a in attributes]
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    for batch in ahead(pixels.batch, [mine[start : start + PORTION] for start in range(0, len(mine), PORTION)]):
        labels = batch.labels.to(device)
        with accelerator.autocast():
            logits = reader(batch.pixels.to(device))
        loss += attribute_losses(logits, labels, multi).sum().double()
        for place, (scores, table) in enumerate(zip(logits, tables, strict=True)):
            table += confusion_counts(scores, labels[:, place], multi[place])
    summed = [accelerator.reduce(value, reduction="sum").cpu().numpy() for value in (loss, *tables)]  # type: ignore[union-attr]
    values = {"validation/loss": float(summed[0]) / max(1, sum(int(table.sum()) for table in summed[1:]))}
    for name, table in zip(reader.schema.names, summed[1:], strict=True):
        if table.sum():
            values[f"validation/{name}/accuracy"] = float(np.trace(table) / table.sum())
            values[f"validation/{name}/macro_f1"] = macro_f1(table)
    return values


def confusion_counts(logits: Tensor, labels: Tensor, multi_valued: bool) -> Tensor:
    """Counts [values, values] of (true, predicted); a prediction among several listed values counts as the true one."""
    values = logits.shape[1]
    labelled = labels >= 0
    predicted, labels = logits.argmax(dim=1)[labelled], labels[labelled]
    if multi_valued:
        listed = label_targets(labels, values) > 0
        hit = listed.gather(1, predicted[:, None])[:, 0]
        labels = torch.where(hit, predicted, listed.int().argmax(dim=1))
    return torch.bincount(labels * values + predicted, minlength=values * values).reshape(values, values)


def macro_f1(table: np.ndarray) -> float:
    """The mean F1 over the values that occur, as truth or as prediction, in counts [true, predicted]."""
    present = table.sum(axis=0) + table.sum(axis=1)
    return float((2 * np.diag(table)[present > 0] / present[present > 0]).mean())
