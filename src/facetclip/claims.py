"""Who packs what in a shard folder: each process holds a lease of its portion, on whatever machine it runs.

Portions of the same division never touch the same shard. Anything else that would (the same portion twice, another
division, the last step, which takes the whole) is refused while it is held.
"""

import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from facetclip.errors import OwnMistake, UserError
from facetclip.files import write_once, write_whole
from facetclip.index import INDEX_NAME, read_metadata
from facetclip.lease import Held, Lease, holder
from facetclip.portions import WHOLE, Portion
from facetclip.slices import PARTS, Build
from facetclip.store import ANEW

PLAN = "plan.json"
AGAIN = 0.2  # seconds between two tries
OTHER = "another catalog, schema or setting"
_LEASE = re.compile(r"part-(\d+)-of-(\d+)\.lease")
_LEFT = re.compile(r"\.shard-(\d+)\..*\.tmp")


@contextmanager
def claimed(build: Build, portion: Portion, *, patience: float = 0.0) -> Iterator[None]:
    """Holds the shards of `portion`, cleared of what an interrupted write left.

    UserError where the folder holds anything else, or was updated since `build` was planned; Held where another process
    may be writing the same shards. One of another division is waited for, `patience` seconds: a part that has ended
    looks over all shards for a moment.
    """
    out, parts = build.spec.out, build.spec.out / PARTS
    strange = out.exists() and any(out.iterdir()) and not parts.is_dir()
    if strange and not (out / INDEX_NAME).exists():  # or another portion wrote the index and cleared up just now
        if any(out.glob("shard-*.tar")):
            raise UserError(f"{out}: holds shards, but their {INDEX_NAME} is lost; {ANEW}")
        raise UserError(f"{out}: not empty, and not an unfinished build of shards; use another --out")
    lease = _leased(parts, portion, patience)
    try:
        _require_current(build)
        _agree(build)
        own = portion.among(build.first_shard + build.count)
        for left in (*out.glob(".*.tmp"), *parts.glob(".*.tmp")):
            shard = _LEFT.fullmatch(left.name)
            if portion == WHOLE or (shard and int(shard[1]) - build.first_shard in own):
                left.unlink(missing_ok=True)
        yield
    finally:
        lease.release()


def _require_current(build: Build) -> None:
    """UserError where an update was planned over an index that is no longer there, but for by this very work."""
    if build.kept is None:
        return
    if read_metadata(build.spec.out / INDEX_NAME)["work"] not in (build.kept.of, build.digest):
        raise OwnMistake(f"{build.spec.out}: was updated by another process meanwhile; run the same command again")


def clear_up(out: Path) -> None:
    """Delete what the work that finished the folder needed on its way; what another is in the middle of stays."""
    try:
        plan = json.loads((out / PARTS / PLAN).read_bytes())
    except (OSError, ValueError):  # never begun, or another portion clears up just now
        return
    if plan["work"] == read_metadata(out / INDEX_NAME)["work"]:
        shutil.rmtree(out / PARTS, ignore_errors=True)  # another portion may be about to look into it


def _agree(build: Build) -> None:
    """That this work is what the folder is in the middle of; UserError where it is in the middle of another."""
    out, path = build.spec.out, build.spec.out / PARTS / PLAN
    own = json.dumps({"work": build.digest}).encode()
    if json.loads(plan := write_once(path, own)) == json.loads(own):
        return
    if (out / INDEX_NAME).exists() and json.loads(plan)["work"] == read_metadata(out / INDEX_NAME)["work"]:
        write_whole(path, own)  # that work is done; its process was killed before it cleared up
    elif build.kept is not None and build.portion == WHOLE:  # nobody else is at it, and the index counts on none of it
        for left in (*path.parent.glob("shard-*.parquet"), *filter(build.is_new, out.glob("*.tar"))):
            left.unlink()
        write_whole(path, own)
    elif build.kept is None and (out / INDEX_NAME).exists():
        raise UserError(f"{out}: an update was interrupted; run it again, with --update")
    elif build.kept is not None:
        raise UserError(f"{out}: an update by {OTHER} was interrupted; run that again, or the new one without parts")
    else:
        raise UserError(f"{out}: holds an unfinished build of {OTHER}; delete it or use another --out")


def _leased(parts: Path, portion: Portion, patience: float) -> Lease:
    end = time.monotonic() + patience
    while True:
        lease = Lease(lease_path(parts, portion), f"is packing part {portion} of these shards; wait for it to end")
        try:
            _refuse_others(parts, portion)
            return lease
        except Held:
            lease.release()
            if time.monotonic() >= end:
                raise
        time.sleep(AGAIN)


def lease_path(parts: Path, portion: Portion) -> Path:
    """Where the holder of a portion says so."""
    return parts / f"part-{portion.number}-of-{portion.of}.lease"


def _refuse_others(parts: Path, own: Portion) -> None:
    """Held where a process holds a portion of another division: both see the other when they start at once."""
    for path in sorted(parts.glob("*.lease")):
        named = _LEASE.fullmatch(path.name)
        other = Portion(int(named[1]), int(named[2])) if named else own
        if other.of != own.of and (found := holder(path)) is not None:
            raise found.refusal(path.parent, f"is packing part {other} of these shards; wait for it to end")
