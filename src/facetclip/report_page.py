"""The report of an evaluation as one HTML page that needs nothing beside it, and the folder that it lies in."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from facetclip.coverage import TARGETS
from facetclip.files import write_whole
from facetclip.intervals import FEWEST_PRODUCTS, Estimate
from facetclip.metrics import AttributeMetrics
from facetclip.page import render
from facetclip.report import Comparison, Curve, EvalReport, Reading, beside
from facetclip.report_pictures import (
    answers,
    draw_confusion,
    draw_reliability,
    draw_summary,
    drawn_confusion,
    reliability_dots,
    row_shares,
)

LONGEST_NAME = 150  # of an attribute in a file's name
FILES = ("index.html", "report.json", "summary.png")  # beside the pictures of single attributes
COLUMNS = {  # of the table of all numbers: metric -> what stands above
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "balanced_accuracy": "balanced",
    "not_applicable_f1": "F1 “not applicable”",
    "log_loss": "log loss",
    "ece": "ECE",
    "coverage_90": "coverage at 90%",
    "coverage_95": "coverage at 95%",
    "coverage_99": "coverage at 99%",
}
TILES = {
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "exact_match": "all attributes right",
    "balanced_accuracy": "balanced accuracy",
    "ece": "calibration error",
    "coverage_95": "coverage at 95%",
}
LOWER_IS_BETTER = ("ece", "log_loss")
LEAST_SCALE = 0.05  # of the axis of differences
DIAL = 200  # units of an SVG's axis
LOWEST_PRECISION = 0.5  # where the axis of a coverage curve begins, if no curve goes lower


def render_page(report: EvalReport, photos: Mapping[int, str]) -> str:
    """The page; every text in it is escaped. `photos`: row -> thumbnail in base64 JPEG; some may be missing."""
    names = list(report.model.attributes)
    return render(
        "report.html.jinja",
        report=report,
        photos=photos,
        few=report.products < FEWEST_PRODUCTS,
        fewest=FEWEST_PRODUCTS,
        columns=_shown(report),
        tiles=_tiles(report),
        rows={name: _rows(report, name) for name in names},
        mean_rows=_mean_rows(report),
        beside={name: beside(report, name, rival=True) for name in names},
        forests=[_forest(part, *found) for part, found in report.comparisons.items()],
        curves={name: _coverage_dial(report, name) for name in report.model.curves},
        dots={name: reliability_dots(each) for name, each in report.model.attributes.items()},
        words={name: answers(each) for name, each in report.model.attributes.items()},
        matrices={name: _matrix(each) for name, each in report.model.attributes.items()},
    )


def _others(report: EvalReport) -> dict[str, Reading]:
    return {part: other for part, (other, _) in report.comparisons.items()}


def _shown(report: EvalReport) -> dict[str, str]:
    """The columns in which any attribute has a number."""
    return {key: head for key, head in COLUMNS.items() if key in report.model.mean}


def _overall(reading: Reading) -> dict[str, Estimate]:
    return {**reading.mean, "exact_match": reading.exact_match}


def _tiles(report: EvalReport) -> list[dict[str, Any]]:
    """What stands large at the head: each number, its interval, and those of the other models."""
    others, own = _others(report), _overall(report.model)
    return [
        {"title": title, "number": own[key], "others": {part: _overall(each)[key] for part, each in others.items()}}
        for key, title in TILES.items()
    ]


def _rows(report: EvalReport, name: str) -> list[dict[str, Any]]:
    """The rows of one attribute in the table of all numbers, the model's first."""
    measured = report.model.attributes[name]
    rows: list[dict[str, Any]] = [{"title": "this model", "numbers": report.model.estimates[name]}]
    rows += [{"title": part, "numbers": other.estimates[name]} for part, other in _others(report).items()]
    keys = ("accuracy", "macro_f1", "balanced_accuracy")
    plain = {key: Estimate(number := getattr(measured.baseline, key), number, number) for key in keys}
    return [*rows, {"title": f"always “{measured.baseline.value}”", "numbers": plain}]


def _mean_rows(report: EvalReport) -> list[dict[str, Any]]:
    readings = {"this model": report.model, **_others(report)}
    return [{"title": part, "numbers": each.mean} for part, each in readings.items()]


def _forest(part: str, other: Reading, more: Comparison) -> dict[str, Any]:
    """Differences of macro-F1 as bars on one axis, and those of the other numbers' means."""
    rows = {**{name: each["macro_f1"] for name, each in more.attributes.items()}, "mean": more.mean["macro_f1"]}
    extent = max(LEAST_SCALE, *(max(abs(each.low), abs(each.high)) for each in rows.values())) * 1.05

    def place(number: float) -> float:
        return round(50 + 50 * number / extent, 2)

    bars = [
        {
            "name": name,
            "number": each,
            "at": place(each.value),
            "left": place(each.low),
            "width": round(place(each.high) - place(each.low), 2),
            "verdict": verdict(each),
        }
        for name, each in rows.items()
    ]
    means, titles = {**more.mean, "exact_match": more.exact_match}, {**COLUMNS, **TILES}
    overall = [
        (title, means[key], verdict(means[key], lower=key in LOWER_IS_BETTER))
        for key, title in titles.items()
        if key in means
    ]
    return {"part": part, "source": other.source, "extent": extent, "bars": bars, "overall": overall}


def verdict(difference: Estimate, *, lower: bool = False) -> str:
    """What an interval shows of a difference; `lower`: less of it is better.

    >>> verdict(Estimate(0.1, 0.02, 0.2)), verdict(Estimate(0.1, 0.02, 0.2), lower=True), verdict(Estimate(0.1, -1, 1))
    ('better', 'worse', '')
    """
    low, high = (-difference.high, -difference.low) if lower else (difference.low, difference.high)
    return "better" if low > 0 else "worse" if high < 0 else ""


def _coverage_dial(report: EvalReport, name: str) -> dict[str, Any]:
    """What one diagram of coverage and precision shows, in units of its axes."""
    lines = {"model": report.model.curves[name], **{part: each.curves[name] for part, each in _others(report).items()}}
    promises = report.model.promises.get(name, ())
    seen = [y for curve in lines.values() for _, y in curve] + [each.kept.value for each in promises if each.kept]
    floor = min(LOWEST_PRECISION, np.floor(10 * float(np.quantile(seen, 0.02))) / 10)

    def up(precision: float) -> float:
        return round(DIAL - DIAL * (max(precision, floor) - floor) / (1 - floor), 1)

    own, kept = report.model.estimates[name], {each.precision: each for each in promises}
    return {
        "floor": round(floor, 1),
        "lines": {part: _points(curve, up) for part, curve in reversed(lines.items())},
        "targets": [
            {"precision": target, "up": up(target), "at": round(DIAL * own[key].value, 1), "number": own[key]}
            | {"promise": kept.get(target)}
            for key, target in TARGETS.items()
        ],
        "promises": [(each, round(DIAL * each.coverage, 1), up(each.kept.value)) for each in promises if each.kept],
    }


def _points(curve: Curve, up: Any) -> str:
    """A curve as the points of an SVG line."""
    return " ".join(f"{DIAL * x:.1f},{up(y)}" for x, y in curve)


def _matrix(measured: AttributeMetrics) -> dict[str, Any]:
    """What the page shows of one confusion matrix; `mistakes`: the most frequent ones, as (true, read as, items)."""
    names, counts = drawn_confusion(measured)
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:5]
    pairs = [divmod(int(place), len(names)) for place in order if wrong.flat[place]]
    return {
        "names": names,
        "counts": counts.tolist(),
        "shares": row_shares(counts).round(3).tolist(),
        "mistakes": [(names[true], names[read], int(wrong[true, read])) for true, read in pairs],
    }


def _in_a_file_name(name: str) -> str:
    """An attribute's name, as a part of a file's; where it is long only its beginning and a hash.

    >>> _in_a_file_name("a/b c"), _in_a_file_name("袖" * 20)[-16:]
    ('a%2Fb c', '96%E8%A-355fe9e6')
    """
    quoted = quote(name, safe=" ")
    if len(quoted) <= LONGEST_NAME:
        return quoted
    return f"{quoted[: LONGEST_NAME - 10]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def write_report(report: EvalReport, out: Path, photos: Mapping[int, str]) -> None:
    """`confusion_ATTRIBUTE.png`, `reliability_ATTRIBUTE.png`, `summary.png`, `index.html` and, last, `report.json` in
    the folder `out`; `photos` as for `render_page`."""
    for name, measured in report.model.attributes.items():
        write_whole(out / f"confusion_{_in_a_file_name(name)}.png", draw_confusion(name, measured))
        write_whole(out / f"reliability_{_in_a_file_name(name)}.png", draw_reliability(name, measured))
    page, numbers, picture = FILES
    write_whole(out / picture, draw_summary(report))
    write_whole(out / page, render_page(report, photos).encode("utf-8"))
    write_whole(out / numbers, report.to_json().encode("utf-8"))
