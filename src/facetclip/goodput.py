"""Where the hours of a run went, over all its starts: the share that moved the weights forward is its goodput.

`start_up`: from the process's start to its first step; `stall`: waiting for photos; `productive`: steps; `validation`;
`checkpoint`; `lost`: work after the last checkpoint of a start that was killed, which is done anew. The time between
two starts is nobody's.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from facetclip.files import write_whole

RECORD = "goodput.json"
_counted = 0.0  # until when this process's time is some run's already; several runs may follow each other in it
KINDS = ("start_up", "stall", "productive", "validation", "checkpoint", "lost")


class Goodput:
    """The seconds of a run by kind. What is not `spend` of something is productive."""

    def __init__(self, folder: Path, last_beat: float) -> None:
        """`last_beat`: when the start before this one was last seen alive, in seconds since the epoch."""
        global _counted
        self.path = folder / RECORD
        self.seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self.died = False
        begun = _counted or psutil.Process().create_time()
        try:
            stored = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            pass
        else:
            self.seconds |= stored["seconds"]
            self.died = not stored["ended"]
            if self.died:
                self.seconds["lost"] += max(0.0, min(last_beat, begun) - stored["time"])
        self._mark = _counted = time.time()
        self._kind = "start_up"
        self.seconds["start_up"] += self._mark - begun

    def begin(self) -> None:
        """The first step begins."""
        self._turn("productive")

    @property
    def values(self) -> dict[str, float]:
        """What MLflow takes."""
        return {"goodput/share": self.share} | {f"goodput/{kind}_seconds": each for kind, each in self.seconds.items()}

    @contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """The time inside the block is of this kind, but for blocks within it."""
        before = self._turn(kind)
        try:
            yield
        finally:
            self._turn(before)

    def _turn(self, kind: str) -> str:
        now, before = time.time(), self._kind
        self.seconds[before] += now - self._mark
        self._mark, self._kind = now, kind
        return before

    @property
    def share(self) -> float:
        """Productive seconds over all."""
        self._turn(self._kind)
        return self.seconds["productive"] / max(1e-9, sum(self.seconds.values()))

    def store(self, *, ended: bool = False) -> None:
        """Everything so far is safe: what comes after it would be lost. `ended`: nothing comes after it."""
        self._turn(self._kind)
        write_whole(
            self.path, json.dumps({"seconds": self.seconds, "time": self._mark, "ended": ended}, indent=1).encode()
        )

    def __str__(self) -> str:
        share, whole = self.share, max(1e-9, sum(self.seconds.values()))
        parts = [f"{kind} {self.seconds[kind]:.0f} s ({self.seconds[kind] / whole:.0%})" for kind in KINDS]
        return f"goodput {share:.0%}: " + ", ".join(parts)
