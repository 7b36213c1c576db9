"""Files at a URL that fsspec knows (s3, gs, https, hf ...): what they are, bringing one here, and putting one there."""

import hashlib
import random
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO

from fsspec.core import url_to_fs

from facetclip import faults
from facetclip.errors import OwnMistake, UserError, first_line, redacted

CHUNK = 8 << 20  # bytes asked for at a time, and lost when a connection is cut
TRIES = 6  # that bring nothing new, before it is given up
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before another try; twice as long each time
STILL = 60.0  # seconds without a byte after which an HTTP connection counts as cut
# What backends call the marks of a file's version.
STAMPS = ("ETag", "etag", "Last-Modified", "LastModified", "mtime", "generation", "updated", "last_commit", "blob_id")
_WEB = ("http", "https")
# A file put there is seen whole or not at all; elsewhere it is renamed when it is whole.
_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory", "hf"}


class Unreachable(Exception):
    """The other side did not give what was asked for; another try may. Says why, without secrets."""


class Absent(UserError):
    """There is no such file."""


class Stopped(Exception):
    """A download was asked to end, and did between two chunks."""


def is_url(place: object) -> bool:
    """Whether `place` names something elsewhere.

    >>> is_url("s3://shop/shards"), is_url("shards")
    (True, False)
    """
    return "://" in str(place) and not str(place).startswith("/")


class RemoteFolder:
    """A folder of files at `url`. `str()` of it has no secrets."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._ranges = True  # until a server shows that it ignores them
        self._system()  # so that a scheme that cannot be read is refused at once

    def __str__(self) -> str:
        return redacted(self.url).rstrip("/")

    def spot(self, name: str) -> str:
        """Where a file lies, for a message."""
        return redacted(self._url(name))

    def stamp(self, name: str) -> tuple[int | None, str | None]:
        """The size of a file and what tells its versions apart, None where the server does not say.

        UserError when it is absent or out of reach.
        """
        facts = self._patiently(name, lambda: self._info(name))
        marks = [f"{key}={facts[key]}" for key in STAMPS if facts.get(key)]
        size = facts.get("size")
        return size, hashlib.sha256(f"{size} {marks}".encode()).hexdigest() if marks else None

    def names(self) -> list[str]:
        """The files of the folder, sorted; none where there is no folder."""

        def ask() -> list[str]:
            system, path = self._system()
            system.invalidate_cache()
            return [file["name"] for file in system.ls(path, detail=True) if file["type"] == "file"]

        try:
            found = self._patiently("", lambda: self._asked(ask))
        except Absent:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def read(self, name: str, last: int | None = None) -> bytes:
        """A file's bytes, or the `last` of them. Absent where there is no such file."""

        def ask() -> bytes:
            system, path = self._system(name)
            return system.cat_file(path, start=None if last is None else -last)

        return self._patiently(name, lambda: self._asked(ask))

    def write(self, name: str, content: bytes) -> None:
        """`content` as a file, whole or not at all; one of that name is replaced."""
        ending = f".{secrets.token_hex(4)}.tmp"

        def ask() -> None:
            system, path = self._system(name)
            faults.reach("remote.before_put")
            if self._scheme in _WHOLE:
                system.pipe_file(path, content)
                return
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            beside = path + ending
            system.pipe_file(beside, content)
            faults.reach("remote.before_rename")
            if system.exists(path):
                system.rm_file(path)  # not everything renames onto a file
            system.mv(beside, path)

        self._patiently(name, lambda: self._asked(ask), doing="written")

    def require_writable(self) -> None:
        """UserError where files cannot be put here."""
        if self._web:
            raise UserError(f"{self}: nothing can be written over the web; name a folder, or s3://, gs:// ...")

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

        def ask() -> bool:
            system, path = self._system(name)
            system.invalidate_cache()
            return system.exists(path)

        return self._patiently(name, lambda: self._asked(ask))

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        with suppress(Absent):
            self._patiently(name, lambda: self._asked(partial(self._remove, name)), doing="deleted")

    def _remove(self, name: str) -> None:
        system, path = self._system(name)
        system.rm_file(path)

    def download(
        self,
        name: str,
        file: BinaryIO,
        size: int | None,
        problem: Callable[[BinaryIO], str | None],
        *,
        stop: threading.Event | None = None,
    ) -> None:
        """Fill `file`, going on with what it holds from an earlier attempt, until `problem` finds none with the whole.

        UserError where every try failed. Stopped when `stop` was set.
        """

        def attempt() -> None:
            held = file.seek(0, 2) if size is not None and self._ranges else 0
            file.seek(held)
            file.truncate()
            for chunk in self._chunks(name, held, size):
                if stop is not None and stop.is_set():
                    raise Stopped
                file.write(chunk)
                faults.reach("remote.chunk")
            file.seek(0)
            if found := problem(file):
                file.truncate(0)
                raise Unreachable(found)

        self._patiently(name, attempt, lambda: file.seek(0, 2) if self._ranges else 0, stop)

    def _chunks(self, name: str, start: int, size: int | None) -> Iterator[bytes]:
        """The bytes from `start` on; no more than one beyond `size`."""
        while size is not None and self._ranges and start < size:
            end = min(start + CHUNK, size)
            chunk = self._asked(partial(self._range, name, start, end))
            if len(chunk) > end - start:
                self._ranges = False
                raise Unreachable("the server ignores the range that is asked for")
            yield chunk
            start += len(chunk)
            if start < end:
                raise Unreachable(f"{end - start} bytes too few came")
        if size is None or not self._ranges:
            yield from self._stream(name, size)

    def _range(self, name: str, start: int, end: int) -> bytes:
        system, path = self._system(name)
        return system.cat_file(path, start=start, end=end)

    def _stream(self, name: str, size: int | None) -> Iterator[bytes]:
        """All of the file from its beginning, as it comes."""
        system, path = self._system(name)
        streamed = {"block_size": 0} if self._web else {}
        left = 1 << 62 if size is None else size + 1
        with self._asked(lambda: system.open(path, "rb", **streamed)) as file:
            while left > 0 and (chunk := self._asked(partial(file.read, min(CHUNK, left)))):
                left -= len(chunk)
                yield chunk

    def _info(self, name: str) -> dict[str, Any]:
        system, path = self._system(name)
        return self._asked(lambda: system.info(path))

    def _asked(self, ask: Callable[[], Any]) -> Any:
        """What the other side answers; Unreachable, or UserError where asking again would not help."""
        try:
            return ask()
        except Exception as raised:  # each backend has its own
            cause = raised.__cause__ if self._web and isinstance(raised, FileNotFoundError) else None
            error = cause or raised  # over the web everything is "not found" at first
            status = getattr(error, "status", 0)
            if isinstance(error, FileNotFoundError) or status in (404, 410):
                raise Absent("not found") from None
            if isinstance(error, PermissionError) or status in (401, 403):
                raise UserError(f"access is denied ({first_line(error)})") from None
            if isinstance(error, NotImplementedError):
                raise UserError(f"{self._scheme}:// cannot do this") from None
            raise Unreachable(first_line(error)) from None

    def _patiently(
        self,
        name: str,
        act: Callable[[], Any],
        progress: Callable[[], int] = lambda: 0,
        stop: threading.Event | None = None,
        doing: str = "read",
    ) -> Any:
        """What `act` returns, tried anew until TRIES of them made no `progress`, or `stop` is set."""
        failed, wait, most = 0, FIRST_WAIT, progress()
        while True:
            try:
                return act()
            except UserError as error:
                raise type(error)(f"{self.spot(name)}: {error}") from error
            except Unreachable as error:
                reached = progress()
                if reached > most:
                    failed, wait, most = 0, FIRST_WAIT, reached
                failed += 1
                if failed >= TRIES:
                    raise OwnMistake(f"{self.spot(name)}: could not be {doing} in {TRIES} tries: {error}") from error
            if (stop or threading.Event()).wait(wait * random.uniform(0.5, 1)):
                raise Stopped
            wait = min(2 * wait, LONGEST_WAIT)

    @property
    def _scheme(self) -> str:
        return self.url.partition("://")[0]

    @property
    def _web(self) -> bool:
        return self._scheme in _WEB

    def _url(self, name: str) -> str:
        """`name` under the URL; of a signed web address the query stays behind it."""
        front, mark, query = self.url.partition("?") if self._web else (self.url, "", "")
        return f"{front.rstrip('/')}/{name}{mark}{query}"

    def _system(self, name: str = "") -> tuple[Any, str]:
        """The file system and the path in it; each process and thread has its own connections."""
        options: dict[str, Any] = {}
        if self._web:
            import aiohttp  # a third of a second, which a folder of this machine does not need

            patience = aiohttp.ClientTimeout(total=None, sock_connect=STILL, sock_read=STILL)
            options = {"client_kwargs": {"timeout": patience}}
        try:
            return url_to_fs(self._url(name), **options)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{self}: cannot be read here: {first_line(error)} (for s3:// pip install 'facetclip[remote]', for "
                "gs:// gcsfs)"
            ) from error
        except OSError as error:  # of systems that connect at once, such as ftp
            raise UserError(f"{self}: cannot be reached: {first_line(error)}") from error
