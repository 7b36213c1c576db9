"""The retailer's table: CSV, TSV, Parquet, JSON lines, or a Hugging Face dataset. Every cell is text, or an image.

Rows keep the number that a person sees: in a CSV file the header is row 1.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facetclip.config import closest
from facetclip.errors import UserError
from facetclip.schema import NOT_APPLICABLE, Schema

SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")
LONGEST_CELL = 16 << 20


@dataclass(frozen=True)
class Catalog:
    """A table whose columns are text, but for embedded images (bytes, or structs of bytes and path)."""

    name: str
    table: pa.Table
    first_row: int

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> list[str | None]:
        """One column's cells; UserError when there is no such column."""
        if name not in self.table.column_names:
            raise UserError(f"{self.name}: no column {name!r}{closest(name, self.table.column_names)}")
        return self.table.column(name).to_pylist()

    def row_number(self, place: int) -> int:
        """The number that a person sees beside the record at `place` (from 0)."""
        return self.first_row + place

    def where(self, place: int) -> str:
        """`catalog.csv, row 812`."""
        return f"{self.name}, row {self.row_number(place)}"

    def require_columns(self, schema: Schema) -> None:
        """UserError naming every column that `schema` refers to and the catalog lacks."""
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


def read_catalog(source: str, *, split: str | None = None) -> Catalog:
    """The catalog in a file, in a folder that `datasets` reads, or under a hub id `owner/name` (of which `split`).

    UserError naming file and row when it cannot be read, when two columns share a name, or when it has no row.
    """
    path = Path(source)
    if path.is_file():
        name, first = path.name, 2 if path.suffix.lower() in SEPARATORS else 1
        table = _read_file(path)
    elif path.is_dir() or (source.count("/") == 1 and not path.suffix and not source.startswith((".", "/"))):
        name, first, table = source, 1, _read_dataset(source, split)
    else:
        raise UserError(
            f"{source}: no such catalog; expected a .csv, .tsv, .parquet or .jsonl file, a folder or a hub id"
        )
    if not table.num_rows:
        raise UserError(f"{name}: 0 rows; expected one row per image below the column names")
    return Catalog(name, _as_text(table), first)


def _read_file(path: Path) -> pa.Table:
    kind = path.suffix.lower()
    if kind in SEPARATORS:
        return _read_separated(path, SEPARATORS[kind])
    if kind == ".parquet":
        try:
            return pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path.name}: not a readable Parquet file: {error}") from error
    if kind in JSON_LINES:
        return _read_json_lines(path)
    raise UserError(f"{path.name}: unknown kind of catalog {kind!r}; expected .csv, .tsv, .parquet or .jsonl")


def _decode(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path.name}, line {row}: not {encoding.upper()} text; save the file as UTF-8") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{path.name}, line {line}: a NUL character; is this a text file?")
    return text


def _read_separated(path: Path, separator: str) -> pa.Table:
    csv.field_size_limit(LONGEST_CELL)
    rows = _strict_rows(path.name, csv.reader(io.StringIO(_decode(path), newline=""), delimiter=separator, strict=True))
    header = next(rows, None)
    if header is None:
        raise UserError(f"{path.name}: the file is empty; expected column names in row 1")
    header = [name.strip() for name in header]
    _check_header(path.name, header)
    records: list[list[str]] = []
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UserError(
                f"{path.name}, row {number}: expected {len(header)} cells as in the header, found {len(row)}; "
                "is a quote or a separator missing?"
            )
        records.append(row)
    columns = list(zip(*records, strict=True)) if records else [()] * len(header)
    return pa.table({name: pa.array(cells, pa.string()) for name, cells in zip(header, columns, strict=True)})


def _strict_rows(name: str, reader: Iterable[list[str]]) -> Iterator[list[str]]:
    """The rows that are not blank; UserError where quoting is broken."""
    number = 0
    try:
        for number, row in enumerate(reader, start=1):  # noqa: B007 - used when it fails
            if row:
                yield row
    except csv.Error as error:
        raise UserError(f"{name}, row {number + 1}: {error}; is a quote missing?") from error


def _check_header(name: str, header: list[str]) -> None:
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise UserError(f"{name}, row 1: column {twice[0]!r} occurs twice; give each column its own name")


def _read_json_lines(path: Path) -> pa.Table:
    records: list[dict[str, object]] = []
    for number, line in enumerate(_decode(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path.name}, row {number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise UserError(f'{path.name}, row {number}: expected an object such as {{"id": "A1"}}, one a line')
        records.append(record)
    names = list(dict.fromkeys(name for record in records for name in record))
    return pa.table({name: pa.array([_text(record.get(name)) for record in records], pa.string()) for name in names})


def _text(value: object) -> str | None:
    """A JSON value as the text it was written as."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _read_dataset(source: str, split: str | None) -> pa.Table:
    import datasets

    datasets.disable_progress_bars()
    try:
        if (Path(source) / "state.json").is_file() or (Path(source) / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(source)
        else:
            loaded = datasets.load_dataset(source)
    except Exception as error:  # the library raises some twenty kinds
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{source}: cannot be read as a dataset: {first}") from error
    chosen = _choose_split(source, loaded, split) if isinstance(loaded, dict) else loaded
    for name, feature in chosen.features.items():  # type: ignore[union-attr]  # a map-style dataset has features
        if isinstance(feature, datasets.Image):
            chosen = chosen.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.ClassLabel):
            words = [None if code is None else feature.int2str(code) for code in chosen[name]]
            chosen = chosen.remove_columns(name).add_column(name, words)  # type: ignore[call-arg]  # fingerprint is made
    return chosen.with_format("arrow")[:]  # type: ignore[return-value]  # that format gives a table


def _choose_split(source: str, parts: dict, split: str | None) -> Any:
    if split is None and len(parts) == 1:
        return next(iter(parts.values()))
    if split not in parts:
        raise UserError(f"{source}: has the splits {', '.join(parts)}; name one with --dataset-split")
    return parts[split]


def _as_text(table: pa.Table) -> pa.Table:
    """Every column as text, but for images."""
    columns = {name: _column_as_text(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    return pa.table(columns)


def _column_as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _column_as_text(column.cast(kind.value_type))
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return column
    if pa.types.is_nested(kind):
        return pa.chunked_array([pa.array([_text(cell) for cell in column.to_pylist()], pa.string())])
    if pa.types.is_floating(kind):  # 4.0 in a column with gaps was 4 in the source
        return pa.chunked_array([pa.array([None if c is None else f"{c:g}" for c in column.to_pylist()], pa.string())])
    return column.cast(pa.string())


def encode_labels(catalog: Catalog, schema: Schema) -> dict[str, np.ndarray]:
    """Attribute -> label of every row: int16, int64 bit masks where multi-valued; applicability rules outrank cells.

    A cell that nothing explains is UNKNOWN_VALUE.
    """
    labels: dict[str, np.ndarray] = {}
    for name, attribute in schema.attributes.items():
        cells = catalog.table.column(attribute.column).cast(pa.string()).dictionary_encode(null_encoding="encode")
        codes, kind = attribute.codes(), np.int64 if attribute.multi_valued else np.int16
        parts = []
        for chunk in cells.chunks:
            words = np.array([attribute.encode(word, codes) for word in chunk.dictionary.to_pylist()], dtype=kind)
            parts.append(words[chunk.indices.to_numpy(zero_copy_only=False)])
        labels[name] = np.concatenate(parts) if parts else np.zeros(0, dtype=kind)
    return apply_rules(labels, schema)


def apply_rules(labels: dict[str, np.ndarray], schema: Schema) -> dict[str, np.ndarray]:
    """The same labels, NOT_APPLICABLE where another attribute says so; where that one is silent, nothing changes."""
    ruled = dict(labels)
    for name, attribute in schema.attributes.items():
        for other, values in attribute.applies_where.items():
            allowed = [schema.attributes[other].values.index(value) for value in values]
            told = (labels[other] >= 0) | (labels[other] == NOT_APPLICABLE)
            barred = told & ~np.isin(labels[other], allowed)
            ruled[name] = np.where(barred, NOT_APPLICABLE, ruled[name]).astype(labels[name].dtype)
    return ruled
