"""The pictures of an evaluation as PNG files, for MLflow: confusion matrices, reliability diagrams, a summary."""

import io
from typing import Any

import numpy as np

from facetclip.calibration import ReliabilityBin
from facetclip.letters import any_letters
from facetclip.metrics import AttributeMetrics
from facetclip.report import EvalReport, side_by_side

MOST_DRAWN = 30  # values of one attribute in its confusion matrix; rarer ones share one row
LONGEST_NAME = 24  # characters of a value's name in a picture
INK, MUTED, RULE = "#1c2733", "#66727f", "#d9dee4"
MODEL_COLOUR, ZERO_SHOT_COLOUR = "#1f66c1", "#b4bec9"
RAMP = ("#f5f8fc", "#c6dbf1", "#7fb2e2", "#3a82cc", "#17539c", "#0b2f61")
DARK_FROM = 0.5  # share of a row from which the count in its cell is white


def drawn_confusion(measured: AttributeMetrics, most: int = MOST_DRAWN) -> tuple[list[str], np.ndarray]:
    """Names and counts [true, predicted] of the values that occur, the most frequent first, rare ones in one row."""
    counts = np.array(measured.confusion)
    rows, columns = counts.sum(axis=1), counts.sum(axis=0)
    order = [int(v) for v in np.lexsort((-columns, -rows)) if rows[v] + columns[v]]
    names = [measured.values[value] for value in order]
    counts = counts[np.ix_(order, order)]
    if len(order) <= most:
        return names, counts
    group = np.minimum(np.arange(len(order)), most - 1)
    merged = np.zeros((most, most), dtype=counts.dtype)
    np.add.at(merged, (group[:, None], group[None, :]), counts)
    return [*names[: most - 1], f"{len(order) - most + 1} other values"], merged


def row_shares(counts: np.ndarray) -> np.ndarray:
    """Each row divided by its sum; rows of zeros stay zeros."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def draw_confusion(name: str, measured: AttributeMetrics) -> bytes:
    """A PNG of one attribute's confusion matrix: colour is the share of the true value's items, numbers are counts."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    names, counts = drawn_confusion(measured)
    shares, size = row_shares(counts), len(names)
    cell = 0.8 if size <= 4 else 0.62 if size <= 8 else 0.46 if size <= 16 else 0.36
    labels = [_shortened(text) for text in names]
    longest = 0.085 * max(map(len, labels))
    left, bottom = 0.7 + longest, 0.55 + (longest if _upright(labels) else 0.1)
    wide, high = left + max(size * cell, 2.2) + 0.8, 1.05 + size * cell + bottom
    figure = Figure(figsize=(wide, high), dpi=160, facecolor="white")
    axes = figure.add_axes((left / wide, bottom / high, size * cell / wide, size * cell / high))
    axes.imshow(shares, cmap=LinearSegmentedColormap.from_list("share", list(RAMP)), vmin=0, vmax=1, aspect="auto")
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] >= DARK_FROM else INK
        text = f"{counts[row, column]:,}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=_count_size(text, cell))
    _label_matrix(axes, labels, counts)
    caption = f"accuracy {measured.accuracy:.3f}    macro-F1 {measured.macro_f1:.3f}    {measured.items:,} items"
    _head(figure, _shortened(name, 40), caption)
    return _png(figure)


def _head(figure: Any, title: str, caption: str) -> None:
    """Two lines of text in the upper left corner, 0.3 and 0.6 inches from the top."""
    wide, high = figure.get_size_inches()
    figure.text(0.12 / wide, 1 - 0.3 / high, title, fontsize=14, weight="bold", color=INK, va="center")
    figure.text(0.12 / wide, 1 - 0.6 / high, caption, fontsize=9, color=MUTED, va="center")


def _label_matrix(axes: Any, labels: list[str], counts: np.ndarray) -> None:
    """Value names on both axes, thin white lines between cells, and each row's recall at its end."""
    size = len(labels)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(range(size), labels, fontsize=9 if size <= 16 else 8, color=INK)
        axis.set_ticks(np.arange(size + 1) - 0.5, minor=True)
    axes.tick_params(which="both", length=0)
    for text in axes.get_xticklabels():
        text.set(rotation=90 if _upright(labels) else 0)
    axes.grid(which="minor", color="white", linewidth=1.6)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("read as", fontsize=9, color=MUTED, labelpad=6)
    axes.set_ylabel("true value", fontsize=9, color=MUTED, labelpad=6)
    beside = {"textcoords": "offset points", "fontsize": 8, "color": MUTED}
    axes.annotate("recall", (size - 0.5, -0.5), xytext=(8, 8), va="bottom", **beside)
    for row, total in enumerate(counts.sum(axis=1)):
        recall = f"{counts[row, row] / total:.0%}" if total else "none"
        axes.annotate(recall, (size - 0.5, row), xytext=(8, 0), va="center", **beside)


def _upright(labels: list[str]) -> bool:
    """Whether the names under the columns have to stand on end."""
    return len(labels) > 4 or max(map(len, labels)) > 8


def _count_size(text: str, cell: float) -> float:
    """Points, so that the digits stay inside a cell of `cell` inches."""
    return min(11.0, 72 * cell / (0.75 * max(2, len(text))))


def _shortened(text: str, most: int = LONGEST_NAME) -> str:
    # A dollar sign would start mathematics in matplotlib.
    return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")


def answers(measured: AttributeMetrics) -> dict[str, str]:
    """How to speak of the answers that were binned by their probability: what they are, and of both axes' numbers."""
    if measured.exact_match is None:
        return {"count": "items", "across": "probability of the value read", "up": "share that is right"}
    return {"count": "answers", "across": "probability of a value", "up": "share that has the value"}


def reliability_dots(measured: AttributeMetrics) -> list[tuple[ReliabilityBin, float]]:
    """The bins of a reliability diagram, and how many items each holds as a share of the fullest."""
    most = max((each.items for each in measured.reliability), default=1)
    return [(each, each.items / most) for each in measured.reliability]


def draw_reliability(name: str, measured: AttributeMetrics) -> bytes:
    """A PNG of how sure the model was against how right: a dot for each bin, its area the number of answers in it.

    On the dashed line the two agree; the strip below counts the answers in each bin.
    """
    from matplotlib.figure import Figure

    wide, high, side, words = 4.5, 5.55, 3.3, answers(measured)
    figure = Figure(figsize=(wide, high), dpi=160, facecolor="white")
    axes = figure.add_axes((0.85 / wide, 1.35 / high, side / wide, side / high))
    strip = figure.add_axes((0.85 / wide, 0.65 / high, side / wide, 0.5 / high))
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
    for each, fullness in reliability_dots(measured):
        axes.vlines(each.confidence, each.accuracy, each.confidence, color=RAMP[2], linewidth=2, zorder=2)
        area = 14 + 210 * fullness
        axes.scatter(each.confidence, each.accuracy, area, MODEL_COLOUR, edgecolors="white", zorder=3, clip_on=False)
        strip.bar((each.low + each.high) / 2, fullness, 0.85 * (each.high - each.low), color=RAMP[2])
    _scale(axes, words["up"])
    axes.set(ylim=(0, 1), xticklabels=[])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=9, color=MUTED)
    _scale(strip, words["count"])
    strip.set(ylim=(0, 1.05))
    strip.set_yticks([1], [f"{max((each.items for each in measured.reliability), default=0):,}"])
    strip.tick_params(axis="y", labelsize=9, labelcolor=MUTED)
    strip.set_xlabel(words["across"], fontsize=9, color=MUTED, labelpad=6)
    total = sum(each.items for each in measured.reliability)
    _head(figure, _shortened(name, 28), f"ECE {measured.ece:.3f}    {total:,} {words['count']}")
    return _png(figure)


def _scale(axes: Any, upward: str) -> None:
    """Probabilities from 0 to 1 to the right, without a frame."""
    axes.set(xlim=(0, 1))
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=9, color=MUTED)
    axes.set_ylabel(upward, fontsize=9, color=MUTED)
    axes.yaxis.set_label_coords(-0.17, 0.5)
    axes.tick_params(length=0)
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def draw_summary(report: EvalReport) -> bytes:
    """A PNG of macro-F1 and accuracy by attribute: zero-shot beside the model, a tick at the majority baseline."""
    from matplotlib.figure import Figure

    names = list(report.model.attributes)
    high = 1.5 + 0.62 * len(names)
    figure = Figure(figsize=(9.6, high), dpi=160, facecolor="white")
    longest = 0.09 * max(len(_shortened(name)) for name in names)
    left, bottom, top = (0.35 + longest) / 9.6, 0.75 / high, 1 - 0.6 / high
    panel = (1 - left - 0.09) / 2
    for place, (key, title) in enumerate((("macro_f1", "macro-F1"), ("accuracy", "accuracy"))):
        axes = figure.add_axes((left + place * (panel + 0.055), bottom, panel, top - bottom))
        _draw_bars(axes, report, key)
        axes.set_title(title, fontsize=12, weight="bold", color=INK, loc="left", pad=10)
        axes.set_yticks(range(len(names)), [_shortened(n) for n in names] if not place else [], fontsize=10, color=INK)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(left, 0), ncols=3, frameon=False, fontsize=9)
    return _png(figure)


def _draw_bars(axes: Any, report: EvalReport, key: str) -> None:
    columns = np.array([side_by_side(report, name, key) for name in report.model.attributes])
    places = np.arange(len(columns))
    high = 0.32 if report.zero_shot else 0.5
    shift = high / 2 + 0.02 if report.zero_shot else 0.0
    if report.zero_shot:
        axes.barh(places - shift, columns[:, 1], height=high, color=ZERO_SHOT_COLOUR, label="zero-shot start")
    axes.barh(places + shift, columns[:, -1], height=high, color=MODEL_COLOUR, label="this model")
    axes.vlines(columns[:, 0], places - 0.42, places + 0.42, color=INK, linewidth=1.4, label="most frequent value")
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    for place, (baseline, *scores) in zip(places, columns, strict=True):
        for score, at in zip(scores, (place - shift, place + shift) if report.zero_shot else (place,), strict=True):
            end = baseline if score <= baseline < score + 0.12 else score  # beyond the tick, not across it
            axes.text(end + 0.02, at, f"{score:.2f}", va="center", fontsize=9, color=INK, bbox=ground)
    axes.set(xlim=(0, 1.12), ylim=(len(columns) - 0.4, -0.6))
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=9, color=MUTED)
    axes.tick_params(length=0)
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    with any_letters():
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
