"""From rows of the index to tensors: read by offset, decode, crop and square. The rest of augmenting is the device's.

Decoding runs in threads, since the decoder and torch release the interpreter lock. Nothing here draws from a random
generator: augmentation is a hash of (seed, place in the plan), so it depends on neither rank nor thread.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from facetclip.errors import OwnMistake
from facetclip.images import BadImage, Fit, read_pixels
from facetclip.index import ShardIndex
from facetclip.squares import WHOLE, cropped_square

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

    def batch(self, rows: np.ndarray, crops: np.ndarray | None = None) -> Batch:
        """Inputs and labels of `rows`; of each photo what `crops` [n, 3] keep (`augmentation.crops`)."""
        ...

    def coming(self, portions: Iterable[Portion], rows_of: Callable[[Portion], np.ndarray]) -> Iterator[Portion]:
        """The same portions, of which `batch` will soon be asked for `rows_of` each."""
        ...


class PixelReader:
    """Reads photos as squares.

    `often`: how many photos will be read again and again; where CACHE_BYTES hold as many squares, photos stay in memory
    as they were decoded, as many as fit. `threads`: that decode, `decoding_threads()` where None.
    """

    def __init__(self, index: ShardIndex, size: int, fit: Fit, *, often: int = 0, threads: int | None = None) -> None:
        self.index, self.size = index, size
        self.fit: Fit = fit
        self._pool = ThreadPoolExecutor(threads or decoding_threads(), thread_name_prefix="decode")
        self._kept: dict[int, np.ndarray] = {}
        self._room = CACHE_BYTES if 0 < often * size * size * 3 <= CACHE_BYTES else 0  # bytes
        self._lock = threading.Lock()

    def photo(self, row: int) -> np.ndarray:
        """One photo as it is decoded for squares of this size, uint8 [height, width, 3]; OwnMistake naming item and
        reason when it cannot be."""
        if (kept := self._kept.get(row)) is not None:
            return kept
        try:
            photo = read_pixels(self.index.read(row), at_least=self.size)
        except BadImage as bad:
            raise OwnMistake(f"{self.index.store}: item {self.index.item_id(row)!r}: {bad}") from bad
        with self._lock:
            if photo.nbytes <= self._room and row not in self._kept:
                self._kept[row] = photo
                self._room -= photo.nbytes
        return photo

    def pixels(self, rows: np.ndarray, crops: np.ndarray | None = None) -> Tensor:
        """Photos of `rows`, or what `crops` [n, 3] keep of them (`augmentation.crops`): uint8 [n, 3, size, size], the
        channels of a pixel side by side in memory."""
        out, wanted = np.empty((len(rows), self.size, self.size, 3), dtype=np.uint8), rows.tolist()
        kept = [WHOLE] * len(rows) if crops is None else crops.tolist()

        def put(first: int) -> None:
            for at in range(first, min(first + AT_ONCE, len(wanted))):
                square = cropped_square(self.photo(wanted[at]), self.size, self.fit, kept[at])
                out[at] = square.transpose(1, 2, 0)

        for _ in self._pool.map(put, range(0, len(wanted), AT_ONCE)):
            pass
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def coming(self, portions: Iterable[Portion], rows_of: Callable[[Portion], np.ndarray]) -> Iterator[Portion]:
        """The same portions; shards that must be brought from elsewhere come ahead of them."""
        return self.index.coming(portions, lambda portion: self._unknown(rows_of(portion)))

    def _unknown(self, rows: np.ndarray) -> np.ndarray:
        """Those of `rows` that are not in memory."""
        return np.array([row for row in rows.tolist() if row not in self._kept], dtype=np.int64) if self._kept else rows

    def batch(self, rows: np.ndarray, crops: np.ndarray | None = None) -> Batch:
        """Pixels and labels of `rows`; of each photo what `crops` [n, 3] keep."""
        return Batch(rows, self.pixels(rows, crops), torch.from_numpy(self.index.label_matrix(rows)))


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


def in_background(work: Callable[[], Ready]) -> Callable[[], Ready]:
    """Begin `work` in a thread, which ends with the process; returns what waits for its result."""
    found: Future[Ready] = Future()

    def do() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=do, daemon=True, name="background").start()
    return found.result


def uniforms(seed: int, places: np.ndarray, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) for each place, float32 [n, count]: a hash (splitmix64, Steele et al. 2014)."""
    base = np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
    keys = places.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
    mixed = (keys + base) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
