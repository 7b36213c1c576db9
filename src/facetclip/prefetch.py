"""Shards brought from elsewhere before they are read, in the order in which a plan needs them."""

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from facetclip.store import CachedShards, Shard

DOWNLOADS = 4  # at a time, by one process
FARTHEST = 4096  # portions
IN_HAND = 4  # portions that were given out and may not be read yet
Portion = TypeVar("Portion")


def fetched_ahead(
    store: CachedShards, shards: Sequence[Shard], portions: Iterable[tuple[Portion, np.ndarray]]
) -> Iterator[Portion]:
    """The portions, while threads bring the shards of those to come into the cache: as far ahead as it holds them.

    `portions`: each with the numbers of the shards that it will read. What cannot be had is left to whoever reads it,
    who says why.
    """
    sizes = np.array([shard.bytes for shard in shards])
    room = store.room / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # an even share for each process of this machine
    last = np.full(len(shards), -IN_HAND - 1)  # the last portion known to need each; none yet
    waiting: deque[Portion] = deque()
    stop = threading.Event()
    pool = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="fetch")
    try:
        for number, (portion, needed) in enumerate(portions):
            while waiting:
                in_use = last >= number - len(waiting) - IN_HAND
                in_use[needed] = True
                if len(waiting) < FARTHEST and sizes[in_use].sum() <= room:
                    break
                yield waiting.popleft()
            for shard in needed[last[needed] < number - len(waiting) - IN_HAND]:
                pool.submit(store.prefetch, shards[shard], stop)
            last[needed] = number
            waiting.append(portion)
        yield from waiting
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
