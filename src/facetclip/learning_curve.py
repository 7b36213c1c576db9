"""What two studies say: scores against the number of labelled images, and against the form of the caption. NumPy only.

Intervals are 95% intervals of the mean over seeds. The law of a curve is `score(n) = ceiling - scale * n ** -rate`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from facetclip.power_law import LEAST_SIZES, PowerLaw, fit_power_law, fitted_laws, items_for

Metric = Literal["accuracy", "macro_f1"]
Table = tuple[list[str], list[list[str]]]  # headers, rows: what report.text_table takes

METRIC_NAMES: dict[Metric, str] = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
RESAMPLES = 400
FARTHEST = 100  # a forecast beyond this many times the largest measured size is none
T_OF_FEW = (12.7062, 4.3027, 3.1824, 2.7764)  # 97.5% quantiles of Student's t for 1 to 4 degrees of freedom
Z = 1.959963985


@dataclass(frozen=True)
class Point:
    """One attribute after one training on `items` labelled images (0: zero-shot) with one seed."""

    items: int
    seed: int
    attribute: str
    accuracy: float
    macro_f1: float


@dataclass(frozen=True)
class Arm:
    """One attribute after one training with one caption form and one tuning mode."""

    form: str
    mode: str
    seed: int
    attribute: str
    accuracy: float
    macro_f1: float


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and the half width of its interval, 0 for one seed; `low` and `high` stay within [0, 1]."""

    seeds: int
    mean: float
    half: float

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return max(0.0, self.mean - self.half)

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return min(1.0, self.mean + self.half)

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ±{self.half:.3f}" if self.seeds > 1 else "")


@dataclass(frozen=True)
class Level:
    """One attribute at one number of images: its mean over seeds and the interval of that mean."""

    attribute: str
    items: int
    seeds: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """How many labelled images an attribute takes to reach `target`.

    `reached_at`: the smallest measured size whose mean is there. `needed`: the size by the fitted law; None without a
    law, where its ceiling is too low, or beyond `FARTHEST` times the largest size. `low` and `high`: its 95% interval
    by resampling seeds; None where the resamples do not reach the target, and for one seed. `words`: for a person.
    """

    attribute: str
    target: float
    reached_at: int | None
    needed: int | None
    low: int | None
    high: int | None
    words: str


def spread(scores: Sequence[float]) -> Spread:
    """The mean of one score per seed, with the half width of its 95% interval by Student's t distribution.

    >>> print(spread([0.8, 0.9, 0.85]))
    0.850 ±0.124
    """
    seeds, mean = len(scores), float(np.mean(scores))
    if seeds == 1:
        return Spread(1, mean, 0.0)
    return Spread(seeds, mean, _t_quantile(seeds - 1) * float(np.std(scores, ddof=1)) / math.sqrt(seeds))


def _t_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t; Abramowitz and Stegun 26.7.5 from 5 degrees of freedom."""
    if freedom <= len(T_OF_FEW):
        return T_OF_FEW[freedom - 1]
    terms = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    )
    return Z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def attributes_of(results: Iterable[Point | Arm]) -> list[str]:
    """The attributes' names in the order of their first appearance."""
    return list(dict.fromkeys(each.attribute for each in results))


def levels(points: Sequence[Point], metric: Metric) -> list[Level]:
    """Attribute by attribute, by growing size; a ValueError where one training is listed twice or a score is none."""
    _check(points)
    found = []
    for name in attributes_of(points):
        for items, scores in sorted(_by_size(points, name, metric).items()):
            over = spread(scores)
            found.append(Level(name, items, over.seeds, over.mean, over.low, over.high))
    return found


def mean_over_attributes(points: Sequence[Point], name: str = "mean") -> list[Point]:
    """Each training's means over the attributes, under `name`; trainings that lack an attribute are left out."""
    trainings: dict[tuple[int, int], list[Point]] = {}
    for point in points:
        trainings.setdefault((int(point.items), int(point.seed)), []).append(point)
    whole = len(attributes_of(points))
    return [
        Point(*key, name, float(np.mean([p.accuracy for p in group])), float(np.mean([p.macro_f1 for p in group])))
        for key, group in sorted(trainings.items())
        if len(group) == whole
    ]


def _check(results: Sequence[Point | Arm]) -> None:
    seen: set[tuple[Any, ...]] = set()
    for each in results:
        key = tuple(value for name, value in asdict(each).items() if name not in METRIC_NAMES)
        if key in seen:
            raise ValueError(f"one training is listed twice: {each}")
        seen.add(key)
        if not (0 <= each.accuracy <= 1 and 0 <= each.macro_f1 <= 1):
            raise ValueError(f"a score is outside 0 to 1: {each}")


def _by_size(points: Sequence[Point], attribute: str, metric: Metric) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for point in points:
        if point.attribute == attribute:
            found.setdefault(int(point.items), []).append(float(getattr(point, metric)))
    return found


def law_of(points: Sequence[Point], attribute: str, metric: Metric) -> PowerLaw | None:
    """The law fitted to every training of one attribute."""
    own = [point for point in points if point.attribute == attribute]
    return fit_power_law([point.items for point in own], [getattr(point, metric) for point in own])


def forecast(points: Sequence[Point], attribute: str, metric: Metric, target: float, *, have: int) -> Forecast:
    """How many labelled images reach `target`, for somebody who has `have` of them; a ValueError without a point."""
    own = [point for point in points if point.attribute == attribute]
    if not own:
        raise ValueError(f"no training measured the attribute {attribute!r}")
    means = {level.items: level.mean for level in levels(own, metric)}
    law = law_of(own, attribute, metric)
    reached_at = min((items for items, mean in means.items() if mean >= target), default=None)
    needed, low, high = _needed(own, metric, law, target) if law else (None, None, None)
    goal = f"{attribute}: {METRIC_NAMES[metric]} {target:g}"
    if reached_at is not None:
        words = f"{goal} was reached {f'with {_images(reached_at)}' if reached_at else 'without labels'}"
    elif law is None:
        words = f"{goal} was not reached; {_why_no_law(means)}"
    elif needed is None:
        words = f"{goal} is out of reach: {_why_not(law, target, max(means), low)}"
    else:
        words = f"{goal} takes about {_how_many(rounded_up(needed), low, high, have)}"
    return Forecast(attribute, target, reached_at, needed, low, high, words)


def _needed(own: Sequence[Point], metric: Metric, law: PowerLaw, target: float) -> tuple[int | None, ...]:
    """The size by the law, and the ends of the interval by resampling whole seeds; None where there is none."""
    trained = [point for point in own if point.items > 0]
    sizes = np.array([point.items for point in trained], dtype=float)
    scores = np.array([getattr(point, metric) for point in trained], dtype=float)
    seeds, seed_of = np.unique([point.seed for point in trained], return_inverse=True)
    found, limit, ends = law.items_for(target), FARTHEST * sizes.max(), [math.inf, math.inf]
    if len(seeds) > 1:
        low, high = _between(sizes, scores, seed_of, target)
        # Resampling few seeds gives too narrow an interval: widened as t and the unbiased variance would.
        wider = _t_quantile(len(seeds) - 1) / Z * math.sqrt(len(seeds) / (len(seeds) - 1))
        ends = [_widened(found, end, wider, limit) for end in (min(low, found), max(high, found))]
    return tuple(math.ceil(size - 1e-9) if size <= limit else None for size in (found, *ends))


def _widened(found: float, end: float, times: float, limit: float) -> float:
    """The end of an interval so many times as far from `found`, in the logarithm; infinite beyond `limit`."""
    if found > limit:
        return end
    return max(1.0, found * (end / found) ** times) if end <= limit else math.inf


def _between(sizes: np.ndarray, scores: np.ndarray, seed_of: np.ndarray, target: float) -> tuple[float, float]:
    """The middle 95% of where the law of resampled seeds reaches `target`; `seed_of` [n]: counted from 0."""
    seeds = int(seed_of.max()) + 1
    picks = np.random.default_rng(0).integers(0, seeds, (RESAMPLES, seeds))
    counts = (picks[:, :, None] == np.arange(seeds)).sum(axis=1)
    kinds, kind_of = np.unique(counts, axis=0, return_inverse=True)  # few seeds give few different resamples
    reached = np.sort(_resampled(sizes, scores, kinds[:, seed_of].astype(float), target)[kind_of])
    return reached[RESAMPLES // 40], reached[-1 - RESAMPLES // 40]


def _resampled(sizes: np.ndarray, scores: np.ndarray, weights: np.ndarray, target: float) -> np.ndarray:
    """Where the law of each row of `weights` reaches `target`; infinite where too few sizes are left for a law."""
    enough = np.array([len(np.unique(sizes[row > 0])) >= LEAST_SIZES for row in weights])
    reached = items_for(fitted_laws(sizes, scores, weights), target)
    return np.where(enough, reached, np.inf)


def _images(count: int) -> str:
    return f"{count:,} labelled image{'' if count == 1 else 's'}"


def rounded_up(count: int) -> int:
    """Up to two digits that count: a fitted curve knows no more.

    >>> rounded_up(1268)
    1300
    """
    step = 10 ** max(0, len(str(count)) - 2)
    return -(-count // step) * step


def _how_many(needed: int, low: int | None, high: int | None, have: int) -> str:
    end = "far more" if high is None else f"{rounded_up(high):,}"
    between = "" if low is None else f" ({rounded_up(low):,} to {end})"
    more = f"{needed - have:,} more than you have" if needed > have else f"no more than the {have:,} you have"
    return f"{_images(needed)}{between} by the fitted curve, {more}"


def _why_no_law(means: dict[int, float]) -> str:
    if (trained := sum(items > 0 for items in means)) < LEAST_SIZES:
        return f"a forecast takes {LEAST_SIZES} numbers of images, there are {trained}"
    return f"the score does not rise with the number of images ({means[max(means)]:.2f} with {max(means):,})"


def _why_not(law: PowerLaw, target: float, largest: int, low: int | None) -> str:
    advice = "better labels or photos rather than more"
    if law.ceiling > target:
        return f"more than {_images(rounded_up(FARTHEST * largest))} by the fitted curve: {advice}"
    level = f"the fitted curve levels off at {math.floor(100 * law.ceiling) / 100:.2f}"
    if low is not None:
        return f"{level}, though the seeds leave room for {_images(rounded_up(low))} or more"
    return f"{level}, below {target:g}: {advice}"


def curve_table(points: Sequence[Point], metric: Metric) -> Table:
    """Attributes by numbers of images, mean ± half width; several attributes end with their mean."""
    _check(points)
    sizes = sorted({int(point.items) for point in points})
    names = attributes_of(points)
    groups = [*((name, points) for name in names), ("mean", mean_over_attributes(points))]
    rows = []
    for name, group in groups if len(names) > 1 else groups[:1]:
        found = _by_size(group, name, metric)
        rows.append([name, *(str(spread(found[items])) if items in found else "" for items in sizes)])
    return ["attribute", *(f"{items:,}" if items else "zero-shot" for items in sizes)], rows


def curve_json(points: Sequence[Point], targets: Sequence[float]) -> dict[str, Any]:
    """Points, levels, laws and forecasts by metric, in plain JSON types; who asks has the largest measured size."""
    plain = [Point(int(p.items), int(p.seed), p.attribute, float(p.accuracy), float(p.macro_f1)) for p in points]
    have = {name: max(p.items for p in plain if p.attribute == name) for name in attributes_of(plain)}
    parts = {metric: _metric_json(plain, metric, have, targets) for metric in METRIC_NAMES}
    named = {part: {metric: each[part] for metric, each in parts.items()} for part in ("levels", "laws", "forecasts")}
    return {"points": [asdict(point) for point in plain], **named}


def _metric_json(
    points: Sequence[Point], metric: Metric, have: Mapping[str, int], targets: Sequence[float]
) -> dict[str, Any]:
    laws = {name: law_of(points, name, metric) for name in have}
    told = [forecast(points, name, metric, float(t), have=size) for name, size in have.items() for t in targets]
    return {
        "levels": [asdict(level) for level in levels(points, metric)],
        "laws": {name: asdict(law) if law else None for name, law in laws.items()},
        "forecasts": [asdict(each) for each in told],
    }


def caption_spreads(arms: Sequence[Arm], metric: Metric) -> dict[tuple[str, str], Spread]:
    """By (form, mode): the mean over attributes, spread over the seeds that measured every attribute."""
    _check(arms)
    trainings: dict[tuple[str, str], dict[int, list[float]]] = {}
    for arm in arms:
        by_seed = trainings.setdefault((arm.form, arm.mode), {})
        by_seed.setdefault(int(arm.seed), []).append(float(getattr(arm, metric)))
    whole, found = len(attributes_of(arms)), {}
    for cell, by_seed in trainings.items():
        if means := [float(np.mean(scores)) for scores in by_seed.values() if len(scores) == whole]:
            found[cell] = spread(means)
    return found


def captions_table(arms: Sequence[Arm], metric: Metric) -> tuple[Table, dict[str, Table]]:
    """Caption forms by tuning modes, the best cell marked `*`: over all attributes, and for each attribute."""
    own = {name: [arm for arm in arms if arm.attribute == name] for name in attributes_of(arms)}
    return _form_by_mode(arms, metric), {name: _form_by_mode(group, metric) for name, group in own.items()}


def _form_by_mode(arms: Sequence[Arm], metric: Metric) -> Table:
    cells = caption_spreads(arms, metric)
    best = max((cell.mean for cell in cells.values()), default=0.0)
    forms, modes = dict.fromkeys(arm.form for arm in arms), dict.fromkeys(arm.mode for arm in arms)
    marked = {place: f"{cell}{'*' if math.isclose(cell.mean, best) else ' '}" for place, cell in cells.items()}
    return ["caption form", *modes], [[form, *(marked.get((form, mode), "") for mode in modes)] for form in forms]
