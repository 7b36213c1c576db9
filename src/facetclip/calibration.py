"""Probabilities that mean what they say: one temperature an attribute, and how far confidence and accuracy differ.

Temperature scaling and reliability diagrams as in Guo et al., "On Calibration of Modern Neural Networks" (2017).
"""

from dataclasses import dataclass

import numpy as np

COLDEST, HOTTEST = 0.05, 20.0
PRIOR = 1.0  # how firmly a temperature is held at 1: as firmly as about one row holds it elsewhere
STEPS = 60  # at most; Newton takes about six
CLOSE = 1e-9  # a step this small, relative to where it ends, is the last
BINS = 15


@dataclass(frozen=True)
class ReliabilityBin:
    """The `items` answers given with a probability of [low, high): their mean `confidence`, and the share of them that
    is right, `accuracy`. The last bin holds 1 too."""

    low: float
    high: float
    items: int
    confidence: float
    accuracy: float


def probabilities(logits: np.ndarray, temperature: float, *, multi_valued: bool) -> np.ndarray:
    """Softmax over the values of logits [n, values] / temperature; where multi-valued a sigmoid for each value.

    >>> probabilities(np.array([[0.0, 0.0]]), 1.0, multi_valued=False).tolist()
    [[0.5, 0.5]]
    """
    scaled = logits.astype(np.float64) / temperature
    return np.exp(-np.logaddexp(0, -scaled)) if multi_valued else _softmax(scaled)


def log_loss(logits: np.ndarray, listed: np.ndarray, *, multi_valued: bool) -> float:
    """The mean over rows of -ln(probability of the values listed together), in nats; where multi-valued the mean over
    rows and values of the binary one. Every row of bool `listed` [n, values] lists a value."""
    logits = logits.astype(np.float64)
    if multi_valued:
        return float(np.logaddexp(0, np.where(listed, -logits, logits)).mean())
    return float((_log_sum(logits) - _log_sum(np.where(listed, logits, -np.inf))).mean())


def fit_temperature(logits: np.ndarray, listed: np.ndarray, *, multi_valued: bool) -> float:
    """The temperature, 0.05 to 20, at which logits [n, values] best explain the values listed, bool [n, values].

    Rows that list nothing do not count; without any other it is 1. It minimises the log loss summed over rows (and
    values where multi-valued) plus `PRIOR` * (s - 1 - ln s) for the sharpness s = 1 / temperature: the most probable
    sharpness under a gamma prior with its peak at 1. Both terms are convex in s, and the second is 0 at s = 1, so the
    loss is never above that of temperature 1. The prior matters where rows are few, or all of them right, which alone
    would ask for certainty; with hundreds of rows, some of them wrong, it moves the third digit.
    """
    known = listed.any(axis=1)
    if not known.any():
        return 1.0
    logits, listed = logits[known].astype(np.float64), listed[known]
    low, high, sharpness = 1 / HOTTEST, 1 / COLDEST, 1.0
    for _ in range(STEPS):  # Newton's method, kept between `low` and `high`
        slope, curvature = _derivatives(logits, listed, sharpness, multi_valued=multi_valued)
        low, high = (low, sharpness) if slope > 0 else (sharpness, high)
        ahead = sharpness - slope / curvature if curvature > 0 else 0.0
        ahead = ahead if low < ahead < high else float(np.sqrt(low * high))
        done = abs(ahead - sharpness) <= CLOSE * ahead
        sharpness = ahead
        if done:
            break
    return float(np.clip(1 / sharpness, COLDEST, HOTTEST))


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """The bins of equal width that hold an answer; `confidence` [n]: its probability, `right` bool [n]: whether it was.

    >>> reliability(np.array([0.7, 0.9, 1.0]), np.array([False, True, True]), bins=2)
    (ReliabilityBin(low=0.5, high=1.0, items=3, confidence=0.8666666666666667, accuracy=0.6666666666666666),)
    """
    places = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    items = np.bincount(places, minlength=bins)
    confident = np.bincount(places, weights=confidence, minlength=bins)
    correct = np.bincount(places, weights=right, minlength=bins)
    return tuple(
        ReliabilityBin(
            low=place / bins,
            high=(place + 1) / bins,
            items=int(items[place]),
            confidence=float(confident[place] / items[place]),
            accuracy=float(correct[place] / items[place]),
        )
        for place in np.flatnonzero(items).tolist()
    )


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error: |confidence - accuracy| of the bins of `reliability`, each counting by its items.

    Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning" (2015). 0 without any answer.

    >>> round(calibration_error(np.array([0.5, 0.5, 0.9, 0.9]), np.array([True, False, True, True])), 3)
    0.05
    """
    found = reliability(confidence, right, bins)
    return sum(each.items * abs(each.confidence - each.accuracy) for each in found) / max(len(confidence), 1)


def _derivatives(
    logits: np.ndarray, listed: np.ndarray, sharpness: float, *, multi_valued: bool
) -> tuple[float, float]:
    """Slope and curvature of what `fit_temperature` minimises."""
    if multi_valued:
        scores = probabilities(logits, 1 / sharpness, multi_valued=True)
        slope = ((scores - listed) * logits).sum()
        curvature = (scores * (1 - scores) * logits**2).sum()
    else:
        mean, spread = _moments(logits, np.ones_like(listed), sharpness)
        mean_listed, spread_listed = _moments(logits, listed, sharpness)
        slope, curvature = mean - mean_listed, spread - spread_listed
    return float(slope + PRIOR * (1 - 1 / sharpness)), float(curvature + PRIOR / sharpness**2)


def _moments(logits: np.ndarray, among: np.ndarray, sharpness: float) -> tuple[float, float]:
    """Mean and variance of each row's logit under the softmax over the values `among`, bool [n, values]; row sums."""
    scores = _softmax(np.where(among, sharpness * logits, -np.inf))
    mean = (scores * logits).sum(axis=1, keepdims=True)
    return mean.sum(), (scores * (logits - mean) ** 2).sum()


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _log_sum(logits: np.ndarray) -> np.ndarray:
    highest = logits.max(axis=1, keepdims=True)
    return (highest + np.log(np.exp(logits - highest).sum(axis=1, keepdims=True)))[:, 0]
