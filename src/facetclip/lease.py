"""One launch of a run at a time: a lease in the run folder, renewed while its holder lives.

On one machine the kernel's lock on the file decides, and it falls with its holder. Across machines locks are not to be
trusted on every file system, so the file also says who holds it and when that was last renewed.
"""

import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path

from facetclip.errors import UserError

LEASE = "lease.json"
RENEWED_EVERY = 10.0  # seconds
STALE_AFTER = 60.0  # a holder on another machine that has not renewed it for so long is gone


class RunLease:
    """Holds `folder/lease.json` until `release`; UserError naming the holder where another launch has it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LEASE
        self._file = self.path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held = self._holder()
            self._file.close()
            raise self._refusal(held) from None
        held = self._holder()
        if held.get("host") not in (None, socket.gethostname()) and time.time() - held["renewed"] < STALE_AFTER:
            self._file.close()
            raise self._refusal(held)
        self._ended = threading.Event()
        self._write()
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def release(self) -> None:
        """Let another launch have it."""
        self._ended.set()
        os.ftruncate(self._file.fileno(), 0)
        self._file.close()

    def _holder(self) -> dict:
        try:
            return json.loads(self.path.read_bytes())
        except ValueError:  # empty, or half written by a machine that died
            return {}

    def _refusal(self, held: dict) -> UserError:
        who = f"process {held['pid']} on {held['host']}" if held else "another process"
        return UserError(
            f"{self.path.parent}: {who} is training this run; wait for it, stop it, or take another output.folder"
        )

    def _write(self) -> None:
        content = {"host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
        os.ftruncate(self._file.fileno(), 0)
        os.pwrite(self._file.fileno(), json.dumps(content).encode(), 0)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_EVERY):
            try:
                self._write()
            except (OSError, ValueError):  # released meanwhile, or the disk is full: the lock still holds
                return
