"""What an evaluation says: its numbers with their intervals, as JSON, for a tracker, and as tables for the terminal."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, TypeAdapter

from facetclip.intervals import Estimate
from facetclip.metrics import AttributeMetrics, Baseline
from facetclip.tables import text_table


def _numbers(stored: Any) -> Any:
    """What is no number is null in JSON."""
    return (
        {name: float("nan") if n is None else n for name, n in stored.items()} if isinstance(stored, dict) else stored
    )


Known = Annotated[Estimate, BeforeValidator(_numbers)]
Estimates = dict[str, Known]  # metric -> number with its 95% interval
Curve = tuple[tuple[float, float], ...]  # (share of the answers given, share of those that is right), the surest first


@dataclass(frozen=True)
class Promise:
    """What a model's own cut-off for a share `precision` of right answers, fitted on the validation split, keeps here:
    the share of the labelled items that it answers, and the share of those answers that is right (None without any)."""

    precision: float
    threshold: float
    coverage: float
    kept: Known | None


@dataclass(frozen=True)
class Reading:
    """One model's reading of a split: where it came from, the digest of its weights, and how right it was.

    `estimates`: of each attribute; `mean`: over the attributes that have the number; `exact_match`: the share of items
    of which every labelled attribute is read as exactly what is listed.
    """

    source: str
    digest: str
    attributes: dict[str, AttributeMetrics]
    estimates: dict[str, Estimates]
    mean: Estimates
    exact_match: Known
    curves: dict[str, Curve] = field(default_factory=dict)
    promises: dict[str, tuple[Promise, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """What the model has more than another one that read the same items, product by product; as in `Reading`."""

    attributes: dict[str, Estimates]
    mean: Estimates
    exact_match: Known


@dataclass(frozen=True)
class Slice:
    """The items with one `value` in a column (empty: with none; `merged` > 0: with any of so many rare values).

    `small`: of too few products for its intervals to be trusted. `numbers`: means over the attributes that are labelled
    here, and exact_match; `accuracy` of each of those. Both are empty where nothing is labelled.
    """

    value: str
    items: int
    products: int
    small: bool
    numbers: Estimates
    accuracy: dict[str, float]
    merged: int = 0


@dataclass(frozen=True)
class Mistake:
    """An item read as something else than is listed, how sure that was, and how probable what is listed. `row`: of the
    index."""

    row: int
    item_id: str
    product_id: str
    title: str
    listed: str
    read: str
    probability: float
    listed_probability: float


@dataclass(frozen=True)
class EvalReport:
    """One model on one split, beside the zero-shot model that it started from (None: there is none, see `note`) and a
    rival, where one was named. `slices`: of each column; `mistakes`: the surest of each attribute."""

    split: str
    items: int
    products: int
    data_digest: str
    model: Reading
    zero_shot: Reading | None = None
    rival: Reading | None = None
    over_zero_shot: Comparison | None = None
    over_rival: Comparison | None = None
    slices: dict[str, tuple[Slice, ...]] = field(default_factory=dict)
    mistakes: dict[str, tuple[Mistake, ...]] = field(default_factory=dict)
    unmeasured: tuple[str, ...] = ()  # attributes without a label in this split
    note: str | None = None

    def to_json(self) -> str:
        """The whole report as JSON text."""
        return TypeAdapter(EvalReport).dump_json(self, indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "EvalReport":
        """The report stored by `to_json`."""
        return TypeAdapter(EvalReport).validate_json(text)

    @property
    def comparisons(self) -> dict[str, tuple[Reading, Comparison]]:
        """What the model was compared with: the other's part in the comparison -> its reading and the differences."""
        found = {"zero-shot": (self.zero_shot, self.over_zero_shot), "rival": (self.rival, self.over_rival)}
        return {part: (other, more) for part, (other, more) in found.items() if other is not None and more is not None}

    def numbers(self) -> dict[str, float]:
        """All numbers of the model for a tracker: `ATTRIBUTE/macro_f1`, `mean/macro_f1`, `over_rival/mean/macro_f1` and
        so on, with the ends of each interval as `..._low` and `..._high`."""
        found = _flat(self.model)
        for part, (_, more) in self.comparisons.items():
            found |= {f"over_{part.replace('-', '_')}/{name}": number for name, number in _flat(more).items()}
        return found


def _flat(numbers: Reading | Comparison) -> dict[str, float]:
    each = numbers.estimates if isinstance(numbers, Reading) else numbers.attributes
    parts = {"mean": {**numbers.mean, "exact_match": numbers.exact_match}, **each}
    return {
        f"{part}/{name}{end}": number
        for part, metrics in parts.items()
        for name, found in metrics.items()
        for end, number in (("", found.value), ("_low", found.low), ("_high", found.high))
    }


def beside(report: EvalReport, name: str, *, rival: bool = False) -> dict[str, AttributeMetrics | Baseline]:
    """What stands side by side for one attribute: the baseline, zero-shot and (if wanted) the rival where there is
    one, the model."""
    others = {"zero-shot": report.zero_shot, "rival": report.rival if rival else None}
    read = {part: other.attributes[name] for part, other in others.items() if other is not None}
    measured = report.model.attributes[name]
    return {"majority": measured.baseline, **read, "model": measured}


def side_by_side(report: EvalReport, name: str, key: str) -> list[float]:
    """One metric of `beside`, without the rival."""
    return [getattr(each, key) for each in beside(report, name).values()]


def summary_table(report: EvalReport) -> str:
    """Macro-F1 and accuracy of every attribute: always the most frequent value, zero-shot, the rival, and the model,
    whose calibration error stands last."""
    measured = report.model.attributes
    sides = {name: beside(report, name, rival=True) for name in measured}
    groups = list(next(iter(sides.values())))
    headers = ["attribute", "items", *(f"F1 {name}" for name in groups), *(f"acc. {name}" for name in groups), "ECE"]
    keys = ("macro_f1", "accuracy")
    # [attributes, 2 metrics, what stands side by side]
    numbers = np.array([[[getattr(each, key) for each in side.values()] for key in keys] for side in sides.values()])
    rows = [
        [name, f"{measured[name].items:,}", *_thousandths(*numbers[place].ravel(), measured[name].ece)]
        for place, name in enumerate(measured)
    ]
    mean = _thousandths(*numbers.mean(axis=0).ravel(), report.model.mean["ece"].value)
    return text_table(headers, [*rows, ["mean", "", *mean]])


def difference_table(differences: Mapping[str, Estimate], mean: Estimate | None) -> str:
    """What one model's macro-F1 has more than another's, with the 95% intervals."""
    rows = [*differences.items(), *([("mean", mean)] if mean else [])]
    return text_table(
        ["macro-F1", "difference", "from", "to"],
        [[name, *(f"{number:+.4f}" for number in (each.value, each.low, each.high))] for name, each in rows],
    )


def comparison_tables(report: EvalReport) -> str:
    """The differences of macro-F1 from each model that stands beside, as tables under their names; empty if alone."""
    parts = []
    for part, (other, more) in report.comparisons.items():
        differences = {name: each["macro_f1"] for name, each in more.attributes.items()}
        parts.append(f"more than {part} ({other.source}):\n{difference_table(differences, more.mean['macro_f1'])}")
    return "\n\n".join(parts)


def _thousandths(*numbers: float) -> list[str]:
    return [f"{number:.3f}" for number in numbers]
