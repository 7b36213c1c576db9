"""`facetclip shard`: a catalog becomes WebDataset tars and, last, the index that makes them seekable.

Each shard is a fixed slice of catalog rows, decided up front, so shards are packed by any number of processes with the
same bytes, and a build that was interrupted continues with the shards that are missing.
"""

import csv
import fcntl
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facetclip import faults
from facetclip.addresses import is_url
from facetclip.catalog import Catalog, encode_labels
from facetclip.downloads import FetchSpec, download_all
from facetclip.errors import UserError
from facetclip.files import write_whole
from facetclip.index import INDEX_NAME, LABEL, canonical, open_index, read_metadata, write_index
from facetclip.schema import UNKNOWN_VALUE, UNLABELLED, Schema
from facetclip.splits import SPLITS, Shares, assign_splits
from facetclip.tars import Part, Slice, checksums, first_changed, intact, pack, read_part
from facetclip.workers import each

PARTS = ".parts"
DOWNLOADS = "downloads"
QUARANTINE = "quarantine.csv"
RESIZED_PER_SHARD = 5000  # some 80 MB at 256 pixels
ORIGINALS_PER_SHARD = 1000
FEWEST_PER_SHARD = 64
FEWEST_SHARDS = 16  # where there are rows enough, so that several processes have work
SMALLEST_RESIZE = 32
FORMAT = "facetclip-shards-1"
_OTHER = "another catalog, schema or setting"


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


@dataclass(frozen=True)
class ShardReport:
    """What a build left: counts, and what the catalog did not say clearly."""

    folder: Path
    digest: str
    samples: int
    shards: int
    splits: dict[str, int]
    bad: dict[str, int]  # reason code -> rows left out, listed in quarantine.csv
    unknown_cells: dict[str, int]  # attribute -> cells that no value or alias explains; unlabelled in the shards
    reused: int  # shards found finished


@dataclass(frozen=True)
class _Rows:
    """The catalog as the shards will hold it, one entry a catalog row."""

    items: pa.ChunkedArray
    products: pa.ChunkedArray
    titles: pa.ChunkedArray | None
    images: pa.ChunkedArray
    splits: np.ndarray
    labels: dict[str, np.ndarray]
    unknown_cells: dict[str, int]


@dataclass(frozen=True)
class _Build:
    """One build: pure facts, from which every slice follows."""

    rows: _Rows
    schema: Schema
    spec: ShardSpec
    per_shard: int
    digest: str

    @property
    def count(self) -> int:
        """How many shards there will be."""
        return -(-len(self.rows.items) // self.per_shard)

    @property
    def most_bad(self) -> int:
        """How many images may be left out; never all of them."""
        rows = len(self.rows.items)
        return min(rows - 1, int(self.spec.max_bad * rows))

    def part(self, number: int) -> Path:
        """Where shard `number` says what it holds, until the index does."""
        return self.spec.out / PARTS / f"shard-{number:06d}.parquet"

    @property
    def downloads(self) -> Path | None:
        """Where images named by URL are fetched to."""
        fetch = self.spec.fetch
        return None if fetch is None else fetch.folder or self.spec.out / PARTS / DOWNLOADS

    def slice(self, number: int) -> Slice:
        """The rows of shard `number`."""
        first = number * self.per_shard
        rows, cut = self.rows, partial(_cut, first=first, length=self.per_shard)
        return Slice(
            tar=self.spec.out / f"shard-{number:06d}.tar",
            part=self.part(number),
            digest=self.digest,
            schema=self.schema,
            images_root=self.spec.images,
            downloads=self.downloads,
            resize=self.spec.resize,
            first=first,
            items=cut(rows.items),
            products=cut(rows.products),
            titles=None if rows.titles is None else cut(rows.titles),
            images=[_image(cell) for cell in cut(rows.images)],
            splits=rows.splits[first : first + self.per_shard],
            labels={name: labels[first : first + self.per_shard] for name, labels in rows.labels.items()},
        )


def build_shards(
    catalog: Catalog, schema: Schema, spec: ShardSpec, *, progress: Callable[[int, int], None] | None = None
) -> ShardReport:
    """Shard `catalog` into `spec.out`; the same inputs give the same bytes, also after an interruption.

    A finished build of the same inputs is left as it is. `progress` is told (shards done, shards in all). UserError
    when the folder holds anything else, when an item id is empty or doubled, and when more than `spec.max_bad` of the
    images cannot be used: it stops as soon as that is seen, and quarantine.csv names them.
    """
    _check_spec(catalog, schema, spec)
    build = _planned(_read_rows(catalog, schema, spec), schema, spec)
    if (spec.out / INDEX_NAME).exists():
        return _finished(build, catalog)
    with _alone(build):
        _fetch(build)
        numbers = [number for number in range(build.count) if not _usable(build, number)]
        _pack_missing(build, numbers, progress)
        parts = [part for number in range(build.count) if (part := read_part(build.part(number), build.digest))]
        _quarantine(build, catalog, parts)
        if len(parts) < build.count:
            raise UserError(f"{spec.out}: was changed while the build ran; run the same command again")
        faults.reach("shards.before_index")
        _write_index(build, parts)
    faults.reach("shards.after_index")
    shutil.rmtree(spec.out / PARTS)
    return _report(build, build.count - len(numbers))


def _fetch(build: _Build) -> None:
    """Have every image that is named by URL in the folder of downloads, or a note there why not."""
    if build.spec.fetch is not None and build.downloads is not None:
        cells = (_image(cell.as_py()) for cell in build.rows.images)
        download_all(filter(is_url, cells), build.spec.fetch, build.downloads)


def _check_spec(catalog: Catalog, schema: Schema, spec: ShardSpec) -> None:
    catalog.require_columns(schema)
    for name, value, least in (
        ("resize", spec.resize, SMALLEST_RESIZE),
        ("workers", spec.workers, 1),
        ("samples per shard", spec.samples_per_shard, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{name}: expected at least {least}, found {value}")
    column = schema.columns.image
    if spec.images is None and spec.fetch is None and pa.types.is_string(catalog.table.column(column).type):
        raise UserError(
            f"{catalog.name}: column {column!r} holds paths; give the folder that they are under "
            "(--images), or --fetch-urls where they are URLs"
        )
    if spec.images is not None and not spec.images.is_dir():
        raise UserError(f"{spec.images}: expected the folder of the images (--images), found no folder")


def _read_rows(catalog: Catalog, schema: Schema, spec: ShardSpec) -> _Rows:
    columns = schema.columns
    items, products = _ids(catalog, columns.item), _ids(catalog, columns.product)
    _check_unique(catalog, items)
    labels, unknown = {}, {}
    for name, column in encode_labels(catalog, schema).items():
        strange = column == UNKNOWN_VALUE
        labels[name] = np.where(strange, UNLABELLED, column).astype(column.dtype)
        unknown |= {name: int(strange.sum())} if strange.any() else {}
    return _Rows(
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
    codes = _codes(items)
    if len(codes) and codes.max() + 1 < len(codes):
        seen, first = np.unique(codes, return_index=True)
        again = np.setdiff1d(np.arange(len(codes)), first)[0]
        before = first[seen == codes[again]][0]
        raise UserError(
            f"{catalog.where(int(again))}: item id {items[int(again)].as_py()!r} is already in row "
            f"{catalog.row_number(int(before))}; ids must be unique"
        )


def _codes(text: pa.ChunkedArray) -> np.ndarray:
    """int32: the same number for the same text, counted by first appearance."""
    return text.combine_chunks().dictionary_encode().indices.to_numpy()


def _planned(rows: _Rows, schema: Schema, spec: ShardSpec) -> _Build:
    most = ORIGINALS_PER_SHARD if spec.resize is None else RESIZED_PER_SHARD
    per_shard = spec.samples_per_shard or max(FEWEST_PER_SHARD, min(most, -(-len(rows.items) // FEWEST_SHARDS)))
    total = hashlib.sha256()
    facts = [
        FORMAT,
        schema.to_json(),
        spec.resize,
        spec.seed,
        str(spec.shares),
        per_shard,
        *([DOWNLOADS] if spec.fetch else []),
    ]
    total.update(json.dumps(facts).encode())
    images = rows.images.flatten() if pa.types.is_struct(rows.images.type) else [rows.images]
    for column in (rows.items, rows.products, *([] if rows.titles is None else [rows.titles]), *images):
        for part in canonical(column):
            total.update(part)
    for numbers in (rows.splits, *rows.labels.values()):
        total.update(numbers.tobytes())
    return _Build(rows, schema, spec, per_shard, total.hexdigest())


def _cut(column: pa.ChunkedArray, first: int, length: int) -> list:
    return column.slice(first, length).to_pylist()


def _image(cell: str | bytes | dict | None) -> str | bytes | None:
    """The bytes of an embedded image, else a reference."""
    return (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell


@contextmanager
def _alone(build: _Build) -> Iterator[None]:
    """Holds the folder for this build, and clears what an interrupted write left."""
    out, parts = build.spec.out, build.spec.out / PARTS
    if out.exists() and not parts.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: not empty, and not an unfinished build of shards; use another --out")
    parts.mkdir(parents=True, exist_ok=True)
    with (parts / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{out}: another facetclip shard is writing here; wait for it to end") from error
        plan = parts / "plan.json"
        if not plan.exists():
            write_whole(plan, json.dumps({"build": build.digest}).encode())
        if json.loads(plan.read_text())["build"] != build.digest:
            raise UserError(f"{out}: holds an unfinished build of {_OTHER}; delete it or use another --out")
        for left in (*out.glob(".*.tmp"), *parts.glob(".*.tmp")):
            left.unlink()
        yield


def _usable(build: _Build, number: int) -> bool:
    """Whether an interrupted run left this shard finished: its tar whole, its images as they were."""
    part = read_part(build.part(number), build.digest)
    if part is None or not intact(build.spec.out, part.shard):
        return False
    kept = checksums(part.rows.column("place").to_numpy(), part.rows.column("checksum").to_numpy())
    return first_changed(build.slice(number), kept, build.part(number).stat().st_mtime_ns) is None


def _pack_missing(build: _Build, numbers: Sequence[int], progress: Callable[[int, int], None] | None) -> None:
    """Pack these shards, or as many as it takes to see that too many images are bad."""
    for number in numbers:
        build.part(number).unlink(missing_ok=True)
    done, bad = build.count - len(numbers), 0
    for left_out in each(pack, map(build.slice, numbers), workers=build.spec.workers):
        done, bad = done + 1, bad + left_out
        if progress is not None:
            progress(done, build.count)
        if bad > build.most_bad:
            return


def _quarantine(build: _Build, catalog: Catalog, parts: Sequence[Part]) -> None:
    """Write quarantine.csv; UserError with the top reasons when more than `max_bad` of the rows are in it."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["row", "item", "image", "code", "message"])
    bad = [entry for part in parts for entry in part.bad]
    for place, code, message in bad:
        image = build.rows.images[place].as_py()
        shown = image if isinstance(image, str) else ""
        cells = [build.rows.items[place].as_py(), shown, code, message]
        table.writerow([catalog.row_number(place), *map(_inert, cells)])
    write_whole(build.spec.out / QUARANTINE, out.getvalue().encode("utf-8"))
    seen = len(bad) + sum(part.rows.num_rows for part in parts)
    if len(bad) > build.most_bad:
        reasons = ", ".join(f"{count} {code}" for code, count in Counter(code for _, code, _ in bad).most_common(5))
        first = f"{catalog.where(bad[0][0])}: {bad[0][2]}"
        raise UserError(
            f"{catalog.name}: {len(bad)} of {seen} images cannot be used ({reasons}), where --max-bad "
            f"{build.spec.max_bad:g} allows {build.most_bad}; the first is {first}; see {build.spec.out / QUARANTINE}"
        )


def _inert(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _write_index(build: _Build, parts: Sequence[Part]) -> None:
    rows, packed = build.rows, [part for part in parts if part.shard is not None]
    where = pa.concat_tables([part.rows for part in packed])
    places = where.column("place").to_numpy()
    take = pa.array(places)
    columns = {
        "place": take,
        "item": rows.items.take(take),
        "product_id": rows.products.take(take),
        "product": _codes(rows.products.take(take)),
        **({} if rows.titles is None else {"title": rows.titles.take(take)}),
        "split": rows.splits[places],
        **{LABEL + name: labels[places] for name, labels in rows.labels.items()},
        "shard": np.repeat(np.arange(len(packed), dtype=np.int32), [part.rows.num_rows for part in packed]),
        **{name: where.column(name) for name in ("offset", "length", "checksum")},
    }
    bad = Counter(code for part in parts for _, code, _ in part.bad)
    facts = {"build": build.digest, "bad": json.dumps(bad), "unknown_cells": json.dumps(rows.unknown_cells)}
    shards = [part.shard for part in packed if part.shard is not None]
    write_index(build.spec.out, pa.table(columns), build.schema, shards, facts)


def _finished(build: _Build, catalog: Catalog) -> ShardReport:
    """The report of a finished build of these inputs; UserError when it is another's, or an image changed since."""
    out = build.spec.out
    if read_metadata(out / INDEX_NAME).get("build") != build.digest:
        raise UserError(f"{out}: holds shards of {_OTHER}; use another --out")
    index = open_index(out)
    moment = (out / INDEX_NAME).stat().st_mtime_ns
    for number in range(build.count):
        rows = build.slice(number)
        first, last = np.searchsorted(index.places, (rows.first, rows.first + build.per_shard))
        kept = checksums(index.places[first:last], index.checksum[first:last])
        if (changed := first_changed(rows, kept, moment)) is not None:
            raise UserError(f"{catalog.where(changed)}: its image changed after {out} was built; use another --out")
    shutil.rmtree(out / PARTS, ignore_errors=True)
    return _report(build, build.count)


def _report(build: _Build, reused: int) -> ShardReport:
    index = open_index(build.spec.out)
    facts = read_metadata(build.spec.out / INDEX_NAME)
    return ShardReport(
        folder=index.folder,
        digest=index.digest,
        samples=index.size,
        shards=len(index.shards),
        splits={name: len(index.rows(name)) for name in SPLITS},
        bad=json.loads(facts["bad"]),
        unknown_cells=json.loads(facts["unknown_cells"]),
        reused=reused,
    )
