"""`facetclip shard`: a catalog becomes WebDataset tars and, last, the index that makes them seekable.

Each shard is a fixed slice of catalog rows, decided up front, so shards are packed by any number of processes with the
same bytes, and a build that was interrupted continues with the shards that are missing.
"""

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from facetclip import faults
from facetclip.addresses import is_url
from facetclip.catalog import Catalog
from facetclip.claims import OTHER, claimed
from facetclip.downloads import download_all
from facetclip.errors import UserError
from facetclip.files import write_whole
from facetclip.index import INDEX_NAME, LABEL, Shard, open_index, read_metadata, write_index
from facetclip.lease import Held
from facetclip.portions import WHOLE, Portion
from facetclip.schema import Schema
from facetclip.slices import PARTS, Build, ShardSpec, codes_of, plan_build
from facetclip.splits import SPLITS
from facetclip.tars import Part, checksums, first_changed, intact, pack, read_part
from facetclip.workers import each

QUARANTINE = "quarantine.csv"
PATIENCE = 20.0  # seconds that a part waits for another's look over all shards
Progress = Callable[[int, int], None]


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


def build_shards(catalog: Catalog, schema: Schema, spec: ShardSpec, *, progress: Progress | None = None) -> ShardReport:
    """Shard `catalog` into `spec.out`; the same inputs give the same bytes, also after an interruption.

    A finished build of the same inputs is left as it is. `progress` is told (shards done, shards in all). UserError
    when the folder holds anything else, when an item id is empty or doubled, and when more than `spec.max_bad` of the
    images cannot be used: it stops as soon as that is seen, and quarantine.csv names them.
    """
    build = plan_build(catalog, schema, spec)
    if (spec.out / INDEX_NAME).exists():
        return _finished(build, catalog)
    with claimed(build, WHOLE):
        if (spec.out / INDEX_NAME).exists():  # written meanwhile
            return _finished(build, catalog)
        reused = _pack_missing(build, progress)
        complete = _complete(build, catalog)
    if not complete:
        raise UserError(f"{spec.out}: was changed while the build ran; run the same command again")
    return _cleared(build, reused)


def build_portion(
    catalog: Catalog, schema: Schema, spec: ShardSpec, portion: Portion, *, progress: Progress | None = None
) -> ShardReport | None:
    """Pack the shards of one portion, into a folder that all portions share; else as `build_shards`.

    Whoever ends last writes the index and gets the report; None where shards are missing still, or another process is
    at work on them. A portion that was lost is done again by the same call; `build_shards` does whatever is missing.
    """
    build = plan_build(catalog, schema, spec, portion)
    if (spec.out / INDEX_NAME).exists():
        return _finished(build, catalog)
    try:
        with claimed(build, portion, patience=PATIENCE):
            if (spec.out / INDEX_NAME).exists():  # written meanwhile
                return _finished(build, catalog)
            reused = _pack_missing(build, progress)
    except Held:
        if _all_packed(build):  # and whoever holds them is at the last step
            return None
        if (spec.out / INDEX_NAME).exists():  # or has just done it
            return _finished(build, catalog)
        raise
    faults.reach("shards.after_portion")
    try:
        with claimed(build, WHOLE):
            complete = _complete(build, catalog)
    except Held:  # who ends after this one looks in turn
        complete = (spec.out / INDEX_NAME).exists()
    return _cleared(build, reused) if complete else None


def _complete(build: Build, catalog: Catalog) -> bool:
    """Write the index, if every shard is there; UserError where too many images are bad in those that are."""
    if (build.spec.out / INDEX_NAME).exists():
        return True
    found = (read_part(build.part(number), build.digest) for number in range(build.count))
    parts = [part for part in found if part is not None and _in_place(build.spec.out, part.shard)]
    if len(parts) < build.count and sum(len(part.bad) for part in parts) <= build.most_bad:
        return False
    _quarantine(build, catalog, parts)
    faults.reach("shards.before_index")
    _write_index(build, parts)
    faults.reach("shards.after_index")
    return True


def _all_packed(build: Build) -> bool:
    """Whether all shards of this process's portion are there."""
    parts = (read_part(build.part(number), build.digest) for number in build.numbers)
    return all(part is not None and _in_place(build.spec.out, part.shard) for part in parts)


def _in_place(folder: Path, shard: Shard | None) -> bool:
    """Whether the tar is there, by its size; its bytes were looked at by whoever packed or took it over."""
    if shard is None:
        return True
    path = folder / shard.name
    return path.is_file() and path.stat().st_size == shard.bytes


def _cleared(build: Build, reused: int) -> ShardReport:
    shutil.rmtree(build.spec.out / PARTS, ignore_errors=True)  # another portion may be about to look into it
    return _report(build, reused)


def _fetch(build: Build, numbers: Iterable[int]) -> None:
    """Have every image that these shards name by URL in the folder of downloads, or a note there why not."""
    if build.spec.fetch is not None and build.downloads is not None:
        cells = (cell for number in numbers for cell in build.slice(number).images)
        download_all(filter(is_url, cells), build.spec.fetch, build.downloads)


def _usable(build: Build, number: int) -> bool:
    """Whether an interrupted run left this shard finished: its tar whole, its images as they were."""
    part = read_part(build.part(number), build.digest)
    if part is None or not intact(build.spec.out, part.shard):
        return False
    kept = checksums(part.rows.column("place").to_numpy(), part.rows.column("checksum").to_numpy())
    return first_changed(build.slice(number), kept, build.part(number).stat().st_mtime_ns) is None


def _whole(build: Build, number: int) -> bool:
    """Whether this shard was packed without leaving out a row."""
    part = read_part(build.part(number), build.digest)
    return part is not None and not part.bad


def _pack_missing(build: Build, progress: Progress | None) -> int:
    """Pack this process's shards, or as many as it takes to see that too many images are bad; how many were there."""
    _fetch(build, (number for number in build.numbers if not _whole(build, number)))
    numbers = [number for number in build.numbers if not _usable(build, number)]
    for number in numbers:
        build.part(number).unlink(missing_ok=True)
    reused = len(build.numbers) - len(numbers)
    done, bad = reused, 0
    for left_out in each(pack, map(build.slice, numbers), workers=build.spec.workers):
        done, bad = done + 1, bad + left_out
        if progress is not None:
            progress(done, len(build.numbers))
        if bad > build.most_bad:
            break
    return reused


def _quarantine(build: Build, catalog: Catalog, parts: Sequence[Part]) -> None:
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


def _write_index(build: Build, parts: Sequence[Part]) -> None:
    rows, packed = build.rows, [part for part in parts if part.shard is not None]
    where = pa.concat_tables([part.rows for part in packed])
    places = where.column("place").to_numpy()
    take = pa.array(places)
    columns = {
        "place": take,
        "item": rows.items.take(take),
        "product_id": rows.products.take(take),
        "product": codes_of(rows.products.take(take)),
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


def _finished(build: Build, catalog: Catalog) -> ShardReport:
    """The report of a finished build of these inputs; UserError when it is another's, or an image changed since."""
    out = build.spec.out
    if read_metadata(out / INDEX_NAME).get("build") != build.digest:
        raise UserError(f"{out}: holds shards of {OTHER}; use another --out")
    index = open_index(out)
    moment = (out / INDEX_NAME).stat().st_mtime_ns
    for number in range(build.count):
        rows = build.slice(number)
        first, last = np.searchsorted(index.places, (rows.first, rows.first + build.per_shard))
        kept = checksums(index.places[first:last], index.checksum[first:last])
        if (changed := first_changed(rows, kept, moment)) is not None:
            raise UserError(f"{catalog.where(changed)}: its image changed after {out} was built; use another --out")
    return _cleared(build, build.count)


def _report(build: Build, reused: int) -> ShardReport:
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
