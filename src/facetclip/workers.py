"""A function over many portions of work in several processes of this machine."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from typing import TypeVar

from facetclip.errors import OwnMistake

Work = TypeVar("Work")
Result = TypeVar("Result")

AHEAD = 2  # portions a worker: one in hand, one waiting; more would only fill the memory


def each(function: Callable[[Work], Result], portions: Iterable[Work], *, workers: int) -> Generator[Result]:
    """`function` of every portion, as they end, in any order; with one worker in this process and in order.

    Portions are drawn only when a worker is free. OwnMistake when a worker is killed; other errors pass unchanged.
    """
    if workers == 1:
        yield from map(function, portions)
        return
    waiting = iter(portions)
    running: set[Future[Result]] = set()
    with ProcessPoolExecutor(workers, get_context("spawn"), _obey) as pool:
        try:
            while True:
                running |= {
                    pool.submit(function, portion) for portion in islice(waiting, AHEAD * workers - len(running))
                }
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise OwnMistake("a worker was killed (out of memory?); run the same command again to continue") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _obey() -> None:
    """In a worker: end at once on Ctrl-C, and when the parent is gone (its `kill -9` leaves nobody to tell us)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
