"""From rows of the index to tensors: read by offset, decode, square. They are augmented on the device.

Decoding runs in threads, since the decoder and torch release the interpreter lock. Nothing here draws from a random
generator: augmentation is a hash of (seed, place in the plan), so it depends on neither rank nor thread.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from facetclip.errors import UserError
from facetclip.images import BadImage, Fit
from facetclip.index import ShardIndex
from facetclip.squares import square_planes

AHEAD = 2  # batches prepared while one is worked on
MOST_THREADS = 16
AT_ONCE = 4  # photos that a thread is handed: so many that handing over hardly counts, few enough to end together
CACHE_BYTES = 1 << 30
Portion = TypeVar("Portion")
Ready = TypeVar("Ready")


@dataclass(frozen=True)
class Batch:
    """`rows` [n] of the index, `inputs`: photos uint8 [n, 3, size, size] or their features [n, d], and `labels` int64
    [n, attributes]."""

    rows: np.ndarray
    inputs: Tensor
    labels: Tensor


class Inputs(Protocol):
    """What turns rows into batches."""

    def batch(self, rows: np.ndarray) -> Batch:
        """Inputs and labels of `rows`."""
        ...

    def coming(self, portions: Iterable[Portion], rows_of: Callable[[Portion], np.ndarray]) -> Iterator[Portion]:
        """The same portions, of which `batch` will soon be asked for `rows_of` each."""
        ...


class PixelReader:
    """Reads photos as squares; keeps those of `cached` rows in memory when all of them fit CACHE_BYTES.

    `threads`: that decode, `decoding_threads()` where None. `pinned`: photos lie where a GPU can fetch them itself,
    while the processor goes on.
    """

    def __init__(
        self,
        index: ShardIndex,
        size: int,
        fit: Fit,
        *,
        cached: np.ndarray | None = None,
        threads: int | None = None,
        pinned: bool = False,
    ) -> None:
        self.index, self.size = index, size
        self.fit: Fit = fit
        self._pinned = pinned
        self._pool = ThreadPoolExecutor(threads or decoding_threads(), thread_name_prefix="decode")
        fits = cached is not None and len(cached) * size * size * 3 <= CACHE_BYTES
        self._cached = cached if fits and cached is not None else np.zeros(0, dtype=np.int64)
        self._kept = np.zeros((len(self._cached), size, size, 3), dtype=np.uint8)
        self._known = np.zeros(len(self._cached), dtype=bool)

    def square(self, row: int) -> np.ndarray:
        """One photo as uint8 [3, size, size]; UserError naming item and reason when it cannot be decoded."""
        try:
            return square_planes(self.index.read(row), self.size, self.fit)
        except BadImage as bad:
            raise UserError(f"{self.index.store}: item {self.index.item_id(row)!r}: {bad}") from bad

    def pixels(self, rows: np.ndarray) -> Tensor:
        """Photos of `rows` as uint8 [n, 3, size, size], the channels of a pixel side by side in memory."""
        places = np.searchsorted(self._cached, rows) if len(self._cached) else np.zeros(len(rows), dtype=np.int64)
        known = np.zeros(len(rows), dtype=bool)
        inside = places < len(self._cached)
        inside[inside] = self._cached[places[inside]] == rows[inside]
        known[inside] = self._known[places[inside]]
        shape = (len(rows), self.size, self.size, 3)
        if self._pinned:
            photos = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        else:
            photos = torch.from_numpy(np.empty(shape, dtype=np.uint8))
        out = photos.numpy()
        out[known] = self._kept[places[known]]
        missing = np.flatnonzero(~known)

        def put(first: int) -> None:
            for at in missing[first : first + AT_ONCE].tolist():
                out[at] = self.square(int(rows[at])).transpose(1, 2, 0)

        for _ in self._pool.map(put, range(0, len(missing), AT_ONCE)):
            pass
        new = missing[inside[missing]]
        self._kept[places[new]] = out[new]
        self._known[places[new]] = True
        return photos.permute(0, 3, 1, 2)

    def coming(self, portions: Iterable[Portion], rows_of: Callable[[Portion], np.ndarray]) -> Iterator[Portion]:
        """The same portions; shards that must be brought from elsewhere come ahead of them."""
        return self.index.coming(portions, lambda portion: self._unknown(rows_of(portion)))

    def _unknown(self, rows: np.ndarray) -> np.ndarray:
        """Those of `rows` that are not in memory."""
        return rows[~np.isin(rows, self._cached[self._known])] if len(self._cached) else rows

    def batch(self, rows: np.ndarray) -> Batch:
        """Pixels and labels of `rows`."""
        return Batch(rows, self.pixels(rows), torch.from_numpy(self.index.label_matrix(rows)))


def decoding_threads() -> int:
    """How many threads of this process decode: its share of the processors that it may use."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(MOST_THREADS, processors // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def ahead(prepare: Callable[[Portion], Ready], portions: Iterable[Portion], depth: int = AHEAD) -> Iterator[Ready]:
    """`prepare(portion)` for each portion in order, `depth` of them prepared in advance by a thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        waiting: deque = deque()
        try:
            for portion in portions:
                waiting.append(pool.submit(prepare, portion))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def uniforms(seed: int, places: np.ndarray, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) for each place, float32 [n, count]: a hash (splitmix64, Steele et al. 2014)."""
    base = np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
    keys = places.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
    mixed = (keys + base) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
