"""`facetclip apply`: what a person decided on the review page goes into the catalog, with a log of every change.

The catalog's own file is never touched: a corrected copy is written beside a log. Everything that is not corrected
stays as it is, cell for cell. A cell that says something else by now than when it was judged is left alone, and so is
one whose attribute cannot apply by now.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from facetclip.catalog import JSON_LINES, SEPARATORS, Catalog, decimal, form_of, read_catalog, text_of
from facetclip.cells import JOINT, json_text, with_cells
from facetclip.config import closest
from facetclip.errors import UserError
from facetclip.files import write_whole
from facetclip.labels import as_spelled, encode_cells, listed_text, respelled
from facetclip.rules import apply_rules, barred
from facetclip.schema import UNKNOWN_VALUE, UNLABELLED, Schema
from facetclip.spreadsheets import csv_of, separated
from facetclip.suggestions import Correction, read_corrections

LEFT = "left alone"
NUMBER = "\ue0f7"  # a letter of nobody's, about the place of a number that is to stay as it was written
Changes = dict[tuple[int, str], str]  # (place of the record, column) -> what the cell shall say


@dataclass(frozen=True)
class Applied:
    """How many cells were changed, were confirmed as they are, and are left alone; the log says why."""

    changed: int
    confirmed: int
    stale: int


@dataclass(frozen=True)
class _Entry:
    """One line of the change log."""

    row: int | str
    item_id: str
    column: str
    before: str
    after: str
    what: str


def apply_corrections(corrections: Path, source: Path, schema: Schema, out: Path, log: Path) -> Applied:
    """Write the catalog in the file `source` to `out` with the accepted values of `corrections`, and every change to
    `log` (CSV).

    Values are spelled as the catalog spells them. UserError where a correction names an attribute or value that the
    schema does not have, where none names an item of the catalog, where two contradict each other, where two attributes
    share a column, where `out` is of another kind of file or is the catalog itself.
    """
    if not source.is_file():
        raise UserError(f"{source}: corrections go into a catalog file; found none there")
    if out.suffix.lower() != source.suffix.lower():
        raise UserError(f"{out}: expected a {source.suffix} file, as the catalog {source.name} is")
    if out.resolve() == log.resolve():
        raise UserError(f"{out}: is named for the catalog and for its log; name two files")
    catalog = read_catalog(str(source))
    catalog.require_columns(schema, written=True)
    catalog.require_ids(schema.columns.item)
    changes, entries, confirmed = _decided(corrections, catalog, schema)
    contents = {out: _rewritten(source, catalog, changes), log: _log_of(entries)}
    for path, content in contents.items():
        other = path.resolve() in (source.resolve(), corrections.resolve())
        if other or (path.exists() and (path.is_dir() or path.read_bytes() != content)):
            raise UserError(f"{path} is there already; name another file")
    for path, content in contents.items():  # what a killed process left is the same
        write_whole(path, content)
    return Applied(len(changes), confirmed, len(entries) - len(changes))


class _Cells:
    """The cells of a catalog: by the rules, as shards have them (`ruled`), and as they are to become (`labels`)."""

    def __init__(self, catalog: Catalog, schema: Schema) -> None:
        self.schema = schema
        self.place_of = {item: place for place, item in enumerate(catalog.column(schema.columns.item))}
        self.texts = {name: catalog.column(attribute.column) for name, attribute in schema.attributes.items()}
        self.spelled = {name: as_spelled(each, self.texts[name]) for name, each in schema.attributes.items()}
        said = encode_cells(catalog, schema)
        self.ruled = apply_rules(said, schema)
        self.labels = {name: column.copy() for name, column in said.items()}

    def text(self, name: str, place: int) -> str:
        """A cell as it is written."""
        return self.texts[name][place] or ""

    def says(self, name: str, place: int) -> str:
        """What a cell says, as the schema spells it; its own words where the schema has none, "" where it is a gap."""
        label = self.labels[name][place : place + 1]
        return "" if label[0] == UNLABELLED else self._listed(name, label) or self.text(name, place)

    def _listed(self, name: str, label: np.ndarray) -> str:
        return listed_text(self.schema.attributes[name], label)[0] or ""

    def objection(self, answer: Correction, place: int) -> str | None:
        """Why a cell is left alone."""
        name, listed = answer.attribute, answer.listed
        ruled = self._listed(name, self.ruled[name][place : place + 1])  # a value that a rule put there
        if listed != self.says(name, place) and not (ruled and listed == ruled):
            if self.labels[name][place] == UNKNOWN_VALUE and not listed:
                return f"the schema does not explain {self.text(name, place)!r}; add it as a value or an alias"
            return f"was judged as {listed!r}"
        attribute = self.schema.attributes[name]
        never = attribute.encode(answer.value) in (UNLABELLED, attribute.not_applicable_label)
        row = {other: column[place : place + 1] for other, column in self.labels.items()}
        if not never and barred(self.schema, name, apply_rules(row, self.schema))[0]:
            return "cannot apply, by the schema's rules"
        return None

    def change(self, answer: Correction, place: int) -> str:
        """Take an answer over; what the cell shall say, as the table spells it."""
        attribute = self.schema.attributes[answer.attribute]
        self.labels[answer.attribute][place] = attribute.encode(answer.value)
        return respelled(attribute, answer.value, self.spelled[answer.attribute])


def _decided(path: Path, catalog: Catalog, schema: Schema) -> tuple[Changes, list[_Entry], int]:
    """What is to be changed, the change log, and how many cells are confirmed as they are.

    Attributes that others lean on come first: whether these apply is asked of the catalog as it will be.
    """
    cells, answers = _Cells(catalog, schema), list(_once(path))
    for answer, number in answers:
        _check(answer, f"{path.name}, row {number}", schema)
    if answers and not any(answer.item_id in cells.place_of for answer, _ in answers):
        first, number = answers[0]
        raise UserError(f"{path.name}, row {number}: the catalog has no item {first.item_id!r}, nor any other of them")
    changes: Changes = {}
    entries: dict[int, _Entry] = {}
    confirmed = 0
    for answer, number in sorted(answers, key=lambda each: schema.parents_first.index(each[0].attribute)):
        place, column = cells.place_of.get(answer.item_id), schema.attributes[answer.attribute].column
        if answer.value == answer.listed or (place is not None and cells.says(answer.attribute, place) == answer.value):
            confirmed += answer.verdict != "unclear" and place is not None
        elif place is None:
            entries[number] = _Entry("", answer.item_id, column, "", answer.value, f"{LEFT}: is in the catalog no more")
        else:
            row, before, value = catalog.row_number(place), cells.text(answer.attribute, place), answer.value
            objection = cells.objection(answer, place)
            if objection is None:
                value = changes[place, column] = cells.change(answer, place)
            what = "changed" if objection is None else f"{LEFT}: {objection}"
            entries[number] = _Entry(row, answer.item_id, column, before, value, what)
    return changes, [entries[number] for number in sorted(entries)], confirmed


def _once(path: Path) -> Iterator[tuple[Correction, int]]:
    """Every answer with its row; one that is there twice comes once, and two that contradict each other are refused."""
    seen: dict[tuple[str, str], tuple[Correction, int]] = {}
    for answer, number in zip(*read_corrections(path), strict=True):
        earlier, row = seen.setdefault((answer.item_id, answer.attribute), (answer, number))
        if earlier != answer:
            raise UserError(
                f"{path.name}, row {number}: {answer.attribute} of item {answer.item_id!r} is decided otherwise in "
                f"row {row}"
            )
        if row == number:
            yield answer, number


def _check(answer: Correction, where: str, schema: Schema) -> None:
    """UserError where an answer does not fit the schema, or contradicts itself."""
    if answer.attribute not in schema.attributes:
        names = schema.names
        raise UserError(f"{where}: no attribute {answer.attribute!r}{closest(answer.attribute, names)}")
    expected = {"accept": answer.suggested, "other": answer.value}.get(answer.verdict, answer.listed)
    if answer.value != expected:
        raise UserError(
            f"{where}: {answer.verdict} means {expected!r}, but the value is {answer.value!r}; correct one of them"
        )
    attribute = schema.attributes[answer.attribute]
    named = answer.value.split(attribute.separator) if attribute.separator else [answer.value]
    for value in named:
        if value and value not in attribute.values:
            known = ", ".join(attribute.values)
            raise UserError(f"{where}: {value!r} is no value of {answer.attribute}; expected one of {known}")


def _rewritten(source: Path, catalog: Catalog, changes: Changes) -> bytes:
    kind = source.suffix.lower()
    if kind in SEPARATORS:
        return _separated(source, catalog, changes)
    return _json_lines(source, catalog, changes) if kind in JSON_LINES else _parquet(catalog, changes)


def _separated(source: Path, catalog: Catalog, changes: Changes) -> bytes:
    """All records, blank ones too, separated as they were; a person's row numbers stay what they were."""
    form = form_of(source)
    records = list(csv.reader(io.StringIO(text_of(source), newline=""), delimiter=form.separator, strict=True))
    header = next(record for record in records if any(cell.strip() for cell in record))
    column_of = {name.strip(): place for place, name in enumerate(header)}
    for (place, column), value in changes.items():
        records[catalog.row_number(place) - 1][column_of[column]] = value
    return separated(records, form)


def _json_lines(source: Path, catalog: Catalog, changes: Changes) -> bytes:
    """Lines that nothing changes in stay byte for byte; what is written is of the kind that its column holds."""
    lines = text_of(source).split("\n")
    holds = _kinds([json.loads(line) for line in lines if line.strip()] if changes else [])
    for (place, column), value in changes.items():
        number = catalog.row_number(place) - 1
        lines[number] = _with(lines[number], column, _typed(value, holds[column]) if value else None)
    return "\n".join(lines).encode("utf-8")


def _with(line: str, column: str, value: Any) -> str:
    """A JSON object in which one value is another, and every number is written as it was.

    >>> _with('{"id": 1.10, "lid": true}', "lid", False)
    '{"id": 1.10, "lid": false}'
    """
    numbers: list[str] = []

    def kept(text: str) -> str:
        numbers.append(text)
        return f"{NUMBER}{len(numbers) - 1}{NUMBER}"

    record = json.loads(line, parse_float=kept)
    written = next((name for name in record if name.strip() == column), column)
    changed = json.dumps(record | {written: value}, ensure_ascii=False)
    return re.sub(rf'"{NUMBER}(\d+){NUMBER}"', lambda found: numbers[int(found[1])], changed)


def _kinds(records: list[dict[str, Any]]) -> dict[str, set[type]]:
    """Column -> the types of its values, those inside lists beside `list` itself."""
    holds: dict[str, set[type]] = {}
    for record in records:
        for name, value in record.items():
            parts = value if isinstance(value, list) else []
            holds.setdefault(name.strip(), set()).update(type(each) for each in (value, *parts) if each is not None)
    return holds


def _typed(text: str, holds: set[type]) -> Any:
    """What a cell shall say, as a list where its column has lists, as numbers or truths where it has no texts.

    >>> _typed("1|3", {list, int}), _typed("1|3", {list, str}), _typed("false", {bool}), _typed("1", {str})
    ([1, 3], ['1', '3'], False, '1')
    """
    parts: list[Any] = text.split(JOINT) if list in holds else [text]
    if str not in holds:
        with suppress(ValueError):
            read: list[Any] = [json.loads(part) for part in parts]
            back = [json_text(json.loads(json.dumps(each), parse_float=decimal)) for each in read]
            parts = read if back == parts else parts  # 2.50 would be read back as 2.5
    return parts if list in holds else parts[0]


def _parquet(catalog: Catalog, changes: Changes) -> bytes:
    cells = {column: catalog.column(column) for _, column in changes}
    for (place, column), value in changes.items():
        cells[column][place] = value or None
    out = io.BytesIO()
    pq.write_table(with_cells(catalog.original, cells), out)
    return out.getvalue()


def _log_of(entries: list[_Entry]) -> bytes:
    names = ("row", "item_id", "column", "before", "after", "what")
    return csv_of(names, ([getattr(entry, name) for name in names] for entry in entries))
