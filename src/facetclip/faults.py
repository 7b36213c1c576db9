"""Faults on demand: `FACETCLIP_FAULT=shards.after_tar:2` kills this process, as `kill -9` would, at that place.

`place:n[=kind][@rank]`, several with commas: the n-th time that this process (of that rank; without one, any) is at the
place. Kinds: `kill` (the default), `raise`, `crash` (a segmentation fault), `exit`, `freeze` (SIGSTOP), `hang`, `term`,
`usr1`, `full` (the disk), and `nan` and `inf` where numbers pass. Inert unless the variable is set. Tests and cautious
users provoke with it what they fear.
"""

import errno
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable

from facetclip.errors import UserError

SPEC = re.compile(r"(?P<place>[\w.-]+):(?P<count>[1-9]\d*)(=(?P<kind>[a-z1]+))?(@(?P<rank>\d+))?")
VALUES = {"nan": float("nan"), "inf": float("inf")}

_reached: Counter[str] = Counter()


def reach(place: str) -> None:
    """Suffer what FACETCLIP_FAULT has for this visit to `place`.

    >>> reach("nowhere")
    """
    kind = _visit(place)
    if kind is not None:
        _ACTS[kind]()


def spoiled(place: str) -> float | None:
    """The value that FACETCLIP_FAULT puts in the place of a number on this visit, if any.

    >>> spoiled("nowhere")
    """
    kind = _visit(place)
    if kind is None:
        return None
    if kind not in VALUES:
        _ACTS[kind]()
    return VALUES.get(kind)


def _visit(place: str) -> str | None:
    """Count a visit; the kind of fault that is due at it."""
    setting = os.environ.get("FACETCLIP_FAULT", "")
    if not setting:
        return None
    found = [_parsed(text) for text in setting.split(",") if text.partition(":")[0] == place]
    if not found:
        return None
    _reached[place] += 1
    rank = os.environ.get("RANK", "0")
    due = [kind for count, kind, wanted in found if count == _reached[place] and wanted in (None, rank)]
    return due[0] if due else None


def _parsed(text: str) -> tuple[int, str, str | None]:
    spec = SPEC.fullmatch(text)
    kind = (spec and spec["kind"]) or "kill"
    if spec is None or kind not in {*_ACTS, *VALUES}:
        raise UserError(
            f"FACETCLIP_FAULT: expected place:n[=kind][@rank] with n from 1 and a kind of "
            f"{', '.join([*_ACTS, *VALUES])}, found {text}"
        )
    return int(spec["count"]), kind, spec["rank"]


def _signalled(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def _raise() -> None:
    raise RuntimeError("a fault was asked for with FACETCLIP_FAULT")


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


_ACTS: dict[str, Callable[[], None]] = {
    "kill": _signalled(signal.SIGKILL),
    "raise": _raise,
    "crash": _signalled(signal.SIGSEGV),
    "exit": lambda: os._exit(1),
    "freeze": _signalled(signal.SIGSTOP),
    "hang": lambda: time.sleep(3600),
    "term": _signalled(signal.SIGTERM),
    "usr1": _signalled(signal.SIGUSR1),
    "full": _full,
}
