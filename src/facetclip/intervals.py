"""How far a number may be off, and a difference of two: 95% intervals by drawing products anew. NumPy only.

Photos of one product are no independent witnesses, so whole products are drawn with replacement, as many as there are
(Efron's bootstrap by cluster: Field and Welsh, "Bootstrapping clustered data", 2007). Every number here is computed
from sums over items: each product's sums are taken once, and all draws are one matrix product. Models, attributes and
numbers of one call share their draws, so differences between them are paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist

import numpy as np

from facetclip.calibration import BINS
from facetclip.coverage import Ranking, coverage, rank
from facetclip.metrics import absent, answers, listed_values, log_losses, read_values
from facetclip.schema import Attribute

NOT_APPLICABLE_F1 = "not_applicable_f1"  # where something predicts that an attribute cannot apply
RESAMPLES = 1_000
ENDS = (0.025, 0.975)
SEED = 20_260_101
MOST_GROUPS = 10_000  # products beyond share groups, which then are drawn whole
PORTION = 4_000_000  # weights at a time
NORMAL = NormalDist()
MOST_MOVED = 1.0  # standard deviations
FEWEST_PRODUCTS = 30  # from how many on an interval can be trusted

Draws = Mapping[str, np.ndarray]  # metric -> [1 + RESAMPLES]: the number itself, then that of each draw


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Tally:
    """What one model's answers about one attribute of `values` values sum up to, over `items` labelled items of
    `products` products: `sums` [groups of products, columns], the last three of `detected`: of "not applicable".
    `ranking`: the answers themselves, where coverage is asked for."""

    values: int
    items: int
    products: int
    sums: np.ndarray
    detected: bool = False
    ranking: Ranking | None = None


def groups_of(products: np.ndarray) -> np.ndarray:
    """The group of each item, int [n], from 0: its product, or where there are very many a few products together."""
    return np.unique(products, return_inverse=True)[1] % MOST_GROUPS


def tally(
    attribute: Attribute,
    labels: np.ndarray,
    probabilities: np.ndarray,
    products: np.ndarray,
    *,
    excluded: np.ndarray | None = None,
    ranked: bool = False,
) -> Tally | None:
    """The sums of `probabilities` [n, values] against `labels` [n], of items of `products` [n]; None where nothing is
    labelled. Tallies of the same items in any order have the same groups.

    `excluded` bool [n]: where the attribute is predicted not to apply; `ranked`: keep what coverage is computed from.
    """
    groups = groups_of(products)
    size = int(groups.max(initial=-1)) + 1
    every = listed_values(attribute, labels)
    known = every.any(axis=1)
    if not known.any():
        return None
    listed, probable, group = every[known], probabilities[known].astype(np.float64), groups[known]
    read = read_values(attribute, probable)
    right = np.take_along_axis(listed, probable.argmax(axis=1)[:, None], axis=1)
    each = [listed & read, listed, read, np.ones_like(right), right, log_losses(attribute, listed, probable)[:, None]]
    columns = [np.bincount(group, column, size) for part in each for column in part.T]
    sure, correct = answers(attribute, listed, probable)
    place = np.repeat(group, len(sure) // len(group)) * BINS + np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    binned = [np.bincount(place, weights, size * BINS).reshape(size, BINS) for weights in (sure, correct, None)]
    told = None if excluded is None else absent(attribute, labels, excluded)
    found = [] if told is None else [np.bincount(groups, each, size) for each in (told[0], told[1], told[0] & told[1])]
    return Tally(
        values=len(attribute.values),
        items=int(known.sum()),
        products=len(np.unique(products[known])),
        sums=np.concatenate([np.stack(columns, axis=1), *binned, *(column[:, None] for column in found)], axis=1),
        detected=bool(found),
        ranking=rank(attribute, listed, probable, group) if ranked else None,
    )


def among(tally: Tally, places: Sequence[int]) -> Tally:
    """The same answers, of which F1 and recall are taken over the values at some `places` alone."""
    known = np.asarray(places, dtype=np.int64)
    columns = [block * tally.values + known for block in range(3)] + [np.arange(3 * tally.values, tally.sums.shape[1])]
    return replace(tally, values=len(known), sums=tally.sums[:, np.concatenate(columns)])


def numbers_of(tally: Tally) -> dict[str, float]:
    """Metric -> number, without an interval."""
    found = _numbers(tally.sums.sum(axis=0, keepdims=True), tally)
    return {name: float(number[0]) for name, number in found.items()}


def draws(models: Sequence[Mapping[str, Tally]]) -> list[dict[str, Draws]]:
    """For each model, attribute -> its numbers, as they are and in each draw of products; NaN where a draw holds
    nothing of the attribute. All tallies are of the same items."""
    every = [each for model in models for each in model.values()]
    if not every:
        return [{} for _ in models]
    weights = _weights(len(every[0].sums))
    upright = np.ascontiguousarray(weights.T, dtype=np.int32) if any(each.ranking for each in every) else weights
    numbers = map(partial(_drawn, weights=upright), _totals_of_each(weights, every), every)
    return [{name: next(numbers) for name in model} for model in models]


def _totals_of_each(weights: np.ndarray, tallies: Sequence[Tally]) -> list[np.ndarray]:
    """`_totals` of every tally, all in one product."""
    sums = [each.sums for each in tallies]
    ends = np.cumsum([each.shape[1] for each in sums])
    return np.split(_totals(weights, np.concatenate(sums, axis=1)), ends[:-1], axis=1)


def _drawn(totals: np.ndarray, tally: Tally, weights: np.ndarray) -> Draws:
    """The metrics of each row of `totals` [n, columns]; with coverage, where asked for, by `weights` [groups, n]."""
    found = _numbers(totals, tally)
    return found if tally.ranking is None else {**found, **coverage(tally.ranking, weights)}


def mean_draws(attributes: Mapping[str, Draws]) -> Draws:
    """The plain mean over the attributes that have a number and that a draw holds."""
    names = dict.fromkeys(name for each in attributes.values() for name in each)
    return {name: mean_of([each[name] for each in attributes.values() if name in each]) for name in names}


def mean_of(numbers: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of several numbers, [n] each, draw by draw, without those that are NaN there."""
    stacked = np.stack(numbers)
    known = ~np.isnan(stacked)
    known[:, 0] = True  # the numbers themselves are all known, or their mean is not
    with np.errstate(invalid="ignore"):
        return np.where(known, stacked, 0).sum(axis=0) / known.sum(axis=0)


def estimate(drawn: np.ndarray) -> Estimate:
    """The number in `drawn` [1 + n] with its interval; NaN throughout where it is no number.

    Draws may lie beside the number: one that lacks a rare value has a mean over the others. The ends are moved by as
    much (the bias-corrected percentile: Efron, "Nonparametric standard errors and confidence intervals", 1981), but by
    no more than MOST_MOVED, where nearly all draws lie on one side, and never past the number.
    """
    value, known = drawn[0], drawn[1:][np.isfinite(drawn[1:])]
    if not np.isfinite(value) or not len(known):
        return Estimate(float(value), float("nan"), float("nan"))
    below = (np.count_nonzero(known < value) + 0.5 * np.count_nonzero(known == value) + 0.5) / (len(known) + 1)
    moved = 2 * min(MOST_MOVED, max(-MOST_MOVED, NORMAL.inv_cdf(below)))
    low, high = np.quantile(known, [NORMAL.cdf(moved + NORMAL.inv_cdf(end)) for end in ENDS])
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


def share(hits: np.ndarray, products: np.ndarray) -> Estimate:
    """The share of true `hits`, bool [n], of items of `products` [n], with its interval."""
    return estimate(share_draws(hits, products))


def share_draws(hits: np.ndarray, products: np.ndarray) -> np.ndarray:
    """The share of true `hits`, bool [n], as it is and in each draw, [1 + RESAMPLES]."""
    groups = groups_of(products)
    sums = np.stack([np.bincount(groups, hits), np.bincount(groups)], axis=1).astype(np.float64)
    totals = _totals(_weights(len(sums)), sums)
    return totals[:, 0] / totals[:, 1]


def _weights(size: int) -> np.ndarray:
    """How often each of `size` groups counts, uint16 [1 + RESAMPLES, size]: once, then as each draw has it."""
    random = np.random.default_rng(SEED)
    rows = max(1, PORTION // size)
    weights = [np.ones((1, size), dtype=np.uint16)]
    for first in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - first)
        chosen = random.integers(0, size, (count, size)) + np.arange(count)[:, None] * size
        weights.append(np.bincount(chosen.ravel(), minlength=count * size).reshape(count, size).astype(np.uint16))
    return np.concatenate(weights)


def _totals(weights: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Totals [1 + RESAMPLES, columns] of `sums` [groups, columns] in each row of `weights`."""
    rows = max(1, PORTION // len(sums))
    portions = [weights[first : first + rows].astype(np.float64) @ sums for first in range(0, len(weights), rows)]
    return np.concatenate(portions)


def _numbers(totals: np.ndarray, tally: Tally) -> Draws:
    """The metrics, as `measure_attribute` defines them, of each row of `totals` [n, columns]."""
    values = tally.values
    hits, listed, read, (items, right, loss), confident, correct, answered, told = np.split(
        totals.T, np.cumsum([values, values, values, 3, BINS, BINS, BINS])
    )
    seen = listed + read
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(seen > 0, 2 * hits / seen, 0).sum(axis=0) / (seen > 0).sum(axis=0)
        recall = np.where(listed > 0, hits / listed, 0).sum(axis=0) / (listed > 0).sum(axis=0)
        found = {
            "accuracy": right / items,
            "macro_f1": f1,
            "balanced_accuracy": recall,
            "log_loss": loss / items,
            "ece": np.abs(confident - correct).sum(axis=0) / answered.sum(axis=0),
        }
        return found | ({NOT_APPLICABLE_F1: 2 * told[2] / (told[0] + told[1])} if tally.detected else {})
