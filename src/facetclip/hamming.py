"""All pairs among millions of 64-bit hashes that differ in few bits, without comparing every pair.

Cut the bits into `most + k` blocks: two hashes that differ in at most `most` bits have k blocks alike (multi-index
hashing, Norouzi et al. 2012). So for each choice of k blocks the hashes are sorted by these, and only those that agree
in them are compared. A larger k sorts more often and compares less; the hashes themselves say which is best.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

BITS = 64
FARTHEST = 12  # bits; beyond, hashes that differ so much need agree in hardly anything
MOST_ALIKE = 4  # the largest k
MOST_STEPS = 2000  # hashes behind it, among those that agree, that each is compared with
PORTION = 1 << 20  # hashes compared at a time, which bounds the memory
SORTING, COMPARING = 180.0, 20.0  # nanoseconds to sort a hash, and to compare a pair

Keep = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Pairs:
    """`first` < `second`, int64 [pairs]: places of hashes that differ in `distance`, uint8 [pairs], bits; ascending.

    `crowded`: how many hashes agree with so many that not all of those were compared; pairs of theirs may be missing.
    """

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray
    crowded: int


def near_pairs(hashes: np.ndarray, most: int, keep: Keep | None = None) -> Pairs:
    """The pairs of `hashes`, uint64 [n], that differ in at most `most` bits (0 to FARTHEST), each once.

    `keep(first, second)` says which of some places' pairs are wanted. All pairs are found, but for crowds (`Pairs`).
    """
    if not 0 <= most <= FARTHEST:
        raise ValueError(f"most: expected 0 to {FARTHEST} bits, found {most}")
    alike = _alike(hashes, most)
    blocks = _blocks(most + alike)
    crowd = np.zeros(len(hashes), dtype=bool)
    found = [np.empty((2, 0), np.int64)]
    for chosen in combinations(range(len(blocks)), alike):
        others = [np.uint64(blocks[block]) for block in range(chosen[-1]) if block not in chosen]
        for pair in _agreeing(hashes, sum(blocks[block] for block in chosen), most, crowd):
            differ = hashes[pair[0]] ^ hashes[pair[1]]
            new = np.ones(len(differ), dtype=bool)  # those that no earlier choice has found
            for other in others:
                new &= (differ & other) != 0
            pair = np.sort(pair[:, new], axis=0)
            found.append(pair if keep is None else pair[:, keep(*pair)])
    first, second = np.concatenate(found, axis=1)
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    return Pairs(first, second, np.bitwise_count(hashes[first] ^ hashes[second]), int(crowd.sum()))


def _blocks(count: int) -> list[int]:
    """Masks of the bits of each block; neighbouring bits, which are often alike, go to different ones."""
    return [sum(1 << bit for bit in range(block, BITS, count)) for block in range(count)]


def _alike(hashes: np.ndarray, most: int) -> int:
    """The k that costs least, by how many pairs agree in one choice of blocks."""

    def cost(alike: int) -> float:
        blocks = _blocks(most + alike)
        runs = np.unique(hashes & np.uint64(sum(blocks[most:])), return_counts=True)[1].astype(float)
        return comb(most + alike, alike) * (SORTING * len(hashes) + COMPARING * float((runs * (runs - 1) / 2).sum()))

    return min(range(1, MOST_ALIKE + 1), key=cost)


def _agreeing(hashes: np.ndarray, mask: int, most: int, crowd: np.ndarray) -> Iterator[np.ndarray]:
    """Places of pairs, int64 [2, some], the same under `mask` and not more than `most` bits apart.

    Hashes whose pairs are not all compared are marked in `crowd`.
    """
    order = np.argsort(hashes & np.uint64(mask))
    ordered = hashes[order]
    keys = ordered & np.uint64(mask)
    for start in range(0, len(keys), PORTION):
        active = np.arange(start, min(start + PORTION, len(keys)))
        for step in range(1, MOST_STEPS + 1):
            active = active[: np.searchsorted(active, len(keys) - step)]
            active = active[keys[active] == keys[active + step]]
            if not len(active):
                break
            near = active[np.bitwise_count(ordered[active] ^ ordered[active + step]) <= most]
            yield order[np.stack([near, near + step])]
        else:
            crowd[order[active]] = True
