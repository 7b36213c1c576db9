"""The index of a shard folder: for each item where its image lies, its split and its labels.

`index.parquet` is written last, so whoever sees it may trust the rest. Columns are read when they are first asked for
and stay NumPy arrays: 10 million rows open at once and cost some 30 bytes a row that is used.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from facetclip.cache import CacheSpec
from facetclip.errors import OwnMistake, UserError, first_line
from facetclip.files import writing
from facetclip.prefetch import Portion, fetched_ahead
from facetclip.schema import Schema
from facetclip.splits import SPLITS
from facetclip.store import ANEW, INDEX_NAME, REPAIR, CachedShards, LocalShards, Shard, open_store

FORMAT = "facetclip-index-3"
LABEL = "label:"  # before the attribute's name in the Parquet column
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_KEY_LENGTH = 64  # a plain tar header takes names of up to 100 bytes
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


def key_of(item_id: str) -> str:
    """The member name of an item, another for each, without dots, slashes or anything but plain ASCII.

    A long one is cut and ends in a hash of the whole, after a sign that no escape gives.

    >>> key_of("AB.12"), key_of("rot/groß"), key_of("x" * 70)[-22:]
    ('AB%2E12', 'rot%2Fgro%C3%9F', 'xxxx%-7d7105db3b1d53f7')
    """
    escaped = _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), item_id)
    if len(escaped) <= _KEY_LENGTH:
        return escaped
    return f"{escaped[: _KEY_LENGTH - 18]}%-{hashlib.blake2b(item_id.encode(), digest_size=8).hexdigest()}"


@dataclass(frozen=True)
class ShardIndex:
    """The rows of a finished shard folder; a row's number is its identity everywhere. Made by `open_index`."""

    store: LocalShards | CachedShards
    schema: Schema
    digest: str
    size: int
    shards: tuple[Shard, ...] = field(repr=False)

    def __len__(self) -> int:
        return self.size

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.store, self.digest)

    @property
    def folder(self) -> Path:
        """Where the shards lie on this machine; UserError where they do not."""
        if isinstance(self.store, CachedShards):
            raise UserError(f"{self.store}: expected a folder of this machine")
        return self.store.folder

    @property
    def superseded(self) -> int:
        """Samples in the tars that the index leaves out, since an update replaced or removed them."""
        return sum(shard.samples for shard in self.shards) - self.size

    @property
    def name(self) -> str:
        """What the folder is called, for a title."""
        return self.store.name

    @cached_property
    def splits(self) -> np.ndarray:
        """int8 [n]: 0 train, 1 validation, 2 test (`SPLITS`)."""
        return self._numbers("split")

    @cached_property
    def products(self) -> np.ndarray:
        """int32 [n]: the same number for items of the same product, counted by first appearance."""
        return self._numbers("product")

    @cached_property
    def places(self) -> np.ndarray:
        """int64 [n]: the item's place in the catalog that was sharded, from 0."""
        return self._numbers("place")

    @cached_property
    def labels(self) -> Mapping[str, np.ndarray]:
        """Attribute -> int16 [n] of value numbers or negative codes; an int64 bit mask where multi-valued."""
        return {name: self._numbers(LABEL + name) for name in self.schema.names}

    @cached_property
    def shard(self) -> np.ndarray:
        """int32 [n]: which of `shards` holds the image."""
        return self._numbers("shard")

    @cached_property
    def offset(self) -> np.ndarray:
        """int64 [n]: where the image begins in its shard."""
        return self._numbers("offset")

    @cached_property
    def length(self) -> np.ndarray:
        """int32 [n]: how many bytes it has."""
        return self._numbers("length")

    @cached_property
    def checksum(self) -> np.ndarray:
        """uint32 [n]: crc32 of those bytes."""
        return self._numbers("checksum")

    @cached_property
    def phash(self) -> np.ndarray:
        """uint64 [n]: with `tint` what the image looks like (`fingerprints`)."""
        return self._numbers("phash")

    @cached_property
    def tint(self) -> np.ndarray:
        """uint64 [n]."""
        return self._numbers("tint")

    @cached_property
    def item_ids(self) -> pa.Array:
        """large_string [n]."""
        return self._text("item")

    @cached_property
    def product_ids(self) -> pa.Array:
        """large_string [n]."""
        return self._text("product_id")

    @cached_property
    def titles(self) -> pa.Array:
        """large_string [n], null where the catalog has none; UserError when the schema names no title column."""
        if self.schema.columns.title is None:
            raise UserError(f"{self.store}: the shards hold no titles; name the title column in the schema's [columns]")
        return self._text("title")

    def with_splits(self, splits: np.ndarray) -> "ShardIndex":
        """The same items under other splits, int8 [n]; an index of its own, with another digest, in this process."""
        digest = hashlib.sha256(self.digest.encode() + splits.astype(np.int8).tobytes()).hexdigest()
        other = replace(self, digest=digest)
        other.__dict__["splits"] = splits.astype(np.int8)  # where the cached property keeps it
        return other

    def item_id(self, row: int) -> str:
        """The catalog's id of one row."""
        return self.item_ids[int(row)].as_py()

    def rows(self, split: str) -> np.ndarray:
        """int64: the row numbers of `train`, `validation` or `test`, ascending."""
        if split not in SPLITS:
            raise UserError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def label_matrix(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """int64 [len(rows), attributes] in schema order."""
        rows = np.asarray(rows, dtype=np.int64)
        columns = [self.labels[name][rows].astype(np.int64) for name in self.schema.names]
        return np.stack(columns, axis=1)

    def read(self, row: int) -> bytes:
        """The bytes of one image, checked; safe from many threads.

        OwnMistake with shard, offset and key when they are not the bytes that were indexed.
        """
        row = int(row)
        if not 0 <= row < self.size:
            raise IndexError(f"row {row} of an index of {self.size} rows")
        problem = self._problem(row, image := self._bytes(row))
        if problem and self.store.renewed(self.shards[self.shard[row]]):
            problem = self._problem(row, image := self._bytes(row))
        if problem:
            raise OwnMistake(f"{self._spot(row)}: {problem}; {REPAIR}")
        return image

    def coming(self, portions: Iterable[Portion], rows_of: Callable[[Portion], np.ndarray]) -> Iterator[Portion]:
        """The same portions; where the shards are elsewhere, those of portions to come are brought meanwhile."""
        if not isinstance(self.store, CachedShards):
            return iter(portions)
        needed = ((portion, np.unique(self.shard[rows_of(portion)])) for portion in portions)
        return fetched_ahead(self.store, self.shards, needed)

    def _bytes(self, row: int) -> bytes:
        shard = self.shards[self.shard[row]]
        try:
            return self.store.read(shard, int(self.offset[row]), int(self.length[row]))
        except OSError as error:
            raise OwnMistake(f"{self._spot(row)}: cannot be read ({error.strerror})") from error
        except UserError as error:  # the shard cannot be brought here
            raise OwnMistake(str(error)) from error

    def _problem(self, row: int, image: bytes) -> str | None:
        missing = int(self.length[row]) - len(image)
        if missing:
            return f"the shard ends {missing} bytes early"
        return None if zlib.crc32(image) == self.checksum[row] else "the image is not the one that was indexed"

    def _spot(self, row: int) -> str:
        key = key_of(self.item_id(row))
        return f"{self.store}/{self.shards[self.shard[row]].name}, offset {self.offset[row]}, key {key}"

    def _column(self, name: str) -> pa.ChunkedArray:
        try:
            with pq.ParquetFile(self.store.index, page_checksum_verification=True) as file:
                return file.read(columns=[name]).column(name)
        except (pa.ArrowException, OSError, KeyError) as error:
            told = first_line(error)
            raise UserError(f"{self.store}/{INDEX_NAME}: column {name}: damaged ({told}); {ANEW}") from error

    def _numbers(self, name: str) -> np.ndarray:
        numbers = self._column(name).to_numpy()
        numbers.flags.writeable = False
        return numbers

    def _text(self, name: str) -> pa.Array:
        return self._column(name).cast(pa.large_string()).combine_chunks()


def open_index(place: Path | str, cache: CacheSpec | None = None, *, lengths: bool = True) -> ShardIndex:
    """The index of the shards in a folder, or at a URL behind `cache` (by the environment where None).

    UserError when it is absent, of another format, or a shard in a folder is not as long as it was written: without
    `lengths`, for those who look for damage, nobody asks how long they are.
    """
    return _opened(open_store(place, cache, index_problem), lengths=lengths)


def _opened(store: LocalShards | CachedShards, digest: str | None = None, *, lengths: bool = True) -> ShardIndex:
    if isinstance(store, LocalShards) and not store.index.is_file():
        raise UserError(f"{store}: no {INDEX_NAME}; {_without_index(store.folder)}")
    stored = read_metadata(store.index, f"{store}/{INDEX_NAME}")
    if digest not in (None, stored["digest"]):
        raise UserError(f"{store}: another index has taken the place of the one that was opened; start again")
    try:
        shards = tuple(Shard(**shard) for shard in json.loads(stored["shards"]))
        schema, size = Schema.from_json(stored["schema"]), int(stored["size"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{store}/{INDEX_NAME}: damaged ({first_line(error)}); {ANEW}") from error
    store.require(shards, lengths=lengths)
    return ShardIndex(store, schema, stored["digest"], size, shards)


def _without_index(folder: Path) -> str:
    """What to do about a folder that has none."""
    if (folder / ".parts").is_dir():
        return "the sharding was interrupted; run the same command again"
    return f"it is lost; {ANEW}" if any(folder.glob("shard-*.tar")) else "run facetclip shard first"


def index_problem(file: BinaryIO) -> str | None:
    """What is wrong with an index, copied or here for long: its rows do not give the digest that it names."""
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            stored = parquet.schema_arrow.metadata or {}
            if stored.get(b"format") != FORMAT.encode():
                return None  # opening it says so
            schema = Schema.from_json(stored[b"schema"].decode())
            found = digest_of(parquet.read(), schema)  # all of it: a page that changed is no readable one
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        return f"not a readable Parquet file ({first_line(error)})"
    return None if found == stored[b"digest"].decode() else "the index does not have the digest that it names"


def read_metadata(path: Path, name: str | None = None) -> dict[str, str]:
    """What the index says beside its columns; UserError, by `name`, when `path` is not an index of this format."""
    name = name or str(path)
    try:
        stored = {key.decode(): value.decode() for key, value in (pq.read_schema(path).metadata or {}).items()}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: not a readable Parquet file ({first_line(error)}); {ANEW}") from error
    if stored.get("format") != FORMAT:
        raise UserError(f"{name}: expected format {FORMAT}, found {stored.get('format')!r}; {ANEW}")
    return stored


def write_index(
    folder: Path, table: pa.Table, schema: Schema, shards: Sequence[Shard], facts: Mapping[str, str]
) -> None:
    """Write `index.parquet` whole or not at all: `table` has the `index_columns`; `facts` go into the metadata."""
    columns = index_columns(schema)
    table = table.select(columns.names).cast(columns)
    metadata = {
        "format": FORMAT,
        "schema": schema.to_json(),
        "digest": digest_of(table, schema),
        "size": str(table.num_rows),
        "shards": json.dumps([asdict(shard) for shard in shards]),
        **facts,
    }
    write_parquet(folder / INDEX_NAME, table.replace_schema_metadata(metadata))


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a Parquet file whole or not at all; the same table gives the same bytes."""
    with writing(path) as out:
        pq.write_table(
            table, out, compression="zstd", row_group_size=1 << 20, write_statistics=False, write_page_checksum=True
        )


def index_columns(schema: Schema) -> pa.Schema:
    """The Parquet columns: identity, split, labels, where the image lies and what it looks like."""
    labels = [(LABEL + name, pa.int64() if a.multi_valued else pa.int16()) for name, a in schema.attributes.items()]
    place = [("shard", pa.int32()), ("offset", pa.int64()), ("length", pa.int32()), ("checksum", pa.uint32())]
    looks = [("phash", pa.uint64()), ("tint", pa.uint64())]
    identity = [("item", pa.large_string()), ("product_id", pa.large_string()), ("product", pa.int32())]
    title = [("title", pa.large_string())] if schema.columns.title else []
    return pa.schema([("place", pa.int64()), *identity, *title, ("split", pa.int8()), *labels, *place, *looks])


def digest_of(table: pa.Table, schema: Schema) -> str:
    """sha256 over item ids, product ids, titles, splits, labels and image checksums in row order, however stored.

    The values that label numbers stand for count too; prompts, columns and spellings do not.
    """
    values = {name: attribute.values for name, attribute in schema.attributes.items()}
    total = hashlib.sha256(json.dumps(values).encode())
    for name in _digested(schema):
        total.update(f"\0{name}\0{table.num_rows}\0".encode())
        for part in canonical(table.column(name)):
            total.update(part)
    return total.hexdigest()


def _digested(schema: Schema) -> list[str]:
    titles = ("title",) if schema.columns.title else ()
    return ["item", "product_id", *titles, "split", *(LABEL + name for name in schema.names), "checksum"]


def canonical(column: pa.ChunkedArray) -> Iterator[bytes | memoryview]:
    """The values of a text, binary or number column as bytes that do not depend on chunks, types or encodings.

    Text and binary: the length of every value in bytes (-1 for a null), then all values.
    """
    if not any(is_kind(column.type) for is_kind in _TEXTS):
        numbers = column.to_numpy()
        yield numbers.astype(numbers.dtype.newbyteorder("<")).data
        return
    lengths = pc.call_function("binary_length", [column]).fill_null(-1)
    yield lengths.to_numpy().astype("<i8").data
    for chunk in column.cast(pa.large_binary()).chunks:
        ends = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        if len(chunk):
            yield memoryview(chunk.buffers()[2])[ends[0] : ends[-1]]
