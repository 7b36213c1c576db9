"""Which rows each shard of a build holds: decided up front from the catalog, schema and settings, before any is packed.

So every process, on whatever machine, knows the same slices by itself.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facetclip.addresses import is_url
from facetclip.catalog import Catalog
from facetclip.downloads import FetchSpec, download_all
from facetclip.errors import UserError
from facetclip.hamming import FARTHEST
from facetclip.index import ShardIndex, canonical
from facetclip.labels import encode_labels
from facetclip.portions import WHOLE, Portion
from facetclip.references import image_of, require_way
from facetclip.schema import UNKNOWN_VALUE, UNLABELLED, Schema
from facetclip.splits import Shares, assign_splits
from facetclip.tars import Slice

PARTS = ".parts"
DOWNLOADS = "downloads"
RESIZED_PER_SHARD = 5000  # some 80 MB at 256 pixels
ORIGINALS_PER_SHARD = 1000
FEWEST_PER_SHARD = 64
FEWEST_SHARDS = 16  # where there are rows enough, so that several processes have work
SMALLEST_RESIZE = 32
FORMAT = "facetclip-shards-3"
_NUMBERED = re.compile(r"shard-(\d+)\.tar")


@dataclass(frozen=True)
class ShardSpec:
    """How a catalog is sharded. `workers` and `max_bad` change how a build runs, never what it writes."""

    out: Path
    images: Path | None = None  # the root that the image column's paths are under; None where images are embedded
    resize: int | None = None  # pixels of the shorter edge; None keeps the original bytes
    seed: int = 0
    shares: Shares = field(default_factory=Shares)
    samples_per_shard: int | None = None
    workers: int = 1
    max_bad: float = 0.01
    fetch: FetchSpec | None = None  # how images named by URL are had; None refuses them
    join: int | None = None  # bits: products with a photo in common, within so many, share a split
    update: bool = False  # a finished folder follows its catalog; else it is left alone
    max_removed: float = 0.1  # largest share of a finished folder's items that an update may drop
    repair: bool = False  # read every byte of a finished folder, and pack the shards again that are damaged

    @property
    def settings(self) -> dict[str, Any]:
        """What all shards of a folder have in common, however often it is updated."""
        return {"resize": self.resize, "seed": self.seed, "shares": str(self.shares), "join": self.join}


@dataclass(frozen=True)
class Kept:
    """What an update takes over from the finished folder; by place in the new catalog."""

    index: ShardIndex  # of the folder, as it was when the update was planned
    places: np.ndarray  # int64 [k]
    rows: np.ndarray  # int64 [k]: in `index`
    sources: np.ndarray  # uint64 [k]: as of now
    removed: int  # items that the catalog no longer has
    gone: int  # items whose photo is no longer where the catalog says, and stays as it was
    of: str  # the work that the folder was finished by


@dataclass(frozen=True)
class Rows:
    """The catalog as the shards will hold it, one entry a catalog row."""

    items: pa.ChunkedArray
    products: pa.ChunkedArray
    titles: pa.ChunkedArray | None
    images: pa.ChunkedArray
    splits: np.ndarray
    labels: dict[str, np.ndarray]
    unknown_cells: dict[str, int]


@dataclass(frozen=True)
class Build:
    """One build: pure facts, from which every slice follows."""

    rows: Rows
    schema: Schema
    spec: ShardSpec
    places: np.ndarray  # int64: which rows are packed, ascending
    inputs: str  # sha256 over the catalog, schema and settings
    digest: str  # of this work: the same inputs for the same places
    portion: Portion = WHOLE
    kept: Kept | None = None  # of the folder that is updated
    first_shard: int = 0

    @property
    def per_shard(self) -> int:
        """How many rows a shard has."""
        most = ORIGINALS_PER_SHARD if self.spec.resize is None else RESIZED_PER_SHARD
        even = -(-len(self.places) // FEWEST_SHARDS)
        return self.spec.samples_per_shard or max(FEWEST_PER_SHARD, min(most, even))

    @property
    def count(self) -> int:
        """How many shards there will be; in an update, how many more."""
        return -(-len(self.places) // self.per_shard)

    @property
    def most_bad(self) -> int:
        """How many images may be left out; never all there are. Of the whole catalog, also where an update packs less:
        it finds bad what a build from scratch would."""
        return min(len(self.rows.items) - 1, int(self.spec.max_bad * len(self.rows.items)))

    @property
    def numbers(self) -> range:
        """The shards that this process packs."""
        return self.portion.among(self.count)

    def part(self, number: int) -> Path:
        """Where shard `number` says what it holds, until the index does."""
        return self.spec.out / PARTS / f"{self._stem(number)}.parquet"

    def _stem(self, number: int) -> str:
        return f"shard-{self.first_shard + number:06d}"

    def is_new(self, tar: Path) -> bool:
        """Whether this is a shard of this build, not of the folder that it updates."""
        found = _NUMBERED.fullmatch(tar.name)
        return found is not None and int(found[1]) >= self.first_shard

    @property
    def downloads(self) -> Path | None:
        """Where images named by URL are fetched to."""
        fetch = self.spec.fetch
        own = f"{DOWNLOADS}-{self.portion.number}-of-{self.portion.of}"  # two would spoil each other's half files
        return None if fetch is None else fetch.folder or self.spec.out / PARTS / own

    def slice(self, number: int) -> Slice:
        """The rows of shard `number`."""
        places = self.places[number * self.per_shard :][: self.per_shard]
        rows, cut = self.rows, partial(_cut, places=places.tolist())
        return Slice(
            tar=self.spec.out / f"{self._stem(number)}.tar",
            part=self.part(number),
            digest=self.digest,
            schema=self.schema,
            images_root=self.spec.images,
            downloads=self.downloads,
            resize=self.spec.resize,
            places=places.tolist(),
            items=cut(rows.items),
            products=cut(rows.products),
            titles=None if rows.titles is None else cut(rows.titles),
            images=[image_of(cell) for cell in cut(rows.images)],
            labels={name: labels[places] for name, labels in rows.labels.items()},
        )


def _check_spec(catalog: Catalog, schema: Schema, spec: ShardSpec, portion: Portion) -> None:
    catalog.require_columns(schema)
    for name, value, least in (
        ("resize", spec.resize, SMALLEST_RESIZE),
        ("workers", spec.workers, 1),
        ("samples per shard", spec.samples_per_shard, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{name}: expected at least {least}, found {value}")
    if portion != WHOLE and spec.fetch is not None and spec.fetch.folder is not None:
        raise UserError("--downloads: parts cannot share one folder; leave it out, or shard without --part")
    if spec.repair and (spec.update or portion != WHOLE):
        raise UserError("--repair mends a finished folder as it is; leave out --update and --part")
    _check_join(schema, spec)
    if spec.images is None and spec.fetch is None:
        require_way(catalog, schema.columns.image, fetches=True)
    if spec.images is not None and not spec.images.is_dir():
        raise UserError(f"{spec.images}: expected the folder of the images (--images), found no folder")


def _check_join(schema: Schema, spec: ShardSpec) -> None:
    if spec.join is None:
        return
    if not 0 <= spec.join <= FARTHEST:
        raise UserError(f"--join-duplicates: expected 0 to {FARTHEST} bits, found {spec.join}")
    if schema.columns.split is not None:
        raise UserError(
            f"--join-duplicates: column {schema.columns.split!r} says which split each product is in; take `split` out "
            "of the schema's [columns], or leave the option out: duplicates.csv names what is in two splits"
        )


def _read_rows(catalog: Catalog, schema: Schema, spec: ShardSpec) -> Rows:
    columns = schema.columns
    items, products = _ids(catalog, columns.item), _ids(catalog, columns.product)
    _check_unique(catalog, items)
    labels, unknown = {}, {}
    for name, column in encode_labels(catalog, schema).items():
        strange = column == UNKNOWN_VALUE
        labels[name] = np.where(strange, UNLABELLED, column).astype(column.dtype)
        unknown |= {name: int(strange.sum())} if strange.any() else {}
    return Rows(
        items=items,
        products=products,
        titles=None if columns.title is None else catalog.table.column(columns.title),
        images=catalog.table.column(columns.image),
        splits=assign_splits(catalog, schema, seed=spec.seed, shares=spec.shares),
        labels=labels,
        unknown_cells=unknown,
    )


def _ids(catalog: Catalog, column: str) -> pa.ChunkedArray:
    """A column in which every row must say something."""
    cells = catalog.table.column(column).cast(pa.large_string())
    trimmed = pc.call_function("utf8_trim_whitespace", [cells])
    empty = pc.call_function("binary_length", [trimmed]).fill_null(0).to_numpy() == 0
    if empty.any():
        raise UserError(
            f"{catalog.where(int(empty.argmax()))}: column {column!r} is empty; every row needs an id there"
        )
    return cells


def _check_unique(catalog: Catalog, items: pa.ChunkedArray) -> None:
    codes = codes_of(items)
    if len(codes) and codes.max() + 1 < len(codes):
        seen, first = np.unique(codes, return_index=True)
        again = np.setdiff1d(np.arange(len(codes)), first)[0]
        before = first[seen == codes[again]][0]
        raise UserError(
            f"{catalog.where(int(again))}: item id {items[int(again)].as_py()!r} is already in row "
            f"{catalog.row_number(int(before))}; ids must be unique"
        )


def codes_of(text: pa.ChunkedArray) -> np.ndarray:
    """int32: the same number for the same text, counted by first appearance."""
    return text.combine_chunks().dictionary_encode().indices.to_numpy()


def found_in(text: pa.ChunkedArray, among: pa.Array) -> np.ndarray:
    """int64: where each text first stands in `among`, -1 where it does not."""
    options = pc.SetLookupOptions(value_set=among)
    return pc.call_function("index_in", [text], options).fill_null(-1).to_numpy().astype(np.int64)


def plan_build(catalog: Catalog, schema: Schema, spec: ShardSpec, portion: Portion = WHOLE) -> Build:
    """The build of these inputs; UserError where they cannot be sharded."""
    _check_spec(catalog, schema, spec, portion)
    rows = _read_rows(catalog, schema, spec)
    total = hashlib.sha256()
    facts = [
        FORMAT,
        schema.to_json(),
        spec.resize,
        spec.seed,
        str(spec.shares),
        spec.samples_per_shard,
        spec.join,
        *([DOWNLOADS] if spec.fetch else []),
    ]
    total.update(json.dumps(facts).encode())
    images = rows.images.flatten() if pa.types.is_struct(rows.images.type) else [rows.images]
    for column in (rows.items, rows.products, *([] if rows.titles is None else [rows.titles]), *images):
        for part in canonical(column):
            total.update(part)
    for numbers in (rows.splits, *rows.labels.values()):
        total.update(numbers.tobytes())
    places = np.arange(len(rows.items))
    return Build(rows, schema, spec, places, total.hexdigest(), total.hexdigest(), portion)


def fetch_images(build: Build, slices: Iterable[Slice]) -> None:
    """Have every image that these rows name by URL in the folder of downloads, or a note there why not."""
    if build.spec.fetch is not None and build.downloads is not None:
        cells = (cell for rows in slices for cell in rows.images)
        download_all(filter(is_url, cells), build.spec.fetch, build.downloads)


def _cut(column: pa.ChunkedArray, places: list[int]) -> list:
    if places and places == list(range(places[0], places[0] + len(places))):
        return column.slice(places[0], len(places)).to_pylist()
    return [column[place].as_py() for place in places]  # `take` would copy the whole column first
