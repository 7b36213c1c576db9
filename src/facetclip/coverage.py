"""How many answers can be given, the surest first, while a wanted share of them is right. NumPy only.

The risk-coverage curve of selective classification (El-Yaniv and Wiener, "On the Foundations of Noise-free Selective
Classification", 2010). Where to cut is read off the very items that are counted, so this says what a model's ranking of
its answers is worth; what its own cut-offs, fitted on other items, keep is another question (`abstention`).
"""

import itertools
from dataclasses import dataclass

import numpy as np

from facetclip.abstention import answers
from facetclip.schema import Attribute

TARGETS = {"coverage_90": 0.9, "coverage_95": 0.95, "coverage_99": 0.99}  # metric -> share of answers to be right
SLACK = 1e-9  # so that 0.95 of 140 answers are 133 of them, whatever floating point makes of it
MOST_STEPS = 1_000  # places to cut at; of more, so many are tried
MOST_POINTS = 100  # of a curve to be drawn


@dataclass(frozen=True)
class Ranking:
    """Answers from the surest to the least sure: the group of products that each belongs to, int [n], whether it is
    right, bool [n], and where it can be cut, int [steps]: behind which of those that are equally sure."""

    groups: np.ndarray
    right: np.ndarray
    ends: np.ndarray


def rank(attribute: Attribute, listed: np.ndarray, probabilities: np.ndarray, groups: np.ndarray) -> Ranking:
    """The ranking of what items of `groups` [n] are read as, by `probabilities` [n, values], against what they list,
    bool [n, values]: right where it is exactly that."""
    shown, sure = answers(attribute, probabilities)
    right = (shown == listed).all(axis=1)
    order = np.argsort(-sure, kind="stable")
    ends = np.flatnonzero(np.diff(sure[order], append=-np.inf))
    return Ranking(groups[order], right[order], _thinned(ends, MOST_STEPS))


def _thinned(ends: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the places `ends`, ascending, spread evenly over the answers; the last one always."""
    if len(ends) <= most:
        return ends
    wanted = np.linspace(0, ends[-1], most)
    return np.unique(ends[np.searchsorted(ends, wanted)])


def coverage(ranking: Ranking, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Metric of TARGETS -> the largest share [draws] of the answers that can be given, where each group counts as often
    as `weights` [groups, draws] say; NaN where none counts.

    >>> four = Ranking(np.arange(4), np.array([True, True, True, False]), np.arange(4))
    >>> {name: share.tolist() for name, share in coverage(four, np.ones((4, 1), int)).items()}
    {'coverage_90': [0.75], 'coverage_95': [0.75], 'coverage_99': [0.75]}
    """
    step = np.searchsorted(ranking.ends, np.arange(len(ranking.groups)))
    given, hits = (
        np.cumsum(_by_step(len(ranking.ends), step[kept], ranking.groups[kept], weights), axis=0)
        for kept in (slice(None), ranking.right)
    )
    with np.errstate(invalid="ignore"):
        return {
            name: np.where(hits >= target * given - SLACK, given, 0).max(axis=0) / given[-1]
            for name, target in TARGETS.items()
        }


def _by_step(steps: int, step: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How often the answers of each step count, int [steps, draws]; `step` [n] of each answer is ascending."""
    out = np.zeros((steps, weights.shape[1]), dtype=np.int32)
    bounds = np.searchsorted(step, np.arange(steps + 1)).tolist()
    for place, (first, last) in enumerate(itertools.pairwise(bounds)):  # ten times as fast as np.add.reduceat
        if last - first <= len(weights):
            np.add.reduce(weights[groups[first:last]], axis=0, out=out[place])
        else:  # very many answers that are equally sure
            out[place] = np.bincount(groups[first:last], minlength=len(weights)) @ weights
    return out


def curve(ranking: Ranking) -> tuple[tuple[float, float], ...]:
    """(share of the answers given, share of those that is right), from the surest on, at most MOST_POINTS of them.

    >>> curve(Ranking(np.arange(4), np.array([True, True, False, True]), np.array([1, 3])))
    ((0.5, 1.0), (1.0, 0.75))
    """
    ends, hits = _thinned(ranking.ends, MOST_POINTS), np.cumsum(ranking.right)
    given = ends + 1
    points = zip(given / len(ranking.groups), hits[ends] / given, strict=True)
    return tuple((round(float(x), 4), round(float(y), 4)) for x, y in points)
