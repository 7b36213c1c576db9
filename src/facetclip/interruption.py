"""Signals that ask for an end: SIGTERM and SIGUSR1 set a flag that the training looks at between two steps.

A scheduler sends one of them some time before it kills. The processes of a launch get theirs at different moments, or
one of them alone, so the flag is only a wish: the trainer lets all agree on one step, saves there and leaves with
REQUEUE. A process that cannot come to its next step, since another is gone, ends by itself after GRACE seconds.
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


class Interrupted(Exception):
    """All processes have saved at `step`, since a signal asked for it."""

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted and saved at step {step}; the same command goes on from there")
        self.step = step


class Interruption:
    """Whether this process was asked to end."""

    wanted = False
    _last_resort: threading.Timer | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the wish; what comes after the first changes nothing."""
        if not self.wanted:
            self.wanted = True
            self._last_resort = threading.Timer(float(os.environ.get("FACETCLIP_GRACE", GRACE)), os._exit, [REQUEUE])
            self._last_resort.daemon = True
            self._last_resort.start()

    def forget(self) -> None:
        """The wish was met."""
        if self._last_resort:
            self._last_resort.cancel()


@contextmanager
def listening() -> Iterator[Interruption]:
    """Signals become wishes inside the block; in a thread other than the main one nothing is listened to."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.signal(number, interruption.handle) for number in SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        interruption.forget()
