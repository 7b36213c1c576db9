"""`facetclip shard --update`: a finished shard folder follows its catalog.

No tar is ever written again. Photos that are new or changed go into new shards; a new index says which samples of all
shards count, with labels and splits as the catalog has them now. So the index of an updated folder is, row for row,
the one that a build of the new catalog in an empty folder would write, but for where the photos lie; and with
`join`, but for products that stay in the split which they have.
"""

import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facetclip.addresses import is_url
from facetclip.errors import UserError
from facetclip.files import write_once
from facetclip.index import INDEX_NAME, ShardIndex, open_index, read_metadata
from facetclip.indexing import sources_of
from facetclip.portions import WHOLE
from facetclip.references import image_of
from facetclip.slices import PARTS, Build, Kept, found_in
from facetclip.tables import counted
from facetclip.tars import Slice, checksum_now, source_of
from facetclip.workers import each

THREADS = 16  # that ask for files' times, which on a file server is all waiting
LOOKED_AT = 4096  # rows that one of them takes at a time


def updating(build: Build) -> Build:
    """`build`, of all rows, as an update of the finished folder it goes to: which rows are packed, and what is kept.

    UserError where the folder is not finished, was built with other settings, or more than `max_removed` of its items
    are not in the catalog.
    """
    out = build.spec.out
    if not (out / INDEX_NAME).exists():
        raise UserError(f"{out}: no {INDEX_NAME}, so there is nothing to update; leave out --update")
    old = open_index(out)
    facts = read_metadata(old.store.index, f"{out / INDEX_NAME}")
    require_settings(build, json.loads(facts["settings"]))
    content = _agreed(build, old, facts["build"])
    table = pq.ParquetFile(pa.BufferReader(content)).read()
    places, counts = table.column("place").to_numpy(), table.schema.metadata or {}
    kept = Kept(
        index=old,
        places=places,
        rows=table.column("row").to_numpy(),
        sources=table.column("source").to_numpy(),
        removed=int(counts[b"removed"]),
        gone=int(counts[b"gone"]),
        of=facts["work"],
    )
    digest = hashlib.sha256(f"{build.inputs} {old.digest} ".encode() + content).hexdigest()
    packed = np.setdiff1d(build.places, places)
    return replace(build, places=packed, digest=digest, kept=kept, first_shard=int(facts["next_shard"]))


def _agreed(build: Build, old: ShardIndex, inputs: str) -> bytes:
    """The table of `_look`, of a folder with these `inputs`; who share an update go by what the first of them saw."""
    if build.portion == WHOLE:
        return _bytes_of(_look(build, old))
    name = hashlib.sha256(f"{build.inputs} {old.digest}".encode()).hexdigest()
    path = build.spec.out / PARTS / f"kept-{name[:16]}.parquet"
    if path.exists():
        return path.read_bytes()
    table = _look(build, old)
    if len(table) < len(build.places) or build.inputs != inputs:
        return write_once(path, _bytes_of(table))
    return _bytes_of(table)


def require_settings(build: Build, found: dict) -> None:
    """UserError where the folder was built with another of the settings that it keeps for good."""
    for name, value in build.spec.settings.items():
        if found[name] != value:
            raise UserError(
                f"{build.spec.out}: was built {_option(name, found[name])}, asked for is one {_option(name, value)}; "
                "neither this nor --update changes that of a finished folder: ask for the same, or use another --out"
            )


def _option(name: str, value: object) -> str:
    option = {"join": "--join-duplicates"}.get(name, f"--{name}")
    return f"without {option}" if value is None else f"with {option} {value}"


def _look(build: Build, old: ShardIndex) -> pa.Table:
    """The rows whose photo is in the folder already: place, row of the old index, source as of now."""
    row_of = found_in(build.rows.items, old.item_ids)
    places = np.flatnonzero(row_of >= 0)
    _require_few_removed(build, len(old), len(places))
    portions = [places[start : start + LOOKED_AT] for start in range(0, len(places), LOOKED_AT)]
    with ThreadPoolExecutor(THREADS) as pool:
        sources = np.concatenate([np.zeros(0, np.uint64), *pool.map(partial(_sources, build), portions)])
    rows, before = row_of[places], sources_of(old)[row_of[places]]
    gone = sources == 0
    sources = np.where(gone, before, sources)  # the photo is in the folder still
    touched = np.flatnonzero(sources != before)
    changed = _changed(build, places[touched], old.checksum[rows[touched]])
    stays = ~np.isin(places, changed)
    columns = {"place": places[stays], "row": rows[stays], "source": sources[stays]}
    counts = {"removed": str(len(old) - len(places)), "gone": str(np.count_nonzero(gone))}
    return pa.table(columns).replace_schema_metadata(counts)


def _require_few_removed(build: Build, before: int, still: int) -> None:
    if before - still > build.spec.max_removed * before:
        are = "is" if before - still == 1 else "are"
        raise UserError(
            f"{build.spec.out}: {before - still} of its {counted('item', before)} {are} not in this catalog, where "
            f"--max-removed {build.spec.max_removed:g} allows {int(build.spec.max_removed * before)}; an update takes "
            "the whole catalog, not what is new in it"
        )


def _sources(build: Build, places: np.ndarray) -> np.ndarray:
    """uint64: of each row now, 0 where it is gone."""
    first, images = int(places[0]), build.rows.images
    cells = images.slice(first, int(places[-1]) - first + 1)
    told = (source_of(build.spec.images, image_of(cells[int(place) - first].as_py())) for place in places)
    return np.array([source or 0 for source in told], dtype=np.uint64)


def _changed(build: Build, places: np.ndarray, checksums: np.ndarray) -> np.ndarray:
    """Those of the touched rows whose image is another one. Other URLs and other embedded bytes count as such."""
    looked = replace(build, places=places)
    slices = map(looked.slice, range(looked.count))
    kept = dict(zip(places.tolist(), checksums.tolist(), strict=True))
    found = each(partial(_differing, kept), slices, workers=build.spec.workers)
    return np.array(sorted(place for portion in found for place in portion), dtype=np.int64)


def _differing(kept: dict[int, int], rows: Slice) -> list[int]:
    def differs(number: int, place: int) -> bool:
        image = rows.images[number]
        return is_url(image) or isinstance(image, bytes) or checksum_now(rows, number) != kept[place]

    return [place for number, place in enumerate(rows.places) if differs(number, place)]


def _bytes_of(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", write_statistics=False)
    return out.getvalue()
