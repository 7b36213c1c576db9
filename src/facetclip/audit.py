"""`facetclip audit`: the cells that the photos contradict, the most doubtful first, and how many are wrong in all.

No model judges what it was trained on. Linear probes do, by turns over folds of products, on the features of a model
that was not fine-tuned on this catalog (`facetclip.probing`): a minute; and beside them, where a run file says how,
models fine-tuned so, one a fold: as many trainings, and a sharper eye. Two kinds of reader err in different cells, so
their log probabilities are averaged. All processes of a launch train and compute features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from facetclip.batches import PixelReader
from facetclip.calibration import Calibration
from facetclip.config import RunConfig
from facetclip.errors import UserError
from facetclip.features import feature_reader
from facetclip.index import ShardIndex, open_index
from facetclip.labels import labels_of, listed_text
from facetclip.launch import make_accelerator
from facetclip.metrics import listed_values
from facetclip.model import AttributeReader, load_model
from facetclip.photo_flags import PhotoFlag, flag_photos, write_flags
from facetclip.probing import Doubt, alternatives, doubts, folds_of, probed
from facetclip.runs import fit
from facetclip.schema import Attribute, spans
from facetclip.splits import SPLITS
from facetclip.suggestions import Suggestion, Suggestions, claim, write_suggestions
from facetclip.trainer import Trainer
from facetclip.validation import read_logits

FOLDS = 5
MOST = 5000  # suspects in the queue
FLAGS = "photos.csv"


@dataclass(frozen=True)
class Audited:
    """What an audit found: attribute -> cells that could be judged, and the share of them that is wrong by estimate."""

    folder: Path
    cells: Mapping[str, int]
    wrong: Mapping[str, float]
    suspects: int
    flags: tuple[PhotoFlag, ...]


@dataclass(frozen=True)
class AuditSpec:
    """How to judge. `model`: a folder, a hub id or `starter`, whose features probes stand on; `run`: fine-tune so,
    too; `most`: suspects in the queue."""

    model: str = "starter"
    run: RunConfig | None = None
    folds: int = FOLDS
    seed: int = 0
    most: int = MOST


def audit(shards: Path | str, out: Path, spec: AuditSpec) -> Audited | None:
    """Write the queue of suspect cells of `shards` to the folder `out`, with the photos that look bad in `photos.csv`.

    None on every process but the first. UserError where the model was fine-tuned on these very shards, or nothing can
    be learned from them.
    """
    index = open_index(shards)
    title = f"Cells of {index.name} that the photos contradict"
    claim(out, title)
    schema, labels = index.schema, index.labels
    if not any(len(np.unique(column[column >= 0])) > 1 for column in labels.values()):
        raise UserError(f"{index.store}: no attribute lists two values; there is nothing to audit")
    folds = folds_of(index.products, spec.folds, seed=spec.seed)
    accelerator = make_accelerator()
    start = (spec.run and spec.run.model.start) or spec.model
    features = features_of(index, start, out, accelerator)
    tuned = fine_tuned(index, folds, spec.run, out, accelerator) if spec.run else None
    if not accelerator.is_main_process:
        return None
    logits = probed(features, labels, schema, folds, seed=spec.seed)
    found = doubts(_averaged(logits, tuned) if tuned else logits, labels, schema, folds)
    ranked = _ranked(index, found)[: spec.most]
    cells = {name: int(each.judged.sum()) for name, each in found.items()}
    wrong = {name: each.share for name, each in found.items()}
    flags = tuple(flag_photos(index, features))
    judges = f"probes on {start}" + (f" and {start}, fine-tuned" if spec.run else "")
    facts = {"judges": judges, "folds": spec.folds, "cells": cells, "wrong": {k: round(v, 5) for k, v in wrong.items()}}
    queue = tuple(_suggestions(index, found, ranked))
    write_flags(flags, out / FLAGS)
    write_suggestions(Suggestions(title, str(index.store), index.digest, schema, queue, facts), out)
    return Audited(out, cells, wrong, len(queue), flags)


def _averaged(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: (logits + other[name]) / 2 for name, logits in one.items()}


def fine_tuned(
    index: ShardIndex, folds: np.ndarray, run: RunConfig, out: Path, accelerator: Accelerator
) -> dict[str, np.ndarray]:
    """Attribute -> logits [n, values], each item read by a model that was trained on the other folds; a training that
    is there already, whole or in part, goes on. Half the products of the next fold validate."""
    whole = np.zeros((len(index), sum(len(attribute.values) for attribute in index.schema.attributes.values())))
    parts = spans([len(attribute.values) for attribute in index.schema.attributes.values()])
    count = int(folds.max()) + 1
    for fold in range(count):
        judges = (folds == (fold + 1) % count) & (index.products % 2 == 0)
        splits = np.select([folds == fold, judges], [SPLITS.index("test"), SPLITS.index("validation")])
        mine = run.model_copy(update={"output": run.output.model_copy(update={"folder": str(out / f"fold-{fold}")})})
        trainer = Trainer(mine, accelerator, index.with_splits(splits))
        fit(trainer)
        accelerator.wait_for_everyone()
        reader = load_model(str(out / f"fold-{fold}" / "model")).to(accelerator.device)
        pixels = PixelReader(index, reader.preprocessing.size, reader.preprocessing.fit)
        rows = np.flatnonzero(folds == fold)
        whole[rows] = read_logits(reader, pixels, rows)
        for part, name in zip(parts, index.schema.names, strict=True):
            whole[rows, part] /= reader.calibration.get(name, Calibration()).temperature
    return {name: whole[:, part] for part, name in zip(parts, index.schema.names, strict=True)}


def features_of(index: ShardIndex, model: str, out: Path, accelerator: Accelerator) -> np.ndarray:
    """Unit features [n, d] of all photos by `model`, kept in `out`; UserError where it was tuned on these shards."""
    reader: AttributeReader = load_model(model, index.schema)
    if reader.card.data_digest == index.digest:
        raise UserError(f"{model}: was fine-tuned on these very shards; name the model that it started from")
    if reader.card.start and accelerator.is_main_process:
        print(f"{model}: was fine-tuned; where its data held these photos, it believes what their cells say")
    pixels = PixelReader(index, reader.preprocessing.size, reader.preprocessing.fit)
    rows = np.arange(len(index))
    return feature_reader(reader, pixels, rows, out / "features", accelerator).features.numpy()


def _ranked(index: ShardIndex, found: Mapping[str, Doubt]) -> list[tuple[str, int]]:
    """(attribute, row) of every cell that the photo contradicts, by how probable it is that the cell is wrong."""
    entries: list[tuple[float, str, int]] = []
    for name, each in found.items():
        attribute = index.schema.attributes[name]
        listed = listed_values(attribute, index.labels[name])
        shown, _, _ = alternatives(attribute, listed, each.read)
        against = each.judged & (shown != listed).any(axis=1)
        entries += [(float(each.wrong[row]), name, int(row)) for row in np.flatnonzero(against)]
    return [(name, row) for _, name, row in sorted(entries, key=lambda entry: (-entry[0], entry[1], entry[2]))]


def _suggestions(index: ShardIndex, found: Mapping[str, Doubt], ranked: list[tuple[str, int]]) -> list[Suggestion]:
    texts = {name: _words(index.schema.attributes[name], index.labels[name], found[name]) for name in found}
    return [
        Suggestion(
            item_id=index.item_id(row),
            product_id=index.product_ids[row].as_py(),
            attribute=name,
            listed=texts[name][0][row] or "",
            suggested=texts[name][1][row] or "",
            probability=round(float(texts[name][2][row]), 4),
            listed_probability=round(float(texts[name][3][row]), 4),
            reason="disagrees",
        )
        for name, row in ranked
    ]


def _words(
    attribute: Attribute, labels: np.ndarray, found: Doubt
) -> tuple[list[str | None], list[str | None], np.ndarray, np.ndarray]:
    """What each cell lists and what its photo shows, in words, and how probable both are."""
    shown, sure, told = alternatives(attribute, listed_values(attribute, labels), found.read)
    return listed_text(attribute, labels), listed_text(attribute, labels_of(attribute, shown)), sure, told
