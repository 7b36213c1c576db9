"""The law of a learning curve, `score(n) = ceiling - scale * n ** -rate`, and its fit to measured scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_SIZES = 4  # distinct numbers of images below which three parameters say nothing
RATES = np.geomspace(0.05, 4.0, 60)


@dataclass(frozen=True)
class PowerLaw:
    """`score(n) = ceiling - scale * n ** -rate`, fitted to `points` scores with a root mean square error of `rmse`."""

    ceiling: float
    scale: float
    rate: float
    rmse: float
    points: int

    def score(self, items: float) -> float:
        """The score expected with `items` labelled images."""
        return self.ceiling - self.scale * items**-self.rate

    def items_for(self, score: float) -> float:
        """The number of images at which the law reaches `score`, at least 1; infinite where it never does.

        >>> round(PowerLaw(ceiling=1.0, scale=1.0, rate=0.5, rmse=0.0, points=8).items_for(0.9), 6)
        100.0
        """
        return float(items_for(np.array([[self.ceiling], [self.scale], [self.rate]]), score)[0])


def fit_power_law(items: Sequence[float], scores: Sequence[float]) -> PowerLaw | None:
    """The law nearest to the scores: robust least squares with ceiling <= 1 and scale >= 0; zero-shot is left out.

    None below 4 distinct sizes or where the scores do not rise with the logarithm of the size.
    """
    sizes, measured = np.asarray(items, dtype=float), np.asarray(scores, dtype=float)
    sizes, measured = sizes[sizes > 0], measured[sizes > 0]
    if len(np.unique(sizes)) < LEAST_SIZES or np.polyfit(np.log(sizes), measured, 1)[0] <= 1e-9:
        return None
    ceiling, scale, rate = fitted_laws(sizes, measured, np.ones((1, len(sizes))))[:, 0].tolist()
    if scale <= 0:
        return None
    rmse = float(np.sqrt(np.mean((ceiling - scale * sizes**-rate - measured) ** 2)))
    return PowerLaw(ceiling, scale, rate, rmse, len(sizes))


def fitted_laws(sizes: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ceilings, scales and rates [3, fits], one fit for each row of `weights` [fits, points].

    Per rate the law is linear, so ceiling and scale are solved for; the rate is searched on a grid, then around its
    best. Points far from the law lose weight (Huber), because one failed training must not bend the curve.
    """
    least = sizes.min()  # powers of the sizes relative to it stay between 0 and 1
    steady, law = weights, np.empty(0)
    for _ in range(4):
        rates = np.broadcast_to(RATES, (len(weights), len(RATES)))
        width = RATES[1] / RATES[0]
        for _ in range(4):
            law = _nearest(sizes / least, scores, steady, rates)
            rates = np.clip(law[2][:, None] * np.geomspace(1 / width, width, 13), RATES[0], RATES[-1])
            width **= 1 / 4
        far = np.abs(law[0][:, None] - law[1][:, None] * (sizes / least) ** -law[2][:, None] - scores)
        usual = np.maximum(1.345 * 1.4826 * np.median(far, axis=1, keepdims=True), 1e-3)
        steady = weights * np.minimum(1.0, usual / np.maximum(far, 1e-12))
    return np.stack([law[0], law[1] * least ** law[2], law[2]])


def _nearest(sizes: np.ndarray, scores: np.ndarray, weights: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """The best of each row's `rates` [fits, rates] with its ceiling and scale: [3, fits]."""
    powers = sizes ** -rates[:, :, None]  # [fits, rates, points]
    shares = (weights / weights.sum(axis=1, keepdims=True))[:, None, :]
    mean_power, mean_score = (shares * powers).sum(axis=2), (shares * scores).sum(axis=2)
    leaned = shares * (powers - mean_power[:, :, None])
    scale = np.maximum(0.0, -(leaned * scores).sum(axis=2) / np.maximum((leaned * powers).sum(axis=2), 1e-15))
    ceiling = mean_score + scale * mean_power
    bounded = (shares * powers * (1 - scores)).sum(axis=2) / (shares * powers**2).sum(axis=2)
    scale, ceiling = np.where(ceiling > 1, bounded, scale), np.minimum(ceiling, 1.0)
    errors = (shares * (ceiling[:, :, None] - scale[:, :, None] * powers - scores) ** 2).sum(axis=2)
    place = (np.arange(len(rates)), errors.argmin(axis=1))
    return np.stack([ceiling[place], scale[place], rates[place]])


def items_for(laws: np.ndarray, score: float) -> np.ndarray:
    """Sizes at which `laws` [3, laws] reach `score`, at least 1; infinite where they do not."""
    ceiling, scale, rate = laws
    there = (ceiling > score) & (scale > 0)
    exponent = np.log(np.where(there, scale, 1.0) / np.where(there, ceiling - score, 1.0)) / rate
    return np.where(there, np.exp(np.clip(exponent, 0, 700)), np.inf)
