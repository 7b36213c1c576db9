"""One process at a time: a lease in a file, renewed while its holder lives.

On one machine the kernel's lock on the file decides, and it falls with its holder. Across machines locks are not to be
trusted on every file system, so the file also says who holds it and when that was last renewed.
"""

import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from facetclip.errors import OwnMistake

LEASE = "lease.json"
RENEWED_EVERY = 10.0  # seconds
STALE_AFTER = 60.0  # a holder on another machine that has not renewed it for so long is gone
LENGTH = 512  # bytes of a record
TRIES = 10  # to make the folder of a lease, which another may be clearing up
LOOKED_AT = 0.5  # seconds for which the lock may be taken by processes that only look


class Held(OwnMistake):
    """Another process has the lease."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, in words."""

    who: str

    def refusal(self, folder: Path, doing: str) -> Held:
        """What to tell whoever comes second; `doing` says what the holder does, and what to do about it."""
        return Held(f"{folder}: {self.who} {doing}")


class Lease:
    """Holds `path` until `release`; Held, with `doing`, where another process has it."""

    def __init__(self, path: Path, doing: str) -> None:
        self.path = path
        while True:
            self._file = _made(path)
            try:
                held = _holder(self._file, path, patience=LOOKED_AT)
                if held is not None:
                    raise held.refusal(path.parent, doing)
                if _there(self._file, path):
                    break
            except FileNotFoundError:  # somebody clears the folder up
                pass
            except Held:
                self._file.close()
                raise
            self._file.close()
        self._ended = threading.Event()
        self._write()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewing.start()

    def release(self) -> None:
        """Let another have it."""
        self._ended.set()
        self._renewing.join()
        os.ftruncate(self._file.fileno(), 0)
        self._file.close()

    def _write(self) -> None:
        """In place, and always as long: whoever looks finds a whole record, and a full disk has room for the next."""
        content = {"host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
        os.pwrite(self._file.fileno(), json.dumps(content).encode().ljust(LENGTH), 0)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_EVERY):
            with suppress(OSError):  # the lock still holds, and the next renewal may succeed
                self._write()


class RunLease(Lease):
    """The lease of a run folder: one launch trains it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / LEASE, "is training this run; wait for it, stop it, or take another output.folder")


def holder(path: Path) -> Holder | None:
    """Who holds the lease `path` now, if anyone."""
    try:
        with path.open("r+b", buffering=0) as file:
            return _holder(file, path, patience=0.0)
    except FileNotFoundError:
        return None


def _made(path: Path) -> IO[bytes]:
    """The file at `path`, made where it is not there; somebody may be clearing up its folder."""
    refused = 0
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # also where the folder went between mkdir's two looks at it
            refused += 1
            if refused == TRIES:
                raise
        with suppress(FileNotFoundError):
            # Not to be appended to: `pwrite` would then do so wherever it is told to write.
            return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)


def _there(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    return os.path.samestat(os.fstat(file.fileno()), path.stat())


def _holder(file: IO[bytes], path: Path, *, patience: float) -> Holder | None:
    """Who else holds the lease; None leaves its lock with `file`."""
    end = time.monotonic() + patience
    while not _locked(file):
        if time.monotonic() >= end:
            return Holder(_named(_content(path)) or "another process")
        time.sleep(0.05)
    held = _content(path)
    elsewhere = held.get("host") not in (None, socket.gethostname())
    return Holder(_named(held)) if elsewhere and time.time() - held["renewed"] < STALE_AFTER else None


def _locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _content(path: Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except ValueError:  # empty, or half written by a machine that died
        return {}


def _named(held: dict) -> str:
    return f"process {held['pid']} on {held['host']}" if held else ""
