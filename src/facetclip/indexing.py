"""The index of a build: the catalog as it is now, and where in which shard each photo lies."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facetclip import faults
from facetclip.index import INDEX_NAME, LABEL, ShardIndex, read_metadata, write_index, write_parquet
from facetclip.joining import shared_photos
from facetclip.near_duplicates import write_duplicates
from facetclip.slices import Build, Kept, codes_of, found_in
from facetclip.store import Shard
from facetclip.tars import PART_COLUMNS, Part

SOURCES = "sources.parquet"
DUPLICATES = "duplicates.csv"
_WHERE = PART_COLUMNS.append(pa.field("shard", pa.int32()))


@dataclass(frozen=True)
class Changes:
    """What an update changed."""

    added: int  # items that the folder did not have
    changed: int  # items whose photo is another one now
    removed: int  # items that are no longer in the catalog, or whose photo is another and bad
    gone: int  # items whose photo is no longer where the catalog says, and stays as it was
    moved: int  # products that were in another split before: the catalog's split column says so
    bytes: int  # of the new shards


NO_CHANGES = Changes(0, 0, 0, 0, 0, 0)


def index_build(build: Build, parts: Sequence[Part]) -> None:
    """Write the index over what `parts` say was packed and what an update keeps; before it, duplicates.csv."""
    shards, where = _where(build.kept, parts)
    build, found, shared = shared_photos(build, where)
    rows = build.rows
    places = where.column("place").to_numpy()
    take = pa.array(places)
    columns = {
        "item": rows.items.take(take),
        "product_id": rows.products.take(take),
        "product": codes_of(rows.products.take(take)),
        **({} if rows.titles is None else {"title": rows.titles.take(take)}),
        "split": rows.splits[places],
        **{LABEL + name: labels[places] for name, labels in rows.labels.items()},
        **{name: where.column(name) for name in _WHERE.names if name != "source"},
    }
    facts = {
        "build": build.inputs,
        "work": build.digest,
        "settings": build.spec.settings,
        "next_shard": build.first_shard + build.count,  # none is given twice: a dropped shard may be read still
        "bad": Counter(code for part in parts for _, code, _ in part.bad),
        "unknown_cells": rows.unknown_cells,
        "duplicates": asdict(shared),
        "changes": None if build.kept is None else asdict(_changes(build, build.kept, parts)),
    }
    sources = where.select(["source"]).replace_schema_metadata({"work": build.digest})
    write_parquet(build.spec.out / SOURCES, sources)
    faults.reach("shards.after_sources")
    told = {name: fact if isinstance(fact, str) else json.dumps(fact) for name, fact in facts.items()}
    table = pa.table(columns)
    write_duplicates(build.spec.out / DUPLICATES, found, table, build.schema)
    write_index(build.spec.out, table, build.schema, shards, told)


def sources_of(index: ShardIndex) -> np.ndarray:
    """uint64 [n]: what each photo was packed from (`tars.source_of`), 0 where that is not known.

    Kept beside the index, which is the same wherever and whenever the same photos are packed.
    """
    try:
        with pq.ParquetFile(index.folder / SOURCES) as file:
            work = (file.schema_arrow.metadata or {}).get(b"work", b"").decode()
            if work == read_metadata(index.store.index, f"{index.folder / INDEX_NAME}")["work"]:
                return file.read().column("source").to_numpy()
    except (OSError, pa.ArrowException, KeyError):
        pass
    return np.zeros(len(index), dtype=np.uint64)


def _where(kept: Kept | None, parts: Sequence[Part]) -> tuple[list[Shard], pa.Table]:
    """The shards that the index counts on, and where in them the photo of each row lies, by place in the catalog."""
    shards, tables = [], []
    if kept is not None:
        shards, table = _still(kept)
        tables.append(table)
    for part in parts:
        if part.shard is not None:
            number = pa.array(np.full(part.rows.num_rows, len(shards), dtype=np.int32))
            tables.append(part.rows.append_column("shard", number))
            shards.append(part.shard)
    joined = pa.concat_tables(table.select(_WHERE.names).cast(_WHERE) for table in tables)
    return shards, joined if kept is None else joined.sort_by("place")


def _still(kept: Kept) -> tuple[list[Shard], pa.Table]:
    """Those shards of a folder of which an update keeps anything, and what it keeps."""
    old = kept.index
    alive, numbers = np.unique(old.shard[kept.rows], return_inverse=True)
    ours = {"place": kept.places, "shard": numbers, "source": kept.sources}
    table = pa.table({name: getattr(old, name)[kept.rows] for name in _WHERE.names if name not in ours} | ours)
    return [old.shards[number] for number in alive], table


def _changes(build: Build, kept: Kept, parts: Sequence[Part]) -> Changes:
    rows, old = build.rows, kept.index
    packed = np.concatenate([np.zeros(0, np.int64), *(part.rows.column("place").to_numpy() for part in parts)])
    changed = int((found_in(rows.items.take(pa.array(packed)), old.item_ids) >= 0).sum())
    _, first = np.unique(codes_of(rows.products), return_index=True)
    before = found_in(rows.products.take(pa.array(first)), old.product_ids)
    moved = old.splits[before[before >= 0]] != rows.splits[first[before >= 0]]
    return Changes(
        added=len(packed) - changed,
        changed=changed,
        removed=len(old) - len(kept.rows) - changed,
        gone=kept.gone,
        moved=int(moved.sum()),
        bytes=sum(part.shard.bytes for part in parts if part.shard is not None),
    )
