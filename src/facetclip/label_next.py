"""`facetclip next`: which photos to label next, those that the model is least sure of and that differ from each other.

A photo is worth as much as the model is unsure of what the table does not say about it (entropy, summed over the
attributes: labelling a photo answers all of them). The most unsure are often much alike, so they are picked one by one,
each by how unsure the model is of it times how far it lies from those picked before (uncertainty with diversity, as in
Ash et al., "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds", 2020, on features, not gradients).
"""

from pathlib import Path

import numpy as np
import torch

from facetclip.abstention import answers
from facetclip.batches import PixelReader
from facetclip.calibration import Calibration, probabilities
from facetclip.errors import UserError
from facetclip.features import feature_reader
from facetclip.index import ShardIndex, open_index
from facetclip.labels import labels_of, listed_text
from facetclip.launch import make_accelerator
from facetclip.model import AttributeReader
from facetclip.schema import UNLABELLED
from facetclip.scores import not_applicable, reader_for
from facetclip.suggestions import Suggestion, Suggestions, claim, write_suggestions

POOL = 10  # times as many of the most unsure are looked at as are picked
PORTION = 4096


def label_next(shards: Path | str, model: str, out: Path, *, count: int) -> int | None:
    """Write the `count` photos of `shards` that are most worth labelling to the folder `out`; how many there are.

    A suggestion a cell that says nothing and applies, the photos in the order in which they were picked. None on every
    process but the first. UserError where nothing is left to label.
    """
    if count < 1:
        raise UserError(f"--n: expected at least 1, found {count}")
    index = open_index(shards)
    title = f"Photos of {index.name} to label next"
    claim(out, title)
    reader = reader_for(model, index.schema)
    accelerator = make_accelerator()
    pixels = PixelReader(index, reader.preprocessing.size, reader.preprocessing.fit)
    features = feature_reader(reader, pixels, np.arange(len(index)), out / "features", accelerator).features
    if not accelerator.is_main_process:
        return None
    read = _read(reader, features)
    silent = _silent(index, read)
    unsure = np.zeros(len(index))
    for name, which in silent.items():
        unsure += np.where(which, entropy(read[name], multi_valued=index.schema.attributes[name].multi_valued), 0.0)
    picked = pick(unsure, features.numpy(), count)
    if not len(picked):
        raise UserError(
            f"{index.store}: no photo has a gap in an attribute that applies to it; nothing is left to label"
        )
    cells = tuple(
        _suggestion(index, int(row), name, read[name][row]) for row in picked for name in silent if silent[name][row]
    )
    write_suggestions(Suggestions(title, str(index.store), index.digest, index.schema, cells, {"model": model}), out)
    return len(picked)


@torch.no_grad()
def _read(reader: AttributeReader, features: torch.Tensor) -> dict[str, np.ndarray]:
    """How probable each value is by the photo, attribute -> [n, values]."""
    reader = reader.to("cpu").eval()
    parts = [reader.logits(features[start : start + PORTION]) for start in range(0, len(features), PORTION)]
    found = {}
    for place, (name, attribute) in enumerate(reader.schema.attributes.items()):
        logits = torch.cat([part[place] for part in parts]).float().numpy()
        clean = Calibration(reader.calibration.get(name, Calibration()).temperature)
        found[name] = probabilities(logits, clean, multi_valued=attribute.multi_valued)
    return found


def _silent(index: ShardIndex, read: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Attribute -> bool [n]: the table says nothing, and by its other cells or the photo the attribute applies."""
    predicted = {name: each.argmax(axis=1) for name, each in read.items()}
    excluded = not_applicable(index.schema, index.labels, predicted)
    return {name: (labels == UNLABELLED) & ~excluded[name] for name, labels in index.labels.items()}


def entropy(read: np.ndarray, *, multi_valued: bool) -> np.ndarray:
    """How unsure each reading is, in nats [n], from `read` [n, values]; where multi-valued summed over the values.

    >>> entropy(np.array([[0.5, 0.5], [1.0, 0.0]]), multi_valued=False).round(3).tolist()
    [0.693, 0.0]
    """
    sure = [read, 1 - read] if multi_valued else [read]
    return 0.0 - np.sum([(each * np.log(np.clip(each, 1e-12, None))).sum(axis=1) for each in sure], axis=0)


def pick(unsure: np.ndarray, features: np.ndarray, count: int) -> np.ndarray:
    """The rows of up to `count` items, in the order they are picked: each by `unsure` [n] times its distance, by the
    cosine of `features` [n, d] of length 1, to the nearest one picked before. Items that are sure are never picked."""
    pool = np.argsort(-unsure, kind="stable")[: POOL * count]
    pool = pool[unsure[pool] > 0]
    picked: list[int] = []
    nearest = np.full(len(pool), -1.0)
    while len(picked) < min(count, len(pool)):
        worth = unsure[pool] * (1 - nearest)
        worth[picked] = -1.0
        best = int(worth.argmax())
        picked.append(best)
        nearest = np.maximum(nearest, features[pool] @ features[pool[best]])
    return pool[np.array(picked, dtype=np.int64)]


def _suggestion(index: ShardIndex, row: int, name: str, read: np.ndarray) -> Suggestion:
    attribute = index.schema.attributes[name]
    shown, sure = answers(attribute, read[None])
    return Suggestion(
        item_id=index.item_id(row),
        product_id=index.product_ids[row].as_py(),
        attribute=name,
        listed="",
        suggested=listed_text(attribute, labels_of(attribute, shown))[0] or "",
        probability=round(float(sure[0]), 4),
        listed_probability=None,
        reason="label",
    )
