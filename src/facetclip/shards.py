"""`facetclip shard`: a catalog becomes WebDataset tars and, last, the index that makes them seekable.

Each shard is a fixed slice of catalog rows, decided up front, so shards are packed by any number of processes with the
same bytes, and a build that was interrupted continues with the shards that are missing.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from facetclip import faults
from facetclip.catalog import Catalog
from facetclip.claims import OTHER, claimed, clear_up
from facetclip.errors import OwnMistake, UserError
from facetclip.files import write_whole
from facetclip.images import reasons
from facetclip.index import INDEX_NAME, open_index, read_metadata
from facetclip.indexing import NO_CHANGES, Changes, index_build, sources_of
from facetclip.joining import Shared
from facetclip.lease import Held
from facetclip.portions import WHOLE, Portion
from facetclip.repairs import repaired
from facetclip.schema import Schema
from facetclip.slices import Build, ShardSpec, fetch_images, plan_build
from facetclip.splits import SPLITS
from facetclip.spreadsheets import csv_of
from facetclip.store import Shard
from facetclip.tables import counted
from facetclip.tars import Part, first_changed, intact, pack, packed, read_part
from facetclip.updates import require_settings, updating
from facetclip.workers import each

QUARANTINE = "quarantine.csv"  # what was left out, and why: for people, never read again
REFUSED = "refused.csv"  # what quarantine.csv would be, had an update not been refused for it
LONGEST_SHOWN = 200  # characters of an image cell, which may hold the whole image as a data: URL
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
    superseded: int  # samples in the tars that count no longer: an update replaced or removed them
    duplicates: Shared  # photos that several products have in common, listed in duplicates.csv
    changes: Changes | None  # what this update did
    repaired: int = 0  # damaged shards of a finished folder, packed again as they were


def build_shards(catalog: Catalog, schema: Schema, spec: ShardSpec, *, progress: Progress | None = None) -> ShardReport:
    """Shard `catalog` into `spec.out`; the same inputs give the same bytes, also after an interruption.

    A finished build of the same inputs is left as it is. `progress` is told (shards done, shards in all). UserError
    when the folder holds anything else, when an item id is empty or doubled, and when more than `spec.max_bad` of the
    images cannot be used: it stops as soon as that is seen, and quarantine.csv names them.
    """
    build = _planned(catalog, schema, spec, WHOLE)
    if _done(build):
        return _finished(build, catalog)
    with claimed(build, WHOLE):
        if _done(build):  # meanwhile
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
    build = _planned(catalog, schema, spec, portion)
    if _done(build):
        return _finished(build, catalog)
    try:
        with claimed(build, portion, patience=PATIENCE):
            if _done(build):  # meanwhile
                return _finished(build, catalog)
            reused = _pack_missing(build, progress)
    except Held:
        if _all_packed(build):  # and whoever holds them is at the last step
            return None
        if _done(build):  # or has just done it
            return _finished(build, catalog)
        raise
    faults.reach("shards.after_portion")
    try:
        with claimed(build, WHOLE):
            complete = _complete(build, catalog)
    except Held:  # who ends after this one looks in turn
        complete = _done(build)
    return _cleared(build, reused) if complete else None


def _planned(catalog: Catalog, schema: Schema, spec: ShardSpec, portion: Portion) -> Build:
    build = plan_build(catalog, schema, spec, portion)
    return updating(build) if spec.update else build


def _done(build: Build) -> bool:
    """Whether the folder is finished; in an update, whether it is the one that this would make of it."""
    path = build.spec.out / INDEX_NAME
    if build.kept is None or not path.exists():
        return path.exists()
    facts = read_metadata(path)
    changes_nothing = not len(build.places) and not build.kept.removed and facts["build"] == build.inputs
    return changes_nothing or facts["work"] == build.digest


def _complete(build: Build, catalog: Catalog) -> bool:
    """Write the index, if every shard is there; UserError where too many images are bad in those that are."""
    if _done(build):
        return True
    found = (read_part(build.part(number), build.digest) for number in range(build.count))
    parts = [part for part in found if part is not None and _in_place(build.spec.out, part.shard)]
    if len(parts) < build.count and sum(len(part.bad) for part in parts) <= build.most_bad:
        return False
    _quarantine(build, catalog, parts)
    faults.reach("shards.before_index")
    index_build(build, parts)
    faults.reach("shards.after_index")
    return True


def _all_packed(build: Build) -> bool:
    """Whether all shards of this process's portion are there."""
    parts = (read_part(build.part(number), build.digest) for number in build.numbers)
    return all(part is not None and _in_place(build.spec.out, part.shard) for part in parts)


def _in_place(folder: Path, shard: Shard | None, *, whole: bool = False) -> bool:
    """Whether the tar is there, by its size, or `whole`, by its bytes.

    By its size where the bytes were looked at by whoever packed it or took it over.
    """
    if shard is None:
        return True
    path = folder / shard.name
    return path.is_file() and path.stat().st_size == shard.bytes and (not whole or intact(path, shard))


def _cleared(build: Build, reused: int) -> ShardReport:
    clear_up(build.spec.out)
    return _report(build, reused)


def _usable(build: Build, number: int) -> bool:
    """Whether an interrupted run left this shard finished: its tar whole, its images as they were."""
    part = read_part(build.part(number), build.digest)
    if part is None or not _in_place(build.spec.out, part.shard, whole=True):
        return False
    kept = packed(*(part.rows.column(name).to_numpy() for name in ("place", "checksum", "source")))
    return first_changed(build.slice(number), kept) is None


def _whole(build: Build, number: int) -> bool:
    """Whether this shard was packed without leaving out a row."""
    part = read_part(build.part(number), build.digest)
    return part is not None and not part.bad


def _pack_missing(build: Build, progress: Progress | None) -> int:
    """Pack this process's shards, or as many as it takes to see that too many images are bad; how many were there."""
    fetch_images(build, map(build.slice, (number for number in build.numbers if not _whole(build, number))))
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


def _shown(image: object) -> str:
    return image[:LONGEST_SHOWN] if isinstance(image, str) else ""


def _quarantine(build: Build, catalog: Catalog, parts: Sequence[Part]) -> None:
    """Write quarantine.csv; UserError with the top reasons when more than `max_bad` of the rows are in it.

    An update that is refused leaves that of the finished folder alone, which says what that lacks.
    """
    bad = [entry for part in parts for entry in part.bad]
    rows = [
        [catalog.row_number(place), build.rows.items[place].as_py(), _shown(build.rows.images[place].as_py()), *why]
        for place, *why in bad
    ]
    refused = len(bad) > build.most_bad
    path = build.spec.out / (REFUSED if refused and build.kept is not None else QUARANTINE)
    write_whole(path, csv_of(["row", "item", "image", "code", "message"], rows))
    seen = len(bad) + sum(part.rows.num_rows for part in parts) + (0 if build.kept is None else len(build.kept.places))
    if refused:
        why = reasons(code for _, code, _ in bad)
        first = f"{catalog.where(bad[0][0])}: {bad[0][2]}"
        raise OwnMistake(  # of the part that ends last
            f"{catalog.name}: {len(bad)} of {counted('image', seen)} cannot be used ({why}), where --max-bad "
            f"{build.spec.max_bad:g} allows {build.most_bad}; the first is {first}; see {path}"
        )
    (build.spec.out / REFUSED).unlink(missing_ok=True)


def _finished(build: Build, catalog: Catalog) -> ShardReport:
    """The report of a finished build of these inputs, by `repair` with its damaged shards packed again.

    UserError when it is another's, or an image changed since.
    """
    out, mended = build.spec.out, 0
    if build.kept is None:
        facts = read_metadata(out / INDEX_NAME)
        if facts.get("build") != build.inputs:
            require_settings(build, json.loads(facts["settings"]))
            raise UserError(f"{out}: holds shards of {OTHER}; use another --out, or --update to have it follow")
        mended = repaired(build) if build.spec.repair else 0
        _require_unchanged(build, catalog)
    return replace(_cleared(build, build.count - mended), repaired=mended)


def _require_unchanged(build: Build, catalog: Catalog) -> None:
    index = open_index(build.spec.out)
    sources = sources_of(index)
    for number in range(build.count):
        rows = build.slice(number)
        there = slice(*np.searchsorted(index.places, (rows.places[0], rows.places[-1] + 1)))
        kept = packed(index.places[there], index.checksum[there], sources[there])
        if (changed := first_changed(rows, kept)) is not None:
            raise UserError(
                f"{catalog.where(changed)}: its image changed after {build.spec.out} was built; run it with --update, "
                "or use another --out"
            )


def _report(build: Build, reused: int) -> ShardReport:
    index = open_index(build.spec.out)
    facts = read_metadata(build.spec.out / INDEX_NAME)
    changes = json.loads(facts["changes"]) if facts["work"] == build.digest else asdict(NO_CHANGES)
    return ShardReport(
        folder=index.folder,
        digest=index.digest,
        samples=index.size,
        shards=len(index.shards),
        splits={name: len(index.rows(name)) for name in SPLITS},
        bad=json.loads(facts["bad"]),
        unknown_cells=json.loads(facts["unknown_cells"]),
        reused=reused,
        superseded=index.superseded,
        duplicates=Shared(**json.loads(facts["duplicates"])),
        changes=None if build.kept is None else Changes(**changes),
    )
