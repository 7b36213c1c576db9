"""What a person is asked: a folder of suggested cells, each with what the catalog lists, and what was answered.

`suggestions.csv` holds one cell a row, the most worthwhile first; `about.json`, written last, says which shards they
are about and what the attributes mean. The review page answers with a `corrections.csv`.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from facetclip.catalog import read_separated
from facetclip.errors import UserError
from facetclip.files import require_writable, write_whole
from facetclip.schema import Schema
from facetclip.spreadsheets import csv_of, live

Reason = Literal["disagrees", "label"]  # photo and table disagree; worth labelling next
Verdict = Literal["accept", "reject", "other", "unclear"]
TABLE, ABOUT = "suggestions.csv", "about.json"
FORMAT = "facetclip-suggestions-1"


@dataclass(frozen=True)
class Suggestion:
    """One cell: what it lists ("" where silent), what the photo shows, how probable each is (None: not told)."""

    item_id: str
    product_id: str
    attribute: str
    listed: str
    suggested: str
    probability: float
    listed_probability: float | None
    reason: Reason


@dataclass(frozen=True)
class Suggestions:
    """Suggestions about the items of a shard folder, the most worthwhile first. `title`: what they are, for a person;
    `facts`: what else is to be known of them, as JSON."""

    title: str
    shards: str
    data_digest: str
    schema: Schema
    cells: tuple[Suggestion, ...]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Correction:
    """A person's answer to one suggestion: `value` is what the cell shall say, "" for nothing."""

    item_id: str
    attribute: str
    listed: str
    suggested: str
    verdict: Verdict
    value: str


def claim(folder: Path, title: str) -> None:
    """UserError where suggestions of that title cannot go into `folder`: it holds others, shards, or takes no file."""
    require_writable(folder)
    if any(folder.glob("*.tar")):
        raise UserError(f"{folder}: holds shards; name another folder")
    if (folder / ABOUT).exists():
        about: Any = None
        with suppress(OSError, ValueError):
            about = json.loads((folder / ABOUT).read_bytes())
        if not isinstance(about, dict) or (about.get("format"), about.get("title")) != (FORMAT, title):
            held = about.get("title") if isinstance(about, dict) else None
            raise UserError(f"{folder}: holds other suggestions ({held or 'not to be read'}); name another folder")


def write_suggestions(found: Suggestions, folder: Path) -> None:
    """Write both files into `folder`, the table first; one that is there is no whole folder meanwhile."""
    names = [field.name for field in fields(Suggestion)]
    rows = []
    for cell in found.cells:
        row = asdict(cell) | {"probability": _number(cell.probability)}
        row["listed_probability"] = "" if cell.listed_probability is None else _number(cell.listed_probability)
        rows.append([str(row[name]) for name in names])
    about = {
        "format": FORMAT,
        "title": found.title,
        "shards": found.shards,
        "data_digest": found.data_digest,
        "schema": json.loads(found.schema.to_json()),
        "cells": len(found.cells),
        "facts": found.facts,
    }
    (folder / ABOUT).unlink(missing_ok=True)
    write_whole(folder / TABLE, csv_of(names, rows))
    write_whole(folder / ABOUT, json.dumps(about, indent=2, ensure_ascii=False).encode("utf-8") + b"\n")


def _number(probability: float) -> str:
    return f"{probability:.4f}"


def read_suggestions(folder: Path) -> Suggestions:
    """What `write_suggestions` left in `folder`; UserError where it is not there, or a row cannot be understood."""
    try:
        about = json.loads((folder / ABOUT).read_bytes())
    except OSError as error:
        raise UserError(f"{folder}: no {ABOUT}; expected a folder made by facetclip audit or facetclip next") from error
    except ValueError as error:
        raise UserError(f"{folder / ABOUT}: not JSON: {error}") from error
    if about.get("format") != FORMAT:
        raise UserError(f"{folder / ABOUT}: expected format {FORMAT}, found {about.get('format')!r}")
    cells = tuple(
        _suggestion(folder / TABLE, number, row) for number, row in _rows(folder / TABLE, _columns(Suggestion))
    )
    if len(cells) != about["cells"]:
        raise UserError(f"{folder / TABLE}: expected {about['cells']} rows, found {len(cells)}; make it anew")
    return Suggestions(
        title=about["title"],
        shards=about["shards"],
        data_digest=about["data_digest"],
        schema=Schema.model_validate(about["schema"]),
        cells=cells,
        facts=about["facts"],
    )


def _suggestion(path: Path, number: int, row: dict[str, str]) -> Suggestion:
    try:
        told = row["listed_probability"]
        probability, listed = float(row["probability"]), float(told) if told else None
    except ValueError as error:
        raise UserError(f"{path.name}, row {number}: a probability is no number: {error}") from error
    reason = _one_of(path, number, row["reason"], get_args(Reason))
    words: dict[str, Any] = row | {"probability": probability, "listed_probability": listed, "reason": reason}
    return Suggestion(**words)


def read_corrections(path: Path) -> tuple[list[Correction], list[int]]:
    """The answers that the review page saved in `path`, and the row of each; UserError naming a row that is wrong.

    Columns in any order, others beside them.
    """
    rows = list(_rows(path, _columns(Correction)))
    for number, row in rows:
        _one_of(path, number, row["verdict"], get_args(Verdict))
    return [_correction(row) for _, row in rows], [number for number, _ in rows]


def _correction(row: dict[str, Any]) -> Correction:
    return Correction(**row)


def _columns(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _one_of(path: Path, number: int, word: str, known: Sequence[str]) -> Any:
    if word not in known:
        raise UserError(f"{path.name}, row {number}: expected one of {', '.join(known)}, found {word!r}")
    return word


def _rows(path: Path, names: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(row number, the cells of `names`) of each row of a CSV file, which a spreadsheet may have saved."""
    table = read_separated(path)
    if lacking := [name for name in names if name not in table.table.column_names]:
        raise UserError(f"{path.name}, row 1: no column {', '.join(map(repr, lacking))}")
    for place, cells in enumerate(zip(*map(table.column, names), strict=True)):
        yield table.row_number(place), {name: live(cell or "") for name, cell in zip(names, cells, strict=True)}
