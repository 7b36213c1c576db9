"""What a run folder keeps for MLflow until MLflow has it: the record of the run, and the spool of its points.

`mlflow_run.json`: which MLflow run this is, and what is still to be sent. `metrics.jsonl`: every point with its key,
step, timestamp in ms and value. `metrics.sent`: how many bytes of that MLflow has.
"""

import errno
import fcntl
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facetclip.errors import UserError
from facetclip.files import write_whole

RECORD, SPOOL, SENT = "mlflow_run.json", "metrics.jsonl", "metrics.sent"
POINT = {"key", "step", "timestamp", "value"}
_LINE = re.compile(rb"[^\n]*\n")  # a whole one
MOST_POINTS = 1000  # what MLflow takes in one batch


@dataclass
class RunRecord:
    """What the run folder knows of its MLflow run; every change is on disk before it counts."""

    folder: Path
    uri: str  # without credentials
    experiment: str
    name: str
    params: dict[str, str]
    tags: dict[str, str]
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    started_ms: int = field(default_factory=lambda: int(time.time() * 1000))
    run_id: str | None = None
    artifacts: list[str] = field(default_factory=list)  # still to be sent; relative to the run folder
    status: str | None = None  # how the run ended; None while it goes on
    ended_ms: int | None = None
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def read(cls, folder: Path) -> "RunRecord | None":
        """The record in a run folder, if there is one."""
        try:
            stored = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return cls(folder=folder, **stored)

    def update(self, **changes: Any) -> None:
        """Set fields and store the record."""
        with self._lock:
            for name, value in changes.items():
                setattr(self, name, value)
            self._write()

    def add_artifact(self, path: Path) -> None:
        """One more file or folder to be sent."""
        with self._lock:
            self.artifacts.append(os.path.relpath(path, self.folder))
            self._write()

    def artifact_sent(self, relative: str) -> None:
        """One file or folder less to be sent."""
        with self._lock:
            self.artifacts.remove(relative)
            self._write()

    def _write(self) -> None:
        hidden = ("folder", "_lock")
        stored = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in hidden}
        write_whole(self.folder / RECORD, json.dumps(stored, indent=2, ensure_ascii=False).encode())


class Spool:
    """The points of a run, in the order they were made, and how far MLflow has them. One process at a time."""

    def __init__(self, folder: Path) -> None:
        self.path, self.sent_path = folder / SPOOL, folder / SENT
        self._file = self.path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"{folder}: another process is tracking this run; wait until it ends") from None

    def recover(self, warn: Callable[[str], None]) -> dict[str, int]:
        """Cut a line that a kill left unfinished; the last step stored for each key. `warn` is told of lines that are
        no points, which nobody is sent."""
        content = self.path.read_bytes()
        os.truncate(self.path, content.rfind(b"\n") + 1)
        lines = _LINE.findall(content)
        points = _points(lines)
        if len(points) < len(lines):
            warn(f"{self.path}: {len(lines) - len(points)} lines are no points and are left out; was the disk damaged?")
        return {point["key"]: point["step"] for point in points}

    def clear(self) -> None:
        """Forget everything."""
        os.truncate(self.path, 0)
        self.sent_path.unlink(missing_ok=True)

    def append(self, points: list[dict[str, Any]]) -> None:
        """Store points; they outlive a kill of this process from now on. OSError where the disk has no room for all of
        them; then none is stored."""
        content = "".join(json.dumps(point) + "\n" for point in points).encode()
        if (stored := self._file.write(content)) < len(content):
            os.truncate(self.path, self.path.stat().st_size - stored)  # half a line would spoil the next
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    @property
    def sent(self) -> int:
        """The bytes of the spool that MLflow has; all are sent anew where the two files disagree."""
        try:
            count = int(self.sent_path.read_text())
        except (FileNotFoundError, ValueError):
            return 0
        return count if count <= self.path.stat().st_size else 0

    def mark_sent(self, count: int) -> None:
        """MLflow has the first `count` bytes."""
        os.fsync(self._file.fileno())
        write_whole(self.sent_path, str(count).encode())

    def unsent(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """(points, bytes of the spool up to their end), in batches that MLflow takes."""
        start = self.sent
        with self.path.open("rb") as file:
            file.seek(start)
            lines = _LINE.findall(file.read())
        for first in range(0, len(lines), MOST_POINTS):
            batch = lines[first : first + MOST_POINTS]
            start += sum(map(len, batch))
            yield _points(batch), start

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()


def _points(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The points that stand in `lines`."""
    found = []
    for line in lines:
        with suppress(ValueError):  # no JSON
            point = json.loads(line)
            if isinstance(point, dict) and point.keys() >= POINT:
                found.append(point)
    return found
