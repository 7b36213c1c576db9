"""How far each process of a run is, where all can see it, and what to do when one is stuck.

A process writes its step and the time into a few mapped bytes of `progress/rank-N`: that costs a memory store, and it
outlives the process however that ends. A watchdog in each process looks at its own entry; when nothing has moved for
the time-out, it adds the stacks of all its threads to `stacks.txt`, and the process leaves. Processes that wait for a
stuck one in a collective are stuck themselves, so all that can speak do.
"""

import faulthandler
import mmap
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ENTRY = struct.Struct("<qd")  # step, seconds since the epoch
STUCK = 76  # the exit code of a process that its watchdog ended
STACKS = "stacks.txt"


@dataclass(frozen=True)
class Beat:
    """The step that a process was working on, and when it began it."""

    step: int
    time: float


class Progress:
    """The entry of process `rank` of so many."""

    def __init__(self, folder: Path, rank: int, processes: int) -> None:
        self.folder, self.rank, self.processes = folder, rank, processes
        path = folder / "progress" / f"rank-{rank:04d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.truncate(ENTRY.size)
            self._bytes = mmap.mmap(file.fileno(), ENTRY.size)

    def beat(self, step: int) -> None:
        """Work on `step` begins, or goes on."""
        ENTRY.pack_into(self._bytes, 0, step, time.time())

    @property
    def last(self) -> Beat:
        """What was written last; of a process before this one, too."""
        return Beat(*ENTRY.unpack_from(self._bytes))


def beats(folder: Path) -> dict[int, Beat]:
    """Rank -> its last beat."""
    return {
        int(path.name.removeprefix("rank-")): Beat(*ENTRY.unpack(path.read_bytes()))
        for path in sorted((folder / "progress").glob("rank-????"))
        if path.stat().st_size == ENTRY.size
    }


@contextmanager
def watched(progress: Progress, seconds: float) -> Iterator[None]:
    """End this process with STUCK when it has not beaten for so long inside the block; 0: never."""
    if not seconds:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(progress, seconds, over), name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(progress: Progress, seconds: float, over: threading.Event) -> None:
    while not over.wait(min(1.0, seconds / 4)):
        beat = progress.last
        if time.time() - beat.time > seconds:
            give_up(progress, seconds)


def give_up(progress: Progress, seconds: float) -> None:
    """Add the stacks of this process's threads to the file, name who is behind, and leave at once."""
    now = time.time()
    # An earlier launch may have had more processes; it left their entries.
    all_beats = {rank: beat for rank, beat in beats(progress.folder).items() if rank < progress.processes}
    last = min(beat.step for beat in all_beats.values())
    behind = [f"{rank}" for rank, beat in all_beats.items() if beat.step == last]
    head = f"process {progress.rank}, step {progress.last.step}: nothing for {now - progress.last.time:.0f} s"
    with (progress.folder / STACKS).open("a") as file:
        file.write(f"== {head} ==\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
    print(
        f"{head} (watch.timeout = {seconds:g}); the stacks of all processes are in {progress.folder / STACKS}; "
        f"furthest behind, at step {last}: process {', '.join(behind)}",
        file=sys.stderr,
        flush=True,
    )
    # A stopped or hanging peer cannot be waited for; the launcher sees this process end and ends the others.
    os._exit(STUCK)
