"""The validation split, measured while training, divided among the processes."""

import numpy as np
import torch
from accelerate import Accelerator

from facetclip.batches import PixelReader, ahead
from facetclip.losses import attribute_losses
from facetclip.metrics import accuracy, confusion_matrix, listed_values, macro_f1
from facetclip.model import AttributeReader
from facetclip.schema import Attribute

PORTION = 64  # images at a time


@torch.inference_mode()
def measure(
    reader: AttributeReader, pixels: PixelReader, rows: np.ndarray, accelerator: Accelerator
) -> dict[str, float]:
    """`validation/loss`, and `validation/ATTRIBUTE/accuracy` and `/macro_f1`, over `rows`, equal on every process.

    What has not a single label is left out.
    """
    reader.eval()
    attributes = reader.schema.attributes
    multi = [attribute.multi_valued for attribute in attributes.values()]
    loss = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    tables = [np.zeros((len(a.values), len(a.values)), dtype=np.int64) for a in attributes.values()]
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    for batch in ahead(pixels.batch, [mine[start : start + PORTION] for start in range(0, len(mine), PORTION)]):
        labels = batch.labels.to(accelerator.device)
        with accelerator.autocast():
            logits = reader(batch.pixels.to(accelerator.device))
        loss += attribute_losses(logits, labels, multi).sum().double()
        for place, attribute in enumerate(attributes.values()):
            tables[place] += confusion(attribute, batch.labels[:, place].numpy(), logits[place].float().cpu().numpy())
    counts = torch.from_numpy(np.concatenate([table.ravel() for table in tables])).to(accelerator.device)
    loss, counts = (accelerator.reduce(value, reduction="sum").cpu() for value in (loss, counts))  # type: ignore[union-attr]
    return summary(float(loss), np.split(counts.numpy(), np.cumsum([table.size for table in tables])[:-1]), attributes)


def confusion(attribute: Attribute, labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Counts [true, predicted] over the labelled rows of `labels` [n] and `logits` [n, values]."""
    listed = listed_values(attribute, labels)
    labelled = listed.any(axis=1)
    return confusion_matrix(listed[labelled], logits[labelled].argmax(axis=1))


def summary(loss: float, counts: list[np.ndarray], attributes: dict[str, Attribute]) -> dict[str, float]:
    """The metrics of the summed loss and the flat confusion counts of each attribute."""
    labels = sum(int(table.sum()) for table in counts)
    values = {"validation/loss": loss / labels} if labels else {}
    for (name, attribute), flat in zip(attributes.items(), counts, strict=True):
        table = flat.reshape(len(attribute.values), len(attribute.values))
        if table.sum():
            values[f"validation/{name}/accuracy"] = accuracy(table)
            values[f"validation/{name}/macro_f1"] = macro_f1(table)
    return values
