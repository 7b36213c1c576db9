"""From rows of the index to tensors: read by offset, decode, square; augment on the device.

Decoding runs in threads, since Pillow releases the interpreter lock in it. Nothing here draws from a random generator:
augmentation is a hash of (seed, place in the plan), so it depends on neither rank nor thread.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from facetclip.config import Augmentation
from facetclip.errors import UserError
from facetclip.images import BadImage, Fit
from facetclip.index import ShardIndex
from facetclip.squares import square_planes

AHEAD = 2  # batches prepared while one is worked on
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
    """Reads photos as squares; keeps those of `cached` rows in memory when all of them fit `cache_bytes`."""

    def __init__(
        self, index: ShardIndex, size: int, fit: Fit, *, cached: np.ndarray | None = None, threads: int = 2
    ) -> None:
        self.index, self.size = index, size
        self.fit: Fit = fit
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        fits = cached is not None and len(cached) * size * size * 3 <= CACHE_BYTES
        self._cached = cached if fits and cached is not None else np.zeros(0, dtype=np.int64)
        self._kept = np.zeros((len(self._cached), 3, size, size), dtype=np.uint8)
        self._known = np.zeros(len(self._cached), dtype=bool)

    def square(self, row: int) -> np.ndarray:
        """One photo as uint8 [3, size, size]; UserError naming item and reason when it cannot be decoded."""
        try:
            return square_planes(self.index.read(row), self.size, self.fit)
        except BadImage as bad:
            raise UserError(f"{self.index.store}: item {self.index.item_id(row)!r}: {bad}") from bad

    def pixels(self, rows: np.ndarray) -> Tensor:
        """Photos of `rows` as uint8 [n, 3, size, size]."""
        places = np.searchsorted(self._cached, rows) if len(self._cached) else np.zeros(len(rows), dtype=np.int64)
        known = np.zeros(len(rows), dtype=bool)
        inside = places < len(self._cached)
        inside[inside] = self._cached[places[inside]] == rows[inside]
        known[inside] = self._known[places[inside]]
        out = np.empty((len(rows), 3, self.size, self.size), dtype=np.uint8)
        out[known] = self._kept[places[known]]
        missing = np.flatnonzero(~known)
        for at, square in zip(missing, self._pool.map(self.square, rows[missing]), strict=True):
            out[at] = square
        new = missing[inside[missing]]
        self._kept[places[new]] = out[new]
        self._known[places[new]] = True
        return torch.from_numpy(out)

    def coming(self, portions: Iterable[Portion], rows_of: Callable[[Portion], np.ndarray]) -> Iterator[Portion]:
        """The same portions; shards that must be brought from elsewhere come ahead of them."""
        return self.index.coming(portions, lambda portion: self._unknown(rows_of(portion)))

    def _unknown(self, rows: np.ndarray) -> np.ndarray:
        """Those of `rows` that are not in memory."""
        return rows[~np.isin(rows, self._cached[self._known])] if len(self._cached) else rows

    def batch(self, rows: np.ndarray) -> Batch:
        """Pixels and labels of `rows`."""
        return Batch(rows, self.pixels(rows), torch.from_numpy(self.index.label_matrix(rows)))


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


def augment(pixels: Tensor, draws: Tensor, spec: Augmentation) -> Tensor:
    """uint8 [n, 3, s, s] -> floats in 0..1: cropped, flipped, lightened as `draws` [n, 5] say.

    A crop keeps at least `smallest_crop` of each edge and is scaled back; brightness changes by up to its share.
    """
    side = 1 - (1 - spec.smallest_crop) * draws[:, 0]
    mirror = torch.where(draws[:, 1] < 0.5, -1.0, 1.0) if spec.flip else torch.ones_like(side)
    shift = (1 - side)[:, None] * (2 * draws[:, 2:4] - 1)
    theta = torch.zeros(len(pixels), 2, 3, device=pixels.device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = side * mirror, side, shift
    grid = functional.affine_grid(theta, list(pixels.shape), align_corners=False)
    cropped = functional.grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    light = 1 + spec.brightness * (2 * draws[:, 4] - 1)
    return cropped.mul_(light[:, None, None, None] / 255).clamp_(0, 1)
