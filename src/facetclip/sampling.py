"""The plan: which items make up each global batch, a pure function of (labels, spec, seed, epoch).

Items that carry the same labels form a cell. Cells are weighted by iterative proportional fitting (raking, Deming and
Stephan 1940) until every attribute's labelled values weigh the same, as far as `max_repeats` lets rare ones be
repeated; whole numbers of draws come from systematic sampling, so no count strays from its share by more than one; and
draws are dealt to the batches like cards from a deck sorted by cell, so every batch has the mix of the whole epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from facetclip.errors import UserError

ROUNDS = 50  # of raking; one attribute converges in one, ten with gaps in about twenty
TOLERANCE = 1e-3
ITEM, DRAW, BATCH, PLACE = range(4)  # what a random stream decides


@dataclass(frozen=True)
class SamplingSpec:
    """`batch`: items in a global batch. `balanced`: values drawn equally often; otherwise as they occur."""

    batch: int
    balanced: bool = True
    max_repeats: int = 4


@dataclass(frozen=True)
class Cells:
    """Items grouped by labels: cell c, labelled `labels[:, c]`, holds `order[start[c] : start[c] + size[c]]`."""

    order: np.ndarray
    start: np.ndarray
    size: np.ndarray
    labels: np.ndarray


def group_cells(labels: Mapping[str, np.ndarray]) -> Cells:
    """The cells of `labels` (attribute -> label of each item [n]), sorted by the first attribute, then the next."""
    columns = [np.unique(column, return_inverse=True) for column in labels.values()]
    count = len(columns[0][1])
    key = np.zeros(count, dtype=np.int64)
    for values, codes in columns:
        if int(key.max(initial=0) + 1) * len(values) >= 2**62:
            key = np.unique(key, return_inverse=True)[1].astype(np.int64)
        key *= len(values)
        key += codes
    order = np.argsort(_narrow(key), kind="stable")
    key = key[order]
    start = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if count else np.zeros(0, dtype=np.int64)
    size = np.diff(np.r_[start, count])
    first = order[start]
    return Cells(order, start, size, np.stack([column[first] for column in labels.values()]))


def _narrow(key: np.ndarray) -> np.ndarray:
    """The same order in the smallest type: numpy sorts 16-bit keys by radix, many times faster."""
    most = int(key.max(initial=0))
    return key.astype(np.uint16 if most < 2**16 else np.uint32 if most < 2**32 else np.int64)


def rake(cells: Cells, draws: int, max_repeats: int) -> np.ndarray:
    """Expected draws of each cell, summing to `draws`, no item more than `max_repeats` times.

    Each attribute's labelled draws are spread evenly over its values as far as the other attributes and the cap allow.
    """
    cap = cells.size * float(max_repeats)
    expected = _fill(cells.size.astype(np.float64), cap, draws)
    columns = [np.unique(row, return_inverse=True) for row in cells.labels]
    for _ in range(ROUNDS):
        before = expected
        for values, codes in columns:
            target = np.bincount(codes, weights=expected)
            labelled = values >= 0
            if labelled.any():
                share = np.where(labelled, target[labelled].mean() / np.maximum(target, 1e-300), 1.0)
                expected = _fill(expected * share[codes], cap, draws)
        if np.abs(expected - before).max() <= TOLERANCE * max(1.0, expected.max()):
            break
    return expected


def _fill(weight: np.ndarray, cap: np.ndarray, total: float) -> np.ndarray:
    """`weight` scaled to sum to `total` with no entry above `cap` (water filling); `total` <= cap.sum()."""
    full = np.zeros(len(weight), dtype=bool)
    while True:
        room = total - cap[full].sum()
        mass = weight[~full].sum()
        scaled = np.where(full, cap, weight * (room / mass if mass > 0 else 0.0))
        over = ~full & (scaled > cap)
        if not over.any():
            return scaled
        full |= over


def systematic_counts(expected: np.ndarray, total: int, offset: float) -> np.ndarray:
    """Whole counts summing to `total`, each within one of `expected`, as is every run of neighbours.

    Systematic sampling (Madow 1949) with the start `offset` in [0, 1).

    >>> systematic_counts(np.array([1.5, 1.5, 1.0]), 4, 0.5).tolist()
    [2, 1, 1]
    """
    edges = np.floor(np.cumsum(expected) + offset).astype(np.int64)
    edges[-1] = total  # whatever rounding did to the sum
    return np.diff(np.minimum.accumulate(edges[::-1])[::-1], prepend=0)


def plan_epoch(labels: Mapping[str, np.ndarray], spec: SamplingSpec, *, seed: int, epoch: int) -> np.ndarray:
    """The rows of each global batch, [steps, batch]; `labels`: attribute -> label of each candidate item [n].

    Items without any label teach nothing and are left out. Successive epochs walk through each cell, so that none of
    its items is drawn twice before all have been drawn once. UserError when nothing is labelled or a batch cannot be
    filled.
    """
    useful = np.flatnonzero(np.any([column >= 0 for column in labels.values()], axis=0))
    repeats = spec.max_repeats if spec.balanced else 1
    if not len(useful):
        raise UserError("no item of the training split carries a label; label some, or check the schema's values")
    if spec.batch > len(useful) * repeats:
        raise UserError(
            f"a batch of {spec.batch} cannot be filled: {len(useful)} labelled items, repeated {repeats} times at most"
        )
    steps = max(1, len(useful) // spec.batch)
    draws = steps * spec.batch
    cells = group_cells({name: column[useful] for name, column in labels.items()})
    expected = rake(cells, draws, repeats) if spec.balanced else cells.size * (draws / len(useful))
    offset = _stream(seed, epoch, DRAW).random()
    counts = systematic_counts(expected, draws, offset)
    rows = useful[_draw(cells, counts, expected, seed=seed, epoch=epoch)]
    return _deal(rows, steps, _stream(seed, epoch, BATCH), _stream(seed, epoch, PLACE))


def _stream(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed % 2**63, epoch, purpose))))


def _draw(cells: Cells, counts: np.ndarray, expected: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """`counts[c]` items of each cell c, laid cell after cell.

    Each cell's own fixed shuffle is read on from where the epoch before stopped.
    """
    shuffle = _stream(seed, 0, ITEM).permutation(len(cells.order)).astype(np.int32)
    cell_of = np.repeat(np.arange(len(cells.size), dtype=np.int32), cells.size)
    # Sorting a global shuffle by cell, stably, shuffles within each cell.
    shuffled = cells.order[shuffle[np.argsort(_narrow(cell_of[shuffle]), kind="stable")]]
    done = np.floor(expected * epoch).astype(np.int64)
    first = np.repeat(cells.start, counts)
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return shuffled[first + (within + np.repeat(done, counts)) % np.repeat(cells.size, counts)]


def _deal(rows: np.ndarray, steps: int, batches: np.random.Generator, places: np.random.Generator) -> np.ndarray:
    """Deal sorted `rows` to batches in turn, then shuffle the order of batches and the places inside each."""
    dealt = rows.reshape(-1, steps).T[batches.permutation(steps)]
    return places.permuted(dealt, axis=1)
