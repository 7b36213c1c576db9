"""`facetclip evaluate`: how right a model is on a split, beside the zero-shot model that it started from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from facetclip.errors import UserError
from facetclip.index import ShardIndex, open_index
from facetclip.intervals import Tally, tally
from facetclip.metrics import measure_attribute
from facetclip.model import AttributeReader, load_model
from facetclip.policy import Examined
from facetclip.report import EvalReport, Reading, reading, write_report
from facetclip.schema import UNLABELLED, Schema
from facetclip.scores import Scores, not_applicable, reader_digest, reader_for, score_rows

EVERYTHING = "all"  # of the shards that a model was never trained on
NOTHING = "none"  # as `zero_shot`: compare with nothing


def evaluate(
    model: str, shards: Path | str | ShardIndex, split: str, out: Path, *, zero_shot: str | None = None
) -> EvalReport:
    """Measure `model` (a folder, a hub id, `starter`) on `split`; write report.json, pictures and index.html to `out`.

    `zero_shot`: the model to stand beside it; by default the start that the model's folder names, and where that cannot
    be loaded the report says so; `none` compares with nothing. UserError when the split holds no label at all.
    """
    index = shards if isinstance(shards, ShardIndex) else open_index(shards)
    if not len(index.rows(split)):
        raise UserError(f"{index.store}: the {split} split is empty; nothing can be measured")
    reader = _on_device(reader_for(model, index.schema))
    start, note = _start(reader, index, zero_shot)
    report = evaluate_reader(reader, index, split, source=model, start=start, note=note)
    write_report(report, out)
    return report


def examiner(shards: Path | str, split: str, kept: Path | str | None = None) -> Callable[[str], Examined]:
    """A function that measures a model folder on `split` of `shards`, all of them the same way; of the shards `kept`,
    every item by their own prompts alone. UserError where either cannot be opened; the function's as `evaluate`'s."""
    index = open_index(shards)
    other = open_index(kept) if kept is not None else None

    def examine(model: str) -> Examined:
        found = _examined(_on_device(reader_for(model, index.schema)), index, split)
        if other is None:
            return found
        return replace(found, kept=_examined(_on_device(load_model(model, other.schema)), other, EVERYTHING))

    return examine


def _examined(reader: AttributeReader, index: ShardIndex, split: str) -> Examined:
    rows = np.arange(len(index)) if split == EVERYTHING else index.rows(split)
    if not len(rows):
        raise UserError(f"{index.store}: the {split} split is empty; nothing can be measured")
    tallies = _tallies(index, score_rows(reader, index, rows))
    missing = tuple(name for name in index.schema.names if name not in tallies)
    return Examined(reader_digest(reader), split, len(rows), index.digest, tallies, missing)


def _tallies(index: ShardIndex, scores: Scores) -> dict[str, Tally]:
    """Attribute -> what its answers sum up to, of those that the rows label."""
    products, found = index.products[scores.rows], {}
    for name, attribute in index.schema.attributes.items():
        each = tally(attribute, index.labels[name][scores.rows], scores.probabilities[name], products)
        if each is not None:
            found[name] = each
    return found


def evaluate_reader(
    reader: AttributeReader,
    index: ShardIndex,
    split: str,
    *,
    source: str = "model",
    start: tuple[str, AttributeReader] | None = None,
    note: str | None = None,
) -> EvalReport:
    """The report on a loaded reader, without files; `start`: name and reader of what stands beside it."""
    rows = index.rows(split)
    model = _read(source, reader, index, split)
    return EvalReport(
        split=split,
        items=len(rows),
        products=len(set(index.products[rows].tolist())),
        data_digest=index.digest,
        model=model,
        zero_shot=_read(*start, index, split) if start else None,
        unmeasured=tuple(name for name in index.schema.names if name not in model.attributes),
        note=note,
    )


def _read(source: str, reader: AttributeReader, index: ShardIndex, split: str) -> Reading:
    rows = index.rows(split)
    scores = score_rows(reader, index, rows)
    excluded = _excluded(index.schema, scores)
    attributes = {}
    for name, attribute in index.schema.attributes.items():
        labels = index.labels[name][rows]
        measured = measure_attribute(attribute, labels, scores.probabilities[name], excluded.get(name))
        if measured is not None:
            attributes[name] = measured
    if not attributes:
        raise UserError(f"{index.store}: the {split} split holds no label; nothing can be measured")
    return reading(source, reader_digest(reader), attributes)


def _excluded(schema: Schema, scores: Scores) -> dict[str, np.ndarray]:
    """Attribute -> bool [n]: the schema's rules, applied to the predictions alone, say that it cannot apply.

    Only of attributes that have such rules.
    """
    silent = np.full(len(scores.rows), UNLABELLED)
    ruled_out = not_applicable(schema, dict.fromkeys(schema.names, silent), scores.predicted())
    return {name: ruled_out[name] for name, attribute in schema.attributes.items() if attribute.applies_where}


def _start(
    reader: AttributeReader, index: ShardIndex, zero_shot: str | None
) -> tuple[tuple[str, AttributeReader] | None, str | None]:
    """Name and reader of the zero-shot model, or else why there is none."""
    source = zero_shot or reader.card.start
    if source is None or source == NOTHING:
        return None, None
    try:
        return (source, _on_device(load_model(source, index.schema))), None
    except UserError as error:
        if zero_shot:
            raise
        return None, f"The zero-shot start is missing here: {error}"


def _on_device(reader: AttributeReader) -> AttributeReader:
    """The reader on this process's GPU, if there is one."""
    return reader.to("cuda" if torch.cuda.is_available() else "cpu")
