"""Faults on demand: `FACETCLIP_FAULT=shards.after_tar:2` kills this process, as `kill -9` would, at that place.

Inert unless the variable is set. Tests and cautious users provoke with it what they fear.
"""

import os
import signal
from collections import Counter

from facetclip.errors import UserError

_reached: Counter[str] = Counter()


def reach(place: str) -> None:
    """Die by SIGKILL when FACETCLIP_FAULT is `place:n` and this is the n-th time that this process is here.

    >>> reach("nowhere")
    """
    wanted, _, count = os.environ.get("FACETCLIP_FAULT", "").partition(":")
    if wanted != place:
        return
    if not count.isdigit() or int(count) < 1:
        raise UserError(f"FACETCLIP_FAULT: expected place:n with n from 1, such as {place}:1, found {wanted}:{count}")
    _reached[place] += 1
    if _reached[place] == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
