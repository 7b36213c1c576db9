"""The plan: which items make up each global batch, a pure function of (labels, products, spec, seed, epoch).

1. Every item gets an expected number of draws, by iterative proportional fitting (raking, Deming and Stephan 1940) of
   one factor a value, until every attribute's labelled draws are spread as the strategy asks, no item above
   `max_repeats`. Items with the same labels are drawn alike, so it is done once for all of them.
2. Whole numbers of draws come from systematic sampling (Madow 1949) over the items sorted by their labels, so no
   value's count strays from its share by more than one. The start moves on by the golden ratio from epoch to epoch,
   which visits the items of frequent values in turn instead of leaving some out by chance.
3. The draws, sorted by label, are dealt to the batches like cards, so every batch has the mix of the whole epoch; then
   views of one product that met in a batch change places with draws of the same label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from facetclip.errors import UserError
from facetclip.windows import deal_in_windows, shard_places, windows_of

Strategy = Literal["balanced", "square_root", "natural"]
POWERS: dict[Strategy, float] = {"balanced": 0.0, "square_root": 0.5, "natural": 1.0}
ROUNDS = 60  # of raking; one attribute converges in one, ten with gaps in some ten
FULL_ROUNDS = 3  # over all kinds of items, after the factors were fitted on a sample of them
SAMPLE = 200_000
TOLERANCE = 2e-3
FARTHEST = 1e4  # times the cap: where others at their cap leave a value short, its factor would grow for ever
MOST_CODES = 1 << 12  # of an attribute; labels above (bit masks) are numbered anew
GOLDEN = (5**0.5 - 1) / 2
TRIES = 48  # places with which a view that met another of its product may change
ORDER, OFFSET, DEAL, BATCH, PLACE, SUBSET, FIT, WINDOW = range(8)  # what a random stream decides


@dataclass(frozen=True)
class SamplingSpec:
    """`batch`: items in a global batch. `strategy`: values of an attribute drawn equally often, as the square root of
    how often they occur, or as they occur. `over`: the attributes it is about, none for all. `max_repeats`: an epoch.
    `window`: how many shards are drawn from at a time (see `facetclip.windows`), None for all.
    """

    batch: int
    strategy: Strategy = "balanced"
    over: tuple[str, ...] = ()
    max_repeats: int = 4
    window: int | None = None


def plan_epoch(
    labels: Mapping[str, np.ndarray],
    products: np.ndarray,
    spec: SamplingSpec,
    *,
    seed: int,
    epoch: int,
    shards: np.ndarray | None = None,
) -> np.ndarray:
    """Places of the items of each global batch, int64 [steps, batch].

    `labels`: attribute -> label of each item [n], negative where there is none (a bit mask counts as one value);
    `products` [n]; `shards` [n], where a window is asked for, which changes the order of an epoch's draws and nothing
    else. Items without any label teach nothing and are left out; with `natural` every other item is drawn,
    and the last batch is filled up. UserError when nothing is labelled or a batch cannot be filled.
    """
    useful = _useful(labels)
    natural = spec.strategy == "natural"
    repeats = 1 if natural else spec.max_repeats
    if spec.batch > len(useful) * repeats:
        raise UserError(
            f"a batch of {spec.batch} cannot be filled: {len(useful)} labelled items, repeated {repeats} times at most"
        )
    steps = -(-len(useful) // spec.batch) if natural else max(1, len(useful) // spec.batch)
    balanced = [labels[name][useful] for name in spec.over or labels]
    others = [labels[name][useful] for name in labels if spec.over and name not in spec.over]
    codes = [_codes(column) for column in balanced]
    key = _sort_key([*codes, *map(_codes, others)])
    product = _numbered(products[useful])
    views = _views(product)
    order = _shuffled(*views, _stream(seed, 0, ORDER))
    order = order[np.argsort(_narrow(key[order]), kind="stable")]
    kinds = _runs(key[order])
    draws = steps * spec.batch
    first = order[np.cumsum(kinds) - kinds]
    expected = expected_draws([code[first] for code in codes], kinds, draws, spec, seed=seed)
    offset = (_stream(seed, 0, OFFSET).random() + epoch * GOLDEN) % 1
    counts, kind = np.empty(len(order), dtype=np.int32), np.empty(len(order), dtype=np.int32)
    counts[order] = systematic_counts(np.repeat(expected, kinds), draws, offset)
    kind[order] = np.repeat(np.arange(len(kinds), dtype=np.int32), kinds)
    drawn = _shuffled(*views, _stream(seed, epoch, DEAL))
    drawn = np.repeat(drawn, counts[drawn])
    deck = drawn[_in_order(kind[drawn])]
    alike, random = codes[0], _stream(seed, epoch, BATCH)
    if spec.window is None or shards is None:
        within, dealt = None, deck.reshape(spec.batch, steps)[:, random.permutation(steps)]
    else:
        window, within = windows_of(shard_places(shards[useful], _stream(seed, epoch, WINDOW)), spec.window)
        dealt = deal_in_windows(deck, window[deck], spec.batch, random)
        alike = window * (int(alike.max(initial=0)) + 1) + alike
    _part_views(dealt, product, alike)
    plan = _stream(seed, epoch, PLACE).permuted(dealt.T, axis=1)
    if within is not None:
        plan = np.take_along_axis(plan, np.argsort(within[plan], axis=1, kind="stable"), axis=1)
    return useful[plan]


def _useful(labels: Mapping[str, np.ndarray]) -> np.ndarray:
    known = np.zeros(len(next(iter(labels.values()))), dtype=bool)
    for column in labels.values():
        known |= column >= 0
    if not known.any():
        raise UserError("no item of the training split carries a label; label some, or check the schema's values")
    return np.flatnonzero(known)


def _stream(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed % 2**63, epoch, purpose))))


def _codes(column: np.ndarray) -> np.ndarray:
    """0 where there is no label, else from 1; in as few bytes as it takes."""
    most = int(column.max(initial=-1))
    if most >= MOST_CODES:
        values, numbered = np.unique(np.maximum(column, -1), return_inverse=True)
        return (numbered + (1 if values[0] >= 0 else 0)).astype(np.int32)
    return np.maximum(column, -1).astype(np.int16) + np.int16(1)


def _sort_key(codes: Sequence[np.ndarray]) -> np.ndarray:
    """int64 [n]: sorts by the first attribute, then the next."""
    key = np.zeros(len(codes[0]), dtype=np.int64)
    top = 1
    for code in codes:
        base = int(code.max(initial=0)) + 1
        if top * base >= 2**62:
            key = np.unique(key, return_inverse=True)[1].astype(np.int64)
            top = int(key.max(initial=0)) + 1
        key *= base
        key += code
        top *= base
    return key


def _numbered(products: np.ndarray) -> np.ndarray:
    """int32 [n]: the same products counted from 0 without large gaps."""
    if products.max(initial=0) <= 4 * len(products) and products.min(initial=0) >= 0:
        return products.astype(np.int32)
    return np.unique(products, return_inverse=True)[1].astype(np.int32)


def _views(product: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The items by their product's number [n], and how many views each product has [products]."""
    return np.argsort(product, kind="stable"), np.bincount(product)


def _shuffled(items: np.ndarray, views: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """int64 [n]: the items, products in random order, the views of one side by side; both arrays from `_views`."""
    turns = random.permutation(len(views))
    shift = (np.cumsum(views) - views)[turns]
    views = views[turns]
    shift -= np.cumsum(views) - views
    return items[np.repeat(shift, views) + np.arange(len(items))]


def _runs(key: np.ndarray) -> np.ndarray:
    """int64 [runs]: the lengths of the runs of equal neighbours."""
    ends = np.flatnonzero(key[1:] != key[:-1]) + 1
    return np.diff(ends, prepend=0, append=len(key))


def _narrow(key: np.ndarray) -> np.ndarray:
    """The same order in the smallest type: numpy sorts 16-bit keys by radix, many times faster."""
    most = int(key.max(initial=0))
    return key.astype(np.uint16 if most < 2**16 else np.uint32 if most < 2**32 else np.int64)


def _in_order(key: np.ndarray) -> np.ndarray:
    """As a stable argsort of `key` [n], 32 bits: by its lower half, then by its upper, each a radix sort."""
    order = np.argsort(key.astype(np.uint16), kind="stable")
    return order[np.argsort((key >> 16).astype(np.uint16)[order], kind="stable")]


def expected_draws(
    codes: Sequence[np.ndarray], sizes: np.ndarray, draws: int, spec: SamplingSpec, *, seed: int
) -> np.ndarray:
    """Expected draws of an item of each kind [kinds], summing to `draws` over all items, none above `spec.max_repeats`.

    An item's is the product of one factor for each of its values, cut off at the cap; the factors are those at which
    each attribute's labelled draws are spread as the strategy asks, as far as the others and the cap allow. Of many
    kinds a sample settles the factors, and a few rounds over all of them what the sample got wrong. `codes`: per
    attribute [kinds], 0 where unlabelled; `sizes` [kinds]: the items with these labels. With `natural` all alike.
    """
    ends, cap = np.cumsum(sizes), float(spec.max_repeats)
    items, many = int(ends[-1]), len(sizes) > 2 * SAMPLE
    weight = np.full(len(sizes), draws / items)
    if spec.strategy == "natural":
        return weight
    shares = [shares_of(np.bincount(code, sizes)[1:], spec.strategy) for code in codes]
    if many:
        sample = np.searchsorted(ends, _stream(seed, 0, FIT).integers(0, items, SAMPLE), side="right")
        sampled = [code[sample].astype(np.intp) for code in codes]
        factors = _rake(sampled, shares, weight[sample], np.ones(SAMPLE), cap, ROUNDS)
        for code, factor in zip(codes, factors, strict=True):
            weight *= factor[code]
    sizes = sizes.astype(np.float64)
    weight *= _level(weight, sizes, cap, draws)
    _rake(codes, shares, weight, sizes, cap, FULL_ROUNDS if many else ROUNDS)
    for _ in range(2):  # the second for what rounding left
        weight *= _level(weight, sizes, cap, draws)
        np.minimum(weight, cap, out=weight)
    return weight


def shares_of(counts: np.ndarray, strategy: Strategy) -> np.ndarray:
    """What part of an attribute's labelled draws each value is to have; nothing for a value that nobody carries."""
    wanted = np.where(counts > 0, counts.astype(np.float64) ** POWERS[strategy], 0.0)
    return wanted / max(wanted.sum(), 1e-300)


def _rake(
    codes: Sequence[np.ndarray],
    shares: Sequence[np.ndarray],
    weight: np.ndarray,
    sizes: np.ndarray,
    cap: float,
    rounds: int,
) -> list[np.ndarray]:
    """The factors, per attribute [1 + values], that `weight` was multiplied by, in place; it is not cut at `cap`."""
    total = float(np.minimum(weight, cap) @ sizes)
    factors = [np.ones(len(share) + 1) for share in shares]
    most = [np.bincount(code, sizes, len(share) + 1)[1:] * cap for code, share in zip(codes, shares, strict=True)]
    for _ in range(rounds):
        worst = 0.0
        for code, share, room, factor in zip(codes, shares, most, factors, strict=True):
            mass = np.bincount(code, np.minimum(weight, cap) * sizes, len(share) + 1)[1:]
            wanted = _poured(share, room, mass.sum())
            step = np.ones(len(share) + 1)
            step[1:] = np.where(mass > 0, wanted / np.maximum(mass, 1e-300), 1.0)
            step[1:][mass >= 0.999 * room] = 1.0  # no factor draws more of what is at its cap
            factor *= step
            weight *= step[code]
            np.minimum(weight, cap * FARTHEST, out=weight)
            worst = max(worst, float(np.abs(step - 1).max()))
        weight *= _level(weight, sizes, cap, total)
        if worst <= TOLERANCE:
            break
    return factors


def _poured(share: np.ndarray, room: np.ndarray, total: float) -> np.ndarray:
    """`total` spread as `share` says, none above its `room`: what one cannot take goes to the others."""
    full = np.zeros(len(share), dtype=bool)
    spread = np.zeros(len(share))
    for _ in range(len(share)):
        rest = share[~full].sum()
        spread = np.where(full, room, share * (total - room[full].sum()) / max(rest, 1e-300))
        over = ~full & (spread > room)
        if not over.any():
            break
        full |= over
    return spread


def _level(weight: np.ndarray, sizes: np.ndarray, cap: float, total: float) -> float:
    """The factor at which the weights, each cut off at `cap`, sum to `total` over all items (water filling)."""
    level = 1.0
    for _ in range(12):
        free = sizes * (weight < cap / level)
        mass = float(weight @ free)
        if mass <= 0:
            break
        step = (total - cap * (sizes - free).sum()) / mass / level
        level *= max(step, 0.1)
        if abs(step - 1) < 1e-6:
            break
    return level


def systematic_counts(expected: np.ndarray, total: int, offset: float) -> np.ndarray:
    """Whole counts summing to `total`, each within one of `expected`, as is every run of neighbours.

    Systematic sampling (Madow 1949) with the start `offset` in [0, 1).

    >>> systematic_counts(np.array([1.5, 1.5, 1.0]), 4, 0.5).tolist()
    [2, 1, 1]
    """
    edges = np.floor(np.cumsum(expected) + (offset + 1e-9)).astype(np.int64)
    edges[-1] = total  # whatever rounding did to the sum
    return np.diff(np.minimum.accumulate(edges[::-1])[::-1], prepend=0)


def _part_views(dealt: np.ndarray, product: np.ndarray, code: np.ndarray) -> None:
    """Swap draws within a row of `dealt` [batch, steps], whose columns are the batches, where a batch has two of one
    product and another batch has a draw of the same first label to give; in place."""
    steps = dealt.shape[1]
    if steps < 2:
        return
    of = product[dealt]
    column_first = np.argsort(of, axis=0, kind="stable")
    ranked = np.take_along_axis(of, column_first, axis=0)
    again = np.argwhere(ranked[1:] == ranked[:-1])
    rows, columns = column_first[again[:, 0] + 1, again[:, 1]], again[:, 1]
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        mine = of[row, column]
        if (of[:, column] == mine).sum() < 2:
            continue  # an earlier swap has parted them
        reach = (column + 1 + np.arange(min(TRIES, steps - 1))) % steps
        fits = (code[dealt[row, reach]] == code[dealt[row, column]]) & (of[row, reach] != mine)
        for other in reach[fits].tolist():
            theirs = of[row, other]
            if not (of[:, other] == mine).any() and not (of[:, column] == theirs).any():
                dealt[row, [column, other]] = dealt[row, [other, column]]
                of[row, [column, other]] = of[row, [other, column]]
                break


def labelled_subset(labels: Mapping[str, np.ndarray], products: np.ndarray, items: int, *, seed: int) -> np.ndarray:
    """Places of `items` labelled items, fewer where fewer are labelled, as someone would pick them to be labelled.

    The values take turns, the rarest first, each with its next item in a shuffled order: so small sets hold every
    value, and the set of n lies within that of any larger number for the same seed.
    """
    useful = _useful(labels)
    product = _numbered(products[useful])
    order = useful[np.argsort(_stream(seed, 0, SUBSET).permutation(int(product.max()) + 1)[product], kind="stable")]
    queues: list[np.ndarray] = []
    for column in labels.values():
        values, counts = np.unique(column[useful][column[useful] >= 0], return_counts=True)
        queues += [order[column[order] == value] for value in values[np.argsort(counts, kind="stable")]]
    queues.sort(key=len)
    taken, places = np.zeros(len(next(iter(labels.values()))), dtype=bool), [0] * len(queues)
    chosen: list[int] = []
    while len(chosen) < min(items, len(useful)):
        for number, queue in enumerate(queues):
            while places[number] < len(queue) and taken[queue[places[number]]]:
                places[number] += 1
            if places[number] < len(queue) and len(chosen) < items:
                taken[queue[places[number]]] = True
                chosen.append(int(queue[places[number]]))
    return np.array(chosen, dtype=np.int64)
