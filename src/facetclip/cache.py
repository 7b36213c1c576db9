"""A folder of files that came from elsewhere, shared by all processes of a machine and kept below a limit.

Locks are the kernel's (flock) and fall with their holder. `NAME.lock` is held by whoever brings a file in: one does,
the others wait. The bytes go into `NAME.SIZE.part`, which a killed process leaves and the next one goes on with, and
are renamed when they are whole. A reader holds the file itself, shared; what is held is never evicted. `room.lock` is
held while room is made, so that no two processes count on the same bytes.
"""

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from facetclip import faults
from facetclip.errors import UserError

# What is ours in the folder; all else is left alone.
NAMES = re.compile(r"[0-9a-f]{64}\.[a-z]+(\.(?P<size>\d+)\.part)?")
ROOM = "room.lock"
PATIENCE = 120.0  # seconds that others may hold what must be evicted


@dataclass(frozen=True)
class CacheSpec:
    """Where files from elsewhere are kept, and the most bytes that they may take (None: as many as there are)."""

    folder: Path
    limit: int | None = None


@dataclass(frozen=True)
class Entry:
    """A file of the cache. `fill` completes it, or raises: it may hold bytes from an earlier attempt."""

    name: str
    size: int
    fill: Callable[[BinaryIO], None]


class Busy(Exception):
    """Another process brings this file in, or there is no room as long as others hold theirs."""


class Cache:
    """The files of one cache folder; from any number of processes and threads."""

    def __init__(self, spec: CacheSpec) -> None:
        self.folder, self.limit = spec.folder, spec.limit
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / ROOM, wait=True, keep=True):
                pass
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be a cache ({error.strerror}); name a writable folder of a file system with "
                "locks by data.cache (or FACETCLIP_CACHE)"
            ) from error

    @contextmanager
    def opened(self, entry: Entry) -> Iterator[int]:
        """A descriptor of the whole file, which stays in the cache as long as the block lasts; brought in if need be.

        UserError where it cannot be had, or the limit is smaller than what is in use at a time.
        """
        descriptor = self._held(entry.name)
        if descriptor is None:
            descriptor = self._bring(entry, patient=True)
        try:
            yield descriptor
        finally:
            _release(descriptor)

    def hold(self, entry: Entry) -> int:
        """As `opened`, for as long as this process lives."""
        descriptor = self._held(entry.name)
        return self._bring(entry, patient=True) if descriptor is None else descriptor

    def prefetch(self, entry: Entry) -> None:
        """Bring the file in, if it is not there, nobody else does, and there is room without waiting."""
        descriptor = self._held(entry.name)  # which keeps it longer
        try:
            _release(self._bring(entry, patient=False) if descriptor is None else descriptor)
        except Busy:
            return

    def discard(self, name: str) -> None:
        """Forget a file that is not what it should be."""
        (self.folder / name).unlink(missing_ok=True)

    def _held(self, name: str) -> int | None:
        try:
            descriptor = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not _is_at(descriptor, self.folder / name):  # evicted a moment ago
            _release(descriptor)
            return None
        os.utime(descriptor)  # what was read last is evicted last
        return descriptor

    def _bring(self, entry: Entry, *, patient: bool) -> int:
        """A held descriptor of the file, after bringing it in; Busy where that takes patience and none is there."""
        with _locked(self.folder / f"{entry.name}.lock", wait=patient):
            descriptor = self._held(entry.name)  # another process may have been faster
            if descriptor is not None:
                return descriptor
            part = self.folder / f"{entry.name}.{entry.size}.part"
            with self._room_for(entry, part, patient=patient) as file:
                entry.fill(file)
                file.flush()
                os.fsync(file.fileno())
                faults.reach("cache.before_rename")
                part.rename(self.folder / entry.name)
                descriptor = os.dup(file.fileno())  # carries the lock on, from here a shared one
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            return descriptor

    @contextmanager
    def _room_for(self, entry: Entry, part: Path, *, patient: bool) -> Iterator[BinaryIO]:
        """The part file, held, once all others and the whole of it stay within the limit."""
        if self.limit is not None and entry.size > self.limit:
            raise UserError(
                f"{self.folder}: the limit of {self.limit:,} bytes is smaller than one file of {entry.size:,}; "
                "raise data.cache_bytes (or FACETCLIP_CACHE_BYTES)"
            )
        file, until = self._started(entry, part), time.monotonic() + PATIENCE
        while file is None:
            if not patient:
                raise Busy
            if time.monotonic() > until:
                raise UserError(
                    f"{self.folder}: {self.limit:,} bytes are too few for what is read at a time; "
                    "raise data.cache_bytes (or FACETCLIP_CACHE_BYTES)"
                )
            time.sleep(0.02)
            file = self._started(entry, part)
        try:
            with file:
                try:
                    yield file
                except BaseException:
                    fcntl.flock(file, fcntl.LOCK_UN)
                    raise
        except OSError as error:
            size = part.stat().st_size if part.exists() else 0
            raise UserError(f"{part}: could not be written: {error.strerror}, after {size:,} bytes") from error

    def _started(self, entry: Entry, part: Path) -> BinaryIO | None:
        """The part file, from when on all of it counts; None while others hold what must go for it."""
        with _locked(self.folder / ROOM, wait=True, keep=True):
            return _open_part(part) if self.limit is None or self._made_room(entry.size, part, self.limit) else None

    def _made_room(self, size: int, part: Path, limit: int) -> bool:
        """Whether there is room for `size` bytes in `part`, after evicting what was used longest ago."""
        sizes = {path: taken for path, taken in self._sizes().items() if path != part}
        over = sum(sizes.values()) + size - limit
        for path in sorted(sizes, key=_last_use):
            if over <= 0:
                break
            if _evicted(path):
                over -= sizes[path]
        return over <= 0

    def _sizes(self) -> dict[Path, int]:
        """Each file and what it takes: an unfinished one all that it will."""
        sizes = {}
        for path in self.folder.iterdir():
            if ours := NAMES.fullmatch(path.name):
                sizes[path] = int(ours["size"] or _size(path))
        return sizes


def _open_part(path: Path) -> BinaryIO:
    """The part file, held exclusively, with what an earlier attempt left in it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return os.fdopen(descriptor, "r+b")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # renamed or evicted meanwhile
        return 0


def _last_use(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _evicted(path: Path) -> bool:
    """Whether nobody held the file and it is gone now."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # for writing, as network file systems ask
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        _release(descriptor)


@contextmanager
def _locked(path: Path, *, wait: bool, keep: bool = False) -> Iterator[None]:
    """Hold the lock file; Busy where another does and there is no time to `wait`. It is deleted after use, or kept."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            raise Busy from None
        if _is_at(descriptor, path):
            break
        _release(descriptor)  # the one before deleted it: this lock guards nothing
    try:
        yield
    finally:
        if not keep:
            path.unlink(missing_ok=True)
        _release(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _release(descriptor: int) -> None:
    """Unlock, also for a forked child that inherited the descriptor, and close."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
