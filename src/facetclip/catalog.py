"""The retailer's table: CSV, TSV, Parquet, JSON lines, or a Hugging Face dataset. Every cell is text, or an image.

Rows keep the number that a person sees: in a CSV file the header is row 1, and blank rows count.
"""

import codecs
import csv
import io
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facetclip.cells import Unfit, column_as_text, json_texts
from facetclip.config import closest
from facetclip.errors import UserError
from facetclip.schema import Schema
from facetclip.spreadsheets import Form

SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
OTHER_SEPARATORS = (";", "\t")  # of a .csv: where the comma is in numbers, spreadsheets write semicolons
JSON_LINES = (".jsonl", ".ndjson", ".json")
LONGEST_CELL = 16 << 20
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # how such a file begins


@dataclass(frozen=True)
class Catalog:
    """A table whose columns are text, but for embedded images (bytes, or structs of bytes and path).

    `skipped`: for each blank row that was passed over, how many records stand before it. `typed`: the same table as it
    was read, where that was no text. `unfit`: columns of lists that cannot be cells, which nothing may be read from.
    """

    name: str
    table: pa.Table
    first_row: int
    skipped: tuple[int, ...] = ()
    typed: pa.Table | None = None
    unfit: Mapping[str, Unfit] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def original(self) -> pa.Table:
        """The table as it was read, with numbers, dates and lists as such."""
        return self.table if self.typed is None else self.typed

    def column(self, name: str) -> list[str | None]:
        """One column's cells; UserError when there is no such column, or it holds lists that cannot be cells."""
        if name not in self.table.column_names:
            raise UserError(f"{self.name}: no column {name!r}{closest(name, self.table.column_names)}")
        self._require_fit(name)
        return self.table.column(name).to_pylist()

    def require_ids(self, name: str) -> None:
        """UserError where a row has no id of its own in column `name`: what is said of it would be said of another."""
        first: dict[str, int] = {}
        for place, item in enumerate(self.column(name)):
            if not item or first.setdefault(item, place) != place:
                found = f"item id {item!r} is already in row {self.row_number(first[item])}" if item else "no item id"
                raise UserError(f"{self.where(place)}: {found}; every row needs an id of its own")

    def cells(self, name: str, item_column: str, items: Sequence[str]) -> list[str]:
        """What column `name` says of each of `items`, by their ids in `item_column`; empty where it says nothing.

        UserError where a column is missing or no text, or an item is not in the catalog.
        """
        ids, cells = self.column(item_column), self.column(name)
        if not pa.types.is_string(kind := self.table.schema.field(name).type):
            raise UserError(f"{self.name}: column {name!r} is not text but {kind}")
        place = {item: row for row, item in enumerate(ids)}
        if strange := next((item for item in items if item not in place), None):
            raise UserError(
                f"{self.name}: has no item {strange!r}, which the shards hold; give the catalog of the shards"
            )
        return [(cells[place[item]] or "").strip() for item in items]

    def _require_fit(self, name: str) -> None:
        if name in self.unfit:
            place, why = self.unfit[name]
            raise UserError(f"{self.where(place)}: column {name!r}: {why}")

    def row_number(self, place: int) -> int:
        """The number that a person sees beside the record at `place` (from 0)."""
        return self.first_row + place + bisect_right(self.skipped, place)

    def where(self, place: int) -> str:
        """`catalog.csv, row 812`."""
        return f"{self.name}, row {self.row_number(place)}"

    def require_columns(self, schema: Schema, *, written: bool = False) -> None:
        """UserError naming every column that `schema` refers to and the catalog lacks, or has as something not text;
        where cells are to be `written`, also one that two attributes share."""
        wanted = {f"columns.{role}": name for role, name in schema.columns.model_dump().items() if name is not None}
        wanted |= {f"attributes.{name}.column": attribute.column for name, attribute in schema.attributes.items()}
        present = self.table.column_names
        lacking = [
            f"{self.name}: no column {name!r}, which the schema names as {role}{closest(name, present)}"
            for role, name in wanted.items()
            if name not in present
        ]
        if lacking:
            raise UserError("\n".join([*lacking, f"the columns are: {', '.join(present)}"]))
        for role, name in wanted.items():
            self._require_fit(name)
            if role != "columns.image" and not pa.types.is_string(kind := self.table.schema.field(name).type):
                raise UserError(f"{self.name}: column {name!r}, which the schema names as {role}: not text but {kind}")
        columns = [attribute.column for attribute in schema.attributes.values()]
        if written and (twice := next((column for column in columns if columns.count(column) > 1), None)):
            raise UserError(
                f"{self.name}: two attributes are read from column {twice!r}; which of them is written there?"
            )


def read_catalog(source: str, *, split: str | None = None) -> Catalog:
    """The catalog in a file, in a folder that `datasets` reads, or under a hub id `owner/name` (of which `split`).

    UserError naming file and row when it cannot be read, when two columns share a name, or when it has no row.
    """
    path = Path(source)
    skipped: tuple[int, ...] = ()
    unfit: dict[str, Unfit] = {}
    if path.is_file():
        name, first = path.name, 2 if path.suffix.lower() in SEPARATORS else 1
        table, skipped, unfit = _read_file(path)
    elif path.is_dir() or (source.count("/") == 1 and not path.suffix and not source.startswith((".", "/"))):
        name, first, table = source, 1, _read_dataset(source, split)
    else:
        raise UserError(
            f"{source}: no such catalog; expected a .csv, .tsv, .parquet or .jsonl file, a folder or a hub id"
        )
    if not table.num_rows:
        raise UserError(f"{name}: 0 rows; expected one row per image below the column names")
    text, found = _as_text(name, table)
    return Catalog(name, text, first, skipped, table, unfit | found)


def _read_file(path: Path) -> tuple[pa.Table, tuple[int, ...], dict[str, Unfit]]:
    """The table, where blank rows were passed over, and which columns are unfit (see `Catalog`)."""
    kind = path.suffix.lower()
    if kind in SEPARATORS:
        return *_read_separated(path), {}
    if kind == ".parquet":
        return _read_parquet(path), (), {}  # which are unfit is told from the types
    if kind in JSON_LINES:
        return _read_json_lines(path)
    raise UserError(f"{path.name}: unknown kind of catalog {kind!r}; expected .csv, .tsv, .parquet or .jsonl")


def _read_parquet(path: Path) -> pa.Table:
    try:
        _check_names(path.name, pq.read_schema(path).names)
        with pq.ParquetFile(path) as file:  # by groups: of images in one piece there may be 2 GiB at most
            groups = [file.read_row_group(number) for number in range(file.num_row_groups)] or [file.read()]
        table = pa.concat_tables(groups)
        table.validate(full=True)  # other writers let text through that is not UTF-8
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path.name}: not a readable Parquet file: {error}") from error
    return table


def text_of(path: Path) -> str:
    """The text of a file in UTF-8 or UTF-16; UserError naming the line that is neither."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    encoding = "utf-16" if content[:2] in UTF_16 else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        shown = "UTF-16" if encoding == "utf-16" else "UTF-8"
        raise UserError(f"{path.name}, line {line}: not {shown} text; save the file as UTF-8") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{path.name}, line {line}: a NUL character; is this a text file?")
    return text


def separator_of(path: Path, text: str) -> str:
    """What separates the cells of such a file: in a .csv also a semicolon or a tab, where its header holds no comma
    outside of quotes and one of these alone."""
    usual = SEPARATORS.get(path.suffix.lower(), ",")
    header = re.match(r'[\s,;]*((?:"(?:[^"]|"")*"|[^"\r\n])*)', text)
    bare = re.sub(r'"(?:[^"]|"")*"', "", header.group(1)) if header else ""
    marks = [mark for mark in OTHER_SEPARATORS if mark in bare]
    return usual if usual != "," or usual in bare or len(marks) != 1 else marks[0]


def form_of(path: Path) -> Form:
    """How such a file is written, so that a copy of it can be written alike."""
    with path.open("rb") as file:
        start = file.read(3)
    text = text_of(path)
    encoding = "utf-16" if start[:2] in UTF_16 else "utf-8-sig" if start == codecs.BOM_UTF8 else "utf-8"
    line_end = "\r\n" if 2 * text.count("\r\n") > text.count("\n") else "\n"
    return Form(separator_of(path, text), encoding, line_end)


def read_separated(path: Path) -> Catalog:
    """The table in a file of separated cells, which may have no row; UserError naming the row that is broken."""
    table, skipped = _read_separated(path)
    return Catalog(path.name, table, 2, skipped)


def _read_separated(path: Path) -> tuple[pa.Table, tuple[int, ...]]:
    csv.field_size_limit(LONGEST_CELL)
    text = text_of(path)
    separator = separator_of(path, text)
    rows = _strict_rows(path.name, csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    first, header = next(rows, (1, []))
    if not header:
        raise UserError(f"{path.name}: the file is empty; expected column names in row 1")
    header = [name.strip() for name in header]
    _check_names(f"{path.name}, row {first}", header)
    other = next((mark for mark in ";\t|," if mark in header[0]), None)
    if len(header) == 1 and other is not None:
        raise UserError(
            f"{path.name}, row {first}: one column, {header[0]!r}; cells of a {path.suffix} are separated by "
            f"{separator!r}, these by {other!r}? Save the file as .csv with commas or as .tsv with tabs"
        )
    numbers: list[int] = []
    records: list[list[str]] = []
    for number, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{path.name}, row {number}: expected {len(header)} cells as in the header, found {len(row)}; "
                "is a quote or a separator missing?"
            )
        numbers.append(number)
        records.append(row)
    columns = list(zip(*records, strict=True)) if records else [()] * len(header)
    table = pa.table({name: pa.array(cells, pa.string()) for name, cells in zip(header, columns, strict=True)})
    return table, _skipped(numbers, 2)


def _strict_rows(name: str, reader: Iterable[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """(row number, cells) of the rows in which something is written; UserError where quoting is broken."""
    number = 0
    try:
        for number, row in enumerate(reader, start=1):
            if any(cell.strip() for cell in row):
                yield number, row
    except csv.Error as error:
        raise UserError(f"{name}, row {number + 1}: {error}; is a quote missing?") from error


def _skipped(numbers: list[int], first: int) -> tuple[int, ...]:
    """Of records with these row numbers, where `first` would be the first: how many stand before each blank row.

    >>> _skipped([2, 3, 6], 2)
    (2, 2)
    """
    blank = np.diff(np.array(numbers, dtype=np.int64), prepend=first - 1) - 1
    return tuple(np.repeat(np.arange(len(numbers)), blank).tolist())


def _check_names(where: str, names: list[str]) -> None:
    if len(set(names)) < len(names):
        twice = min(name for name in names if names.count(name) > 1)
        raise UserError(f"{where}: column {twice!r} occurs twice; give each column its own name")


def _read_json_lines(path: Path) -> tuple[pa.Table, tuple[int, ...], dict[str, Unfit]]:
    numbers: list[int] = []
    records: list[dict[str, object]] = []
    for number, line in enumerate(text_of(path).split("\n"), start=1):  # splitlines would cut at U+2028 in a cell
        if line.strip():
            numbers.append(number)
            records.append(_json_record(f"{path.name}, row {number}", line))
    names = list(dict.fromkeys(name for record in records for name in record))
    read = {name: json_texts([record.get(name) for record in records]) for name in names}
    table = pa.table({name: pa.array(texts, pa.string()) for name, (texts, _) in read.items()})
    return table, _skipped(numbers, 1), {name: why for name, (_, why) in read.items() if why is not None}


def _json_record(where: str, line: str) -> dict[str, object]:
    try:
        record = json.loads(line, parse_float=decimal, object_pairs_hook=partial(_once_each, where))
        json.dumps(record, ensure_ascii=False).encode()  # fails where half of a surrogate pair was written
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise UserError(f'{where}: expected an object such as {{"id": "A1"}}, one a line')
    return {name.strip(): value for name, value in record.items()}


def decimal(text: str) -> str:
    """A number of JSON as it was written, but a whole one without decimals, as Parquet's are read: counts with gaps
    are written so.

    >>> decimal("2.0"), decimal("2.50"), decimal("1e3"), decimal("-0.0")
    ('2', '2.50', '1e3', '0')
    """
    whole, _, rest = text.partition(".")
    return str(int(whole)) if rest and not rest.strip("0") else text


def _once_each(where: str, pairs: list[tuple[str, object]]) -> dict[str, object]:
    _check_names(where, [name.strip() for name, _ in pairs])
    return dict(pairs)


def _read_dataset(source: str, split: str | None) -> pa.Table:
    import datasets

    datasets.disable_progress_bars()
    try:
        if (Path(source) / "state.json").is_file() or (Path(source) / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(source)
        else:
            loaded = datasets.load_dataset(source)
    except Exception as error:  # the library raises some twenty kinds, the generic ones from what says why
        cause = error.__cause__ or error
        first = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise UserError(f"{source}: cannot be read as a dataset: {first}") from error
    chosen = _choose_split(source, loaded, split) if isinstance(loaded, dict) else loaded
    return _from_features(source, chosen)


def _from_features(source: str, chosen: Any) -> pa.Table:
    """The table of a map-style dataset: its class labels in words, its images not decoded."""
    import datasets

    features = dict(chosen.features)
    for name in [name for name, feature in features.items() if isinstance(feature, datasets.Image)]:
        chosen = chosen.cast_column(name, datasets.Image(decode=False))
    table: pa.Table = chosen.with_format("arrow")[:]
    for place, name in enumerate(table.column_names):
        if isinstance(features[name], datasets.ClassLabel):
            words = [_word(features[name].names, code) for code in table.column(name).to_pylist()]
            table = table.set_column(place, name, pa.array(words, pa.string()))
        elif isinstance(features[name], datasets.Image):
            table = table.set_column(place, name, _relative(table.column(name).combine_chunks(), source))
    return table


def _word(names: list[str], code: int | None) -> str | None:
    """A class label in words; test splits of public datasets have -1 where nothing is told."""
    return None if code is None or code < 0 else names[code]


def _relative(images: pa.StructArray, folder: str) -> pa.StructArray:
    """The same images; paths of files that a folder of images gave, in place of bytes, made relative to that folder."""
    content, paths = (images.flatten()[images.type.get_field_index(name)] for name in ("bytes", "path"))
    root = os.path.join(os.path.realpath(folder), "")  # noqa: PTH118 - a prefix, with its slash
    told = [path and os.path.realpath(path).removeprefix(root) for path in paths.to_pylist()]
    return pa.StructArray.from_arrays([content, pa.array(told, pa.string())], ["bytes", "path"])


def _choose_split(source: str, parts: dict, split: str | None) -> Any:
    if split is None and len(parts) == 1:
        return next(iter(parts.values()))
    if split not in parts:
        raise UserError(f"{source}: has the splits {', '.join(parts)}; name one with --dataset-split")
    return parts[split]


def _as_text(source: str, table: pa.Table) -> tuple[pa.Table, dict[str, Unfit]]:
    """Every column as text, but for images; names without outer blanks, as in a schema; which columns are unfit."""
    names = [name.strip() for name in table.column_names]
    _check_names(source, names)
    texts, unfit = {}, {}
    for name, column in zip(names, table.columns, strict=True):
        texts[name], why = column_as_text(column)
        unfit |= {} if why is None else {name: why}
    return pa.table(texts), unfit
