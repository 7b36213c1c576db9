"""Signals that ask for an end: SIGTERM and SIGUSR1.

A scheduler sends one of them some time before it kills. Between two steps they are wishes: the processes of a launch
get theirs at different moments, or one of them alone, so the trainer lets all agree on one step, saves there and leaves
with REQUEUE. Before the first step and after the last all that is done lies in files: there they end a process at once.
Either way, one that has not come to an end GRACE seconds later, since another is gone, is ended by itself.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REQUEUE = 75  # EX_TEMPFAIL: nothing is wrong; start the same command again and it goes on
MARKER = "requeue"  # the file in the run folder that says the same, since launchers end with codes of their own
GRACE = 60.0
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interrupted(BaseException):
    """A signal asked for an end. `step`: at which all processes have saved for it; None before and after the steps.

    No Exception, since it may come anywhere, and whoever outlives any of those must not outlive this.
    """

    def __init__(self, step: int | None = None) -> None:
        saved = f" and saved at step {step}" if step is not None else ""
        super().__init__(f"interrupted{saved}; the same command goes on from there")
        self.step = step


class Interruption:
    """Whether this process was asked to end."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.wanted, self._at_once = False, at_once
        self._last_resort: threading.Timer | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the wish, or obey; what comes after the first changes nothing."""
        if self.wanted:
            return
        self.wanted = True
        self._last_resort = threading.Timer(float(os.environ.get("FACETCLIP_GRACE", GRACE)), os._exit, [REQUEUE])
        self._last_resort.daemon = True
        self._last_resort.start()
        if self._at_once:
            raise Interrupted

    def forget(self) -> None:
        """The wish was met."""
        if self._last_resort:
            self._last_resort.cancel()


_around: Interruption | None = None  # the block that listens now


@contextmanager
def listening(*, at_once: bool = False) -> Iterator[Interruption]:
    """Signals become wishes inside the block, or with `at_once` Interrupted; a block within it may say otherwise, takes
    over a wish that is there already, and leaves its own behind. In a thread other than the main one nothing is
    listened to."""
    global _around
    interruption = Interruption(at_once=at_once)
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    outer, _around = _around, interruption
    before = {number: signal.signal(number, interruption.handle) for number in SIGNALS}
    try:
        if outer and outer.wanted:
            interruption.handle(0, None)
        yield interruption
    finally:
        if outer:  # before it hears of them: whoever sends one may go on sending
            outer.wanted |= interruption.wanted
        for number, handler in before.items():
            signal.signal(number, handler)
        interruption.forget()
        _around = outer
