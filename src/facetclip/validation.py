"""The validation split, read by all processes together, and what it says of a model.

Models are compared by their log loss after calibration: fine-tuning makes a model sure of itself long before it stops
learning, so the plain loss would keep too early a one, and accuracy or F1 on a small split mostly measure luck.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from facetclip.batches import Inputs, ahead
from facetclip.calibration import Calibration, fit_calibration, probabilities
from facetclip.collectives import join_shares, share_of
from facetclip.metrics import listed_values, measure_attribute
from facetclip.model import AttributeReader
from facetclip.schema import Schema, spans

PORTION = 64  # photos at a time


@dataclass(frozen=True)
class Judgement:
    """How well a model reads the validation split. `loss`: the mean over labels of the log loss at `calibration`, in
    nats; None where nothing is labelled. `values`: metrics by name, for a log."""

    loss: float | None
    calibration: dict[str, Calibration]
    values: dict[str, float]


def read_logits(
    reader: AttributeReader, inputs: Inputs, rows: np.ndarray, beat: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Logits float32 [n, values of all attributes] of `rows`, read by all processes, the same on every one; `beat` is
    called after each portion."""
    if not len(rows):
        return np.zeros((0, len(reader.multi)), dtype=np.float32)
    return join_shares(logits_of(reader, inputs, share_of(rows), beat), len(rows)).cpu().numpy()


@torch.no_grad()
def logits_of(
    reader: AttributeReader, inputs: Inputs, rows: np.ndarray, beat: Callable[[], None] = lambda: None
) -> Tensor:
    """Logits [n, values of all attributes] of `rows`, by this process alone; `beat` is called after each portion."""
    reader.eval()
    parts = [torch.zeros(0, len(reader.multi), device=reader.device)]
    portions = [rows[start : start + PORTION] for start in range(0, len(rows), PORTION)]
    for batch in ahead(inputs.batch, inputs.coming(portions, lambda rows: rows)):
        parts.append(torch.cat([each.float() for each in reader(batch.inputs.to(reader.device)).logits], dim=1))
        beat()
    return torch.cat(parts)


def judge(logits: np.ndarray, labels: np.ndarray, schema: Schema) -> Judgement:
    """What `logits` [n, values of all attributes] are worth by `labels` [n, attributes]."""
    attributes = schema.attributes
    losses, counts, calibration, values = [], [], {}, {}
    for place, (span, (name, attribute)) in enumerate(
        zip(spans([len(a.values) for a in attributes.values()]), attributes.items(), strict=True)
    ):
        listed = listed_values(attribute, labels[:, place])
        known = listed.any(axis=1)
        if not known.any():
            continue
        multi = attribute.multi_valued
        calibration[name] = fit_calibration(logits[known, span], listed[known], multi_valued=multi)
        read = probabilities(logits[:, span], calibration[name], multi_valued=multi)
        measured = measure_attribute(attribute, labels[:, place], read)
        if measured is not None:
            losses.append(measured.log_loss)
            counts.append(measured.items)
            values[f"validation/{name}/accuracy"] = measured.accuracy
            values[f"validation/{name}/macro_f1"] = measured.macro_f1
    loss = float(np.average(losses, weights=counts)) if counts else None
    return Judgement(loss, calibration, ({} if loss is None else {"validation/loss": loss}) | values)


def mean_f1(values: Mapping[str, float]) -> float:
    """The mean macro-F1 over attributes, of a judgement's values; 0 where nothing is labelled.

    >>> mean_f1({"validation/lid/macro_f1": 0.5, "validation/lid/accuracy": 1.0, "validation/kind/macro_f1": 1.0})
    0.75
    """
    scores = [value for name, value in values.items() if name.endswith("/macro_f1")]
    return sum(scores) / len(scores) if scores else 0.0
