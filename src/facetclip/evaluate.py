"""`facetclip evaluate`: how right a model is on a split, beside the zero-shot model that it started from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from facetclip.catalog import read_catalog
from facetclip.errors import UserError
from facetclip.files import require_writable
from facetclip.findings import Answered, Questions, readings, tallies
from facetclip.index import ShardIndex, open_index
from facetclip.mistakes import worst_mistakes
from facetclip.model import AttributeReader, load_model
from facetclip.pictures import thumbnails
from facetclip.policy import Examined
from facetclip.registry import pinned, resolve_model
from facetclip.report import EvalReport
from facetclip.report_page import write_report
from facetclip.scores import Scores, reader_digest, reader_for, score_rows
from facetclip.slicing import columns_of, slices

THUMBNAIL = 176  # pixels of the longer edge, of a mistake
EVERYTHING = "all"  # of the shards that a model was never trained on
NOTHING = "none"  # as `zero_shot`: compare with nothing


@dataclass(frozen=True)
class Beside:
    """What a model is measured beside. `zero_shot`: by default the start that its folder names, and where that cannot
    be loaded the report says so; `none` for nothing. `rival`: another model of the same attributes."""

    zero_shot: str | None = None
    rival: str | None = None


@dataclass(frozen=True)
class Cut:
    """By which `columns` the items are sliced: of the `catalog` (of a dataset, its `split`), or of the index."""

    columns: Sequence[str] = ()
    catalog: str | None = None
    split: str | None = None


def evaluate(
    model: str,
    shards: Path | str | ShardIndex,
    split: str,
    out: Path,
    *,
    beside: Beside = Beside(),
    cut: Cut = Cut(),
) -> EvalReport:
    """Measure `model` (a folder, a hub id, `starter`, a registered one) on `split`; write report.json, pictures and
    index.html to `out`. The report names the version that an alias stands for.

    UserError when the split holds no label at all.
    """
    index = shards if isinstance(shards, ShardIndex) else open_index(shards)
    rows = _rows_of(index, split)
    require_writable(out)
    catalog = None if cut.catalog is None else read_catalog(cut.catalog, split=cut.split)
    cells = columns_of(index, rows, cut.columns, catalog)
    source, reader = _reader(model, index)
    start, note = _start(reader, index, beside.zero_shot)
    rival = None if beside.rival is None else _reader(beside.rival, index)
    report, scores = evaluate_reader(reader, index, split, source=source, start=start, rival=rival)
    report = replace(
        report,
        slices=slices(Questions.of(index, scores.rows), scores, cells),
        mistakes=worst_mistakes(index, scores),
        note=note,
    )
    photos = thumbnails(index, (each.row for found in report.mistakes.values() for each in found), THUMBNAIL)
    write_report(report, out, photos)
    return report


def examiner(shards: Path | str, split: str, kept: Path | str | None = None) -> Callable[[str], Examined]:
    """A function that measures a model folder on `split` of `shards`, all of them the same way; of the shards `kept`,
    every item by their own prompts alone. UserError where either cannot be opened; the function's as `evaluate`'s."""
    index = open_index(shards)
    other = open_index(kept) if kept is not None else None

    def examine(model: str) -> Examined:
        found = _examined(_on_device(reader_for(model, index.schema, some=True)), index, split)
        if other is None:
            return found
        return replace(found, kept=_examined(_on_device(load_model(model, other.schema)), other, EVERYTHING))

    return examine


def _examined(reader: AttributeReader, index: ShardIndex, split: str) -> Examined:
    rows = _rows_of(index, split)
    found = tallies(Questions.of(index, rows), score_rows(reader, index, rows))
    missing = tuple(name for name in index.schema.names if name in reader.schema.names and name not in found)
    return Examined(reader_digest(reader), split, len(rows), index.digest, found, missing, _unknown(reader, index))


def _unknown(reader: AttributeReader, index: ShardIndex) -> dict[str, dict[int, str]]:
    """Attribute -> the values in the index that a model does not know, by their places."""
    found = {}
    for name, attribute in reader.schema.attributes.items():
        listed = index.schema.attributes[name].values if name in index.schema.attributes else ()
        if new := {place: value for place, value in enumerate(listed) if value not in attribute.values}:
            found[name] = new
    return found


def _rows_of(index: ShardIndex, split: str) -> np.ndarray:
    rows = np.arange(len(index)) if split == EVERYTHING else index.rows(split)
    if not len(rows):
        raise UserError(f"{index.store}: the {split} split is empty; nothing can be measured")
    return rows


def evaluate_reader(
    reader: AttributeReader,
    index: ShardIndex,
    split: str,
    *,
    source: str = "model",
    start: tuple[str, AttributeReader] | None = None,
    rival: tuple[str, AttributeReader] | None = None,
) -> tuple[EvalReport, Scores]:
    """The report on a loaded reader, without files, and its answers; `start`, `rival`: name and reader of what stands
    beside it."""
    rows = index.rows(split)
    asked = Questions.of(index, rows)
    if not any((each >= 0).any() for each in asked.labels.values()):
        raise UserError(f"{index.store}: the {split} split holds no label; nothing can be measured")
    others = {part: each for part, each in (("zero_shot", start), ("rival", rival)) if each is not None}
    answered = [
        Answered(name, reader_digest(each), each.card, score_rows(each, index, rows))
        for name, each in ((source, reader), *others.values())
    ]
    (model, *read), differences = readings(asked, answered)
    beside, more = dict(zip(others, read, strict=True)), dict(zip(others, differences, strict=True))
    report = EvalReport(
        split=split,
        items=len(rows),
        products=len(np.unique(asked.products)),
        data_digest=index.digest,
        model=model,
        zero_shot=beside.get("zero_shot"),
        rival=beside.get("rival"),
        over_zero_shot=more.get("zero_shot"),
        over_rival=more.get("rival"),
        unmeasured=tuple(name for name in index.schema.names if name not in model.attributes),
    )
    return report, answered[0].scores


def _reader(model: str, index: ShardIndex) -> tuple[str, AttributeReader]:
    source = pinned(model)
    return source, _on_device(reader_for(resolve_model(source), index.schema, name=source))


def _start(
    reader: AttributeReader, index: ShardIndex, zero_shot: str | None
) -> tuple[tuple[str, AttributeReader] | None, str | None]:
    """Name and reader of the zero-shot model, or else why there is none."""
    source = zero_shot or reader.card.start
    if source is None or source == NOTHING:
        return None, None
    try:
        return (source, _on_device(load_model(resolve_model(source), index.schema))), None
    except UserError as error:
        if zero_shot:
            raise
        return None, f"The zero-shot start is missing here: {error}"


def _on_device(reader: AttributeReader) -> AttributeReader:
    """The reader on this process's GPU, if there is one."""
    return reader.to("cuda" if torch.cuda.is_available() else "cpu")
