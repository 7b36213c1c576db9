"""From the best weights of a training to the model that ships: blended with the start, calibrated, and told when to
abstain.

All of it is chosen on the validation split and ends in `model` beside `best`, which stays as it was.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from facetclip.abstention import Cutoff, agreement, cutoffs, of_product, shipped_answers
from facetclip.batches import Inputs
from facetclip.calibration import probabilities
from facetclip.collectives import processes
from facetclip.files import replace_folder
from facetclip.index import ShardIndex
from facetclip.metrics import listed_values
from facetclip.model import AttributeReader, load_model, save_model
from facetclip.schema import spans
from facetclip.tuning import blend
from facetclip.validation import Judgement, judge, read_logits

ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8)  # beside 1, the trained model itself; at 0 a training that only harmed is undone


def finish_model(
    best: Path, out: Path, index: ShardIndex, inputs: Inputs, *, start: AttributeReader | None, device: torch.device
) -> Judgement:
    """Write the finished model of the weights in `best` to `out`; returns what it is worth on the validation split.

    `start`: what the weights may be blended with (None: not at all). Without a validation label the weights stay as
    they are and nothing is calibrated. All processes call it and each reads a part; the first one writes.
    """
    reader = load_model(str(best)).to(device)
    rows = index.rows("validation")
    labels = index.label_matrix(rows)
    tuned = {name: weight.detach().clone() for name, weight in reader.state_dict().items()}
    origin = {} if start is None else {**start.to(device).state_dict()}
    if start is not None and reader.classifier is not None:
        origin["classifier"] = start.eval().embed_prompts().detach()

    def mix(alpha: float) -> None:
        reader.train()  # forgets the prompt features of other weights
        reader.load_state_dict(blend(origin, tuned, alpha) if alpha < 1 else tuned)

    alphas = (1.0, *(ALPHAS if start is not None and (labels >= 0).any() else ()))
    chosen, least = None, np.inf
    for alpha in alphas:
        mix(alpha)
        logits = read_logits(reader, inputs, rows)
        judgement = judge(logits, labels, index.schema)
        if chosen is None or (judgement.loss is not None and judgement.loss < least):
            chosen, least = (alpha, logits, judgement), np.inf if judgement.loss is None else judgement.loss
    assert chosen is not None
    alpha, logits, judgement = chosen
    if processes()[0] == 0:
        mix(alpha)
        _ship(reader, out, index, logits, judgement, alpha)
    return judgement


def _ship(
    reader: AttributeReader, out: Path, index: ShardIndex, logits: np.ndarray, judgement: Judgement, alpha: float
) -> None:
    """Write the model with all that was chosen by the `logits` of the validation split."""
    metrics = {**reader.card.metrics, "blend": alpha}
    if judgement.loss is not None:
        metrics["validation_loss"] = judgement.loss
    reader.calibration = judgement.calibration
    together = answered_together(index)
    reader.card = replace(
        reader.card,
        metrics=metrics,
        calibration=judgement.calibration,
        cutoffs=cutoffs_of(logits, index, index.rows("validation"), judgement, together),
        by_product=together,
    )
    with replace_folder(out) as beside:
        save_model(reader, beside)


def answered_together(index: ShardIndex) -> tuple[str, ...]:
    """The attributes that are a matter of the product, by the train split's labels."""
    rows = index.rows("train")
    products = index.products[rows]
    return tuple(name for name, column in index.labels.items() if of_product(column[rows], products))


def cutoffs_of(
    logits: np.ndarray, index: ShardIndex, rows: np.ndarray, judgement: Judgement, together: tuple[str, ...]
) -> dict[str, tuple[Cutoff, ...]]:
    """Attribute -> where to cut its answers, from `logits` [n, values of all attributes] of `rows`; attributes named in
    `together` are answered by all photos of a product and what its other rows list.

    Each labelled cell is answered as if it were a gap.
    """
    found, products = {}, index.products[rows]
    attributes = index.schema.attributes
    parts = spans([len(attribute.values) for attribute in attributes.values()])
    for part, (name, attribute) in zip(parts, attributes.items(), strict=True):
        if name not in judgement.calibration:
            continue
        calibration, labels = judgement.calibration[name], index.labels[name][rows]
        read = probabilities(logits[:, part], calibration, multi_valued=attribute.multi_valued)
        shown, sure, _ = shipped_answers(attribute, read, calibration, products if name in together else None, labels)
        listed = listed_values(attribute, labels)
        known = listed.any(axis=1)
        right = (shown == listed).all(axis=1)
        found[name] = cutoffs(sure[known], right[known], agreement(attribute, calibration.noise))
    return found
