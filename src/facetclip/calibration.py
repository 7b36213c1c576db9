"""Probabilities that mean what they say: a temperature and a share of noise an attribute, and how far confidence and
accuracy differ.

Temperature scaling and reliability diagrams as in Guo et al., "On Calibration of Modern Neural Networks" (2017). A
retailer's cells are wrong now and then, however clear the photo: a temperature alone would have to make the model doubt
every photo to allow for that, so the share of cells that say anything at random is fitted with it (the noise model of
Mnih and Hinton, "Learning to Label Aerial Images from Noisy Data", 2012).
"""

from dataclasses import dataclass

import numpy as np

COLDEST, HOTTEST = 0.05, 20.0
MOST_NOISE = 0.5
PRIOR = 1.0  # how firmly a temperature is held at 1: as firmly as about one row holds it elsewhere
CLEAN_ROWS = 9.0  # rows without a mistake that every table is taken to have besides its own
GRID, ROUNDS = 17, 4  # temperatures tried at a time, each time between the neighbours of the best
HALVINGS = 24  # of the interval that the noise lies in
MOST_ROWS = 50_000  # more tell no more
BINS = 15


@dataclass(frozen=True)
class Calibration:
    """What an attribute's logits are divided by, and the share of the table's cells that say anything at random."""

    temperature: float = 1.0
    noise: float = 0.0


@dataclass(frozen=True)
class ReliabilityBin:
    """The `items` answers given with a probability of [low, high): their mean `confidence`, and the share of them that
    is right, `accuracy`. The last bin holds 1 too."""

    low: float
    high: float
    items: int
    confidence: float
    accuracy: float


def probabilities(logits: np.ndarray, calibration: Calibration, *, multi_valued: bool) -> np.ndarray:
    """How probable it is that the table lists each value, [n, values], from logits [n, values].

    A softmax over the values, or where multi-valued a sigmoid for each, of what the photo shows; the noise spreads its
    share evenly.

    >>> probabilities(np.array([[0.0, 0.0]]), Calibration(), multi_valued=False).tolist()
    [[0.5, 0.5]]
    >>> probabilities(np.array([[50.0, -50.0]]), Calibration(noise=0.2), multi_valued=False).round(3).tolist()
    [[0.9, 0.1]]
    """
    scaled = logits.astype(np.float64) / calibration.temperature
    with np.errstate(invalid="ignore"):  # what is no number stays none
        seen = np.exp(-np.logaddexp(0, -scaled)) if multi_valued else _softmax(scaled)
    return (1 - calibration.noise) * seen + calibration.noise / (2 if multi_valued else logits.shape[1])


def fit_calibration(logits: np.ndarray, listed: np.ndarray, *, multi_valued: bool) -> Calibration:
    """The calibration at which logits [n, values] best explain the values listed, bool [n, values].

    Rows that list nothing do not count; without any other nothing is changed. It minimises the log loss summed over
    rows (and values where multi-valued) plus `PRIOR` * (s - 1 - ln s) for the sharpness s = 1 / temperature and
    -`CLEAN_ROWS` * ln(1 - noise). These matter where rows are few, or all of them right, which alone would ask for
    certainty; with hundreds of rows they move the third digit.
    """
    known = np.flatnonzero(listed.any(axis=1))
    if not len(known):
        return Calibration()
    known = known[:: -(-len(known) // MOST_ROWS)]
    logits, listed = logits[known].astype(np.float64), listed[known]
    chance = (np.full(listed.shape, 0.5) if multi_valued else listed.mean(axis=1)).ravel()
    low, high = np.log(COLDEST), np.log(HOTTEST)
    best = (np.inf, 0.0, 0.0)
    for _ in range(ROUNDS):
        candidates = np.linspace(low, high, GRID)
        for candidate in candidates.tolist():
            told = _told(logits * np.exp(-candidate), listed, multi_valued=multi_valued)
            noise = _noise(told, chance)
            best = min(best, (_cost(told, chance, noise, candidate), candidate, noise))
        step = float(candidates[1] - candidates[0])
        low, high = max(best[1] - step, np.log(COLDEST)), min(best[1] + step, np.log(HOTTEST))
    return Calibration(float(np.exp(best[1])), best[2])


def _told(scaled: np.ndarray, listed: np.ndarray, *, multi_valued: bool) -> np.ndarray:
    """The probability of what is listed, flat: of each row, or where multi-valued of each row and value."""
    if multi_valued:
        return np.exp(-np.logaddexp(0, np.where(listed, -scaled, scaled))).ravel()
    return (_softmax(scaled) * listed).sum(axis=1)


def _noise(told: np.ndarray, chance: np.ndarray) -> float:
    """The noise of the lowest cost at one temperature: the cost is convex in it, so its slope is halved in on."""
    low, high = 0.0, MOST_NOISE
    for _ in range(HALVINGS):
        noise = (low + high) / 2
        mixed = (1 - noise) * told + noise * chance
        slope = CLEAN_ROWS / (1 - noise) - float(((chance - told) / mixed).sum())
        low, high = (low, noise) if slope > 0 else (noise, high)
    return 0.0 if low == 0.0 else (low + high) / 2


def _cost(told: np.ndarray, chance: np.ndarray, noise: float, log_temperature: float) -> float:
    """What `fit_calibration` minimises."""
    loss = -float(np.log(np.maximum((1 - noise) * told + noise * chance, 1e-300)).sum())
    sharpness = np.exp(-log_temperature)
    return loss + PRIOR * float(sharpness - 1 + log_temperature) - CLEAN_ROWS * float(np.log(1 - noise))


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


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
