"""Where shards lie: in a folder of this machine, or at a URL behind a cache."""

import hashlib
import os
import re
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from facetclip.cache import Cache, CacheSpec, Entry
from facetclip.errors import UserError
from facetclip.remote import RemoteFolder, is_url

INDEX_NAME = "index.parquet"
REPAIR = "run the same facetclip shard again with --repair"  # which packs again what is missing or has other bytes
ANEW = "delete the folder, or take another --out, and run facetclip shard again"  # nothing less mends an index
MOST_OPEN = 128  # shard files held open at a time
_PLAIN = re.compile(r"[\w-][\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One tar of the folder as it was when the index was written."""

    name: str
    samples: int
    bytes: int
    sha256: str


class _OpenFile:
    """A file descriptor that lives as long as someone holds this: an eviction never closes it under a reader."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class _OpenFiles:
    """The MOST_OPEN files read last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()

    def read(self, path: str, offset: int, length: int) -> bytes:
        with self._lock:
            file = self._files.get(path) or _OpenFile(path)
            self._files[path] = file
            self._files.move_to_end(path)
            if len(self._files) > MOST_OPEN:
                self._files.popitem(last=False)
        return os.pread(file.descriptor, length, offset)


class LocalShards:
    """A folder of shards on this machine. `index`: the file that was there when this was made, held by this."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = folder / INDEX_NAME
        with suppress(OSError):
            self.index = _held(self, os.open(self.index, os.O_RDONLY | os.O_CLOEXEC))
        self._open = _OpenFiles()

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalShards, (self.folder,)  # so that a loader's worker opens its own files

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def name(self) -> str:
        """What the folder is called."""
        return self.folder.resolve().name

    def require(self, shards: tuple[Shard, ...], *, lengths: bool = True) -> None:
        """UserError where the index names what is no shard or, by `lengths`, one is not as long as it says."""
        for shard in shards:
            _check_name(self, shard)
            if lengths and (problem := self.problem(shard)):
                raise UserError(f"{self.folder / shard.name}: {problem}; {REPAIR}")

    def problem(self, shard: Shard) -> str | None:
        """What is wrong with the tar of a shard, by its length alone."""
        try:
            found = (self.folder / shard.name).stat().st_size
        except OSError as error:
            return f"cannot be read ({error.strerror}), where the index expects {shard.bytes} bytes"
        return None if found == shard.bytes else f"expected {shard.bytes} bytes, found {found}"

    def read(self, shard: Shard, offset: int, length: int) -> bytes:
        """Bytes of a shard, fewer where it ends early; safe from many threads."""
        return self._open.read(f"{self.folder}{os.sep}{shard.name}", offset, length)

    def renewed(self, shard: Shard) -> bool:
        """Whether a damaged shard may be whole when it is read again."""
        return False

    @contextmanager
    def original(self, shard: Shard) -> Iterator[Path]:
        """The file of a shard as it lies there now."""
        yield self.folder / shard.name


class CachedShards:
    """Shards at a URL, each brought whole into a cache when it is first read. `index`: the cached one, held by this."""

    def __init__(self, url: str, spec: CacheSpec, problem: Callable[[BinaryIO], str | None]) -> None:
        self.remote, self.cache = RemoteFolder(url), Cache(spec)
        self._made = (url, spec, problem)
        size, stamp = self.remote.stamp(INDEX_NAME)
        fill = partial(self.remote.download, INDEX_NAME, size=size, problem=problem)
        name = f"{hashlib.sha256(f'{url} {stamp}'.encode()).hexdigest()}.parquet"
        if stamp is None:
            self.cache.discard(name)  # nothing says whether it is still the same
        self.index = _held(self, self.cache.hold(Entry(name, size or 0, fill)))

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedShards, self._made

    def __str__(self) -> str:
        return str(self.remote)

    @property
    def name(self) -> str:
        """What the folder is called."""
        return str(self).partition("?")[0].rstrip("/").rpartition("/")[2]

    @property
    def room(self) -> float:
        """The bytes that shards may take in the cache, infinite without a limit."""
        limit = self.cache.limit
        return float("inf") if limit is None else limit - self.index.stat().st_size

    def require(self, shards: tuple[Shard, ...], *, lengths: bool = True) -> None:
        """UserError where the index says of a shard what nobody can rely on; its length shows when it is brought."""
        for shard in shards:
            _check_name(self, shard)
            if not _SHA256.fullmatch(shard.sha256) or shard.bytes < 0:
                raise UserError(f"{self}: the index has no sha256 of {shard.name!r}; {ANEW}")

    def read(self, shard: Shard, offset: int, length: int) -> bytes:
        """Bytes of a shard, fewer where it ends early; safe from many threads."""
        with self.cache.opened(self._entry(shard)) as descriptor:
            return os.pread(descriptor, length, offset)

    def prefetch(self, shard: Shard, stop: threading.Event) -> None:
        """Bring a shard into the cache, unless another process does so already or there is no room now."""
        self.cache.prefetch(self._entry(shard, stop))

    def renewed(self, shard: Shard) -> bool:
        """Whether a damaged shard may be whole when it is read again: the cache forgets it."""
        self.cache.discard(self._entry(shard).name)
        return True

    @contextmanager
    def original(self, shard: Shard) -> Iterator[Path]:
        """A passing copy of a shard as it lies at the URL now, whatever the cache has; UserError where none is had."""
        with tempfile.TemporaryFile(dir=self.cache.folder) as copy:
            self.remote.download(shard.name, copy, shard.bytes, lambda file: None)
            copy.flush()
            yield Path(f"/dev/fd/{copy.fileno()}")

    def _entry(self, shard: Shard, stop: threading.Event | None = None) -> Entry:
        problem = partial(_hash_problem, shard)
        fill = partial(self.remote.download, shard.name, size=shard.bytes, problem=problem, stop=stop)
        return Entry(f"{shard.sha256}.tar", shard.bytes, fill)


def _held(store: LocalShards | CachedShards, descriptor: int) -> Path:
    """This very file, as long as `store` lives: columns are read late, and an update may take its name."""
    weakref.finalize(store, os.close, descriptor)
    return Path(f"/dev/fd/{descriptor}")


def _check_name(store: LocalShards | CachedShards, shard: Shard) -> None:
    if not _PLAIN.fullmatch(shard.name):
        raise UserError(f"{store}: the index names a shard {shard.name!r}, which is no plain file name")


def _hash_problem(shard: Shard, file: BinaryIO) -> str | None:
    total = hashlib.sha256()
    while chunk := file.read(1 << 20):
        total.update(chunk)
    found = total.hexdigest()
    return None if found == shard.sha256 else f"expected sha256 {shard.sha256[:12]}..., found {found[:12]}..."


def cache_spec(folder: str | None = None, limit: int | None = None) -> CacheSpec:
    """What is given, else FACETCLIP_CACHE and FACETCLIP_CACHE_BYTES, else the user's cache folder without a limit."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    chosen = Path(folder or os.environ.get("FACETCLIP_CACHE") or Path(base) / "facetclip" / "shards")
    text = os.environ.get("FACETCLIP_CACHE_BYTES", "").strip().replace("_", "")
    if limit is None and text:
        if not text.isdigit() or not int(text):
            raise UserError(f"FACETCLIP_CACHE_BYTES: expected a number of bytes, found {text!r}")
        limit = int(text)
    return CacheSpec(chosen, limit)


def open_store(
    place: Path | str, cache: CacheSpec | None, problem: Callable[[BinaryIO], str | None]
) -> LocalShards | CachedShards:
    """The shards at `place`; of those at a URL the index is here, and `problem` found none in it."""
    if is_url(place):
        return CachedShards(str(place), cache or cache_spec(), problem)
    return LocalShards(Path(place))
