"""Signals that ask for an end: SIGTERM and SIGUSR1.

A scheduler sends one of them some time before it kills. Between two steps both are wishes: the processes of a launch
get theirs at different moments, or one of them alone, so the trainer lets all agree on one step, saves there and leaves
with REQUEUE. Before the first step and after the last all that is done lies in files, and SIGUSR1 ends a process at
once; SIGTERM does as always there, since launchers send it to the others when one has failed. Either way, a process
that has not come to an end GRACE seconds later is ended: others may be gone, and never answer.
"""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from facetclip.errors import UserError
from facetclip.files import write_whole

REQUEUE = 75  # EX_TEMPFAIL: nothing is wrong; start the same command again and it goes on
MARKER = "requeue"  # the file in the run folder that says the same, since launchers end with codes of their own
GRACE = 60.0
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
ANYTIME = (signal.SIGUSR1,)  # those that mean it before the first step and after the last, too


class Interrupted(BaseException):
    """A signal asked for an end. `step`: at which all processes have saved for it; None before and after the steps.

    No Exception, since it may come anywhere, and whoever outlives any of those must not outlive this.
    """

    def __init__(self, step: int | None = None) -> None:
        saved = f" and saved at step {step}" if step is not None else ""
        super().__init__(f"interrupted{saved}; the same command goes on from there")
        self.step = step


class Interruption:
    """Whether this process was asked to end. `marker`: the file that says so where GRACE is over."""

    def __init__(self, marker: Path | None = None, *, at_once: bool = False) -> None:
        self.wanted, self.at_once = False, at_once
        self._marker = marker
        self._last_resort: threading.Timer | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the wish, or obey; what comes after the first changes nothing."""
        if self.wanted:
            return
        self.wanted = True
        self._last_resort = threading.Timer(float(os.environ.get("FACETCLIP_GRACE") or GRACE), self._leave)
        self._last_resort.daemon = True
        self._last_resort.start()
        if self.at_once:
            raise Interrupted

    def _leave(self) -> None:
        if self._marker:
            with suppress(UserError):
                mark(self._marker, Interrupted())
        os._exit(REQUEUE)

    def forget(self) -> None:
        """The wish was met."""
        if self._last_resort:
            self._last_resort.cancel()


def mark(marker: Path, stop: Interrupted) -> None:
    """Say in the run folder that the run wants to go on."""
    write_whole(marker, f"{stop}\n".encode())


_around: Interruption | None = None  # the block that listens now


@contextmanager
def listening(
    marker: Path | None = None, signals: Sequence[int] = SIGNALS, *, at_once: bool = False
) -> Iterator[Interruption]:
    """`signals` become wishes inside the block, or with `at_once` Interrupted; a block within it may say otherwise,
    takes over a wish that is there already, and leaves its own behind. Nothing is heard in a thread other than the main
    one.
    """
    global _around
    interruption = Interruption(marker, at_once=at_once)
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    outer, _around, before = _around, interruption, {}
    try:
        for number in signals:
            before[number] = signal.getsignal(number)
            signal.signal(number, interruption.handle)
        if outer and outer.wanted:
            interruption.handle(0, None)
        yield interruption
    finally:
        _around = outer
        interruption.forget()
        if outer:  # before it hears of them again: whoever sends one may go on sending
            outer.wanted |= interruption.wanted
        for number, handler in before.items():
            signal.signal(number, handler)
        if outer:  # what came meanwhile
            outer.wanted |= interruption.wanted
