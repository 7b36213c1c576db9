"""The pictures of the two studies: scores against labelled images, and against caption form and tuning mode."""

import io
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from facetclip.learning_curve import (
    FARTHEST,
    METRIC_NAMES,
    Arm,
    Level,
    Metric,
    Point,
    Spread,
    attributes_of,
    caption_spreads,
    law_of,
    levels,
    rounded_up,
)
from facetclip.letters import any_letters
from facetclip.power_law import PowerLaw
from facetclip.report_pictures import INK, MODEL_COLOUR, MUTED, RAMP, RULE, ZERO_SHOT_COLOUR

MOST_COLUMNS = 4
FARTHEST_DRAWN = 3  # times the largest measured size: a target beyond it is told, not drawn
METRIC_COLOURS: dict[Metric, str] = {"accuracy": RAMP[2], "macro_f1": RAMP[4]}
MODE_COLOURS = (RAMP[5], MODEL_COLOUR, RAMP[2], MUTED, RAMP[3], INK, RAMP[4])  # zero-shot has its own
MODE_MARKS = "osD^vPX<"
LEGEND = (*METRIC_NAMES.values(), "one seed", "fitted law", "zero-shot", "target", "target due")  # in this order
PER_INCH = 160


@any_letters()
def draw_curve(
    points: Sequence[Point], *, metric: Metric | Literal["both"], targets: Sequence[float] = (0.9,)
) -> bytes:
    """A PNG with one panel per attribute: the mean over seeds with its interval, by number of labelled images.

    Faint dots are single seeds, the thin line is the fitted law (dotted beyond the measured sizes, up to a diamond
    where it reaches the first target), the dashed line is zero-shot.
    """
    from matplotlib.figure import Figure

    names = attributes_of(points)
    metrics: list[Metric] = list(METRIC_NAMES) if metric == "both" else [metric]
    rows = max(1, math.ceil(len(names) / MOST_COLUMNS))
    columns = max(1, math.ceil(len(names) / rows))
    wide, high = {1: 7.2, 2: 9.6}.get(columns, 12.0), 1.4 + 2.95 * rows
    figure = Figure(figsize=(wide, high), dpi=PER_INCH, facecolor="white")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    side = 0.62 / wide
    figure.subplots_adjust(
        left=side, right=1 - 0.2 / wide, bottom=1.1 / high, top=1 - 0.6 / high, wspace=0.1, hspace=0.42
    )
    sizes = sorted({point.items for point in points if point.items > 0})
    edges = (0.8 * sizes[0], 1.25 * sizes[-1] * _room(points, metrics, targets)) if sizes else (1.0, 10.0)
    for axes, name in zip(panels, names, strict=False):
        own = [point for point in points if point.attribute == name]
        _style_panel(axes, sizes, edges, (wide * (1 - side) / columns) * 0.86)
        for target in targets:
            axes.axhline(target, color=RULE, linewidth=2.2, zorder=0.5, label="target")
        for place, each in enumerate(metrics):
            _draw_metric(axes, own, each, 1.045 ** (2 * place - len(metrics) + 1), targets)
        _title(axes, name, _told(own, metrics[-1], targets, len(metrics) > 1), 0.88 * (wide - 0.8) / columns)
    _finish(figure, panels, len(names))
    return _png(figure)


def _room(points: Sequence[Point], metrics: Sequence[Metric], targets: Sequence[float]) -> float:
    """How far the axis goes beyond the largest size, so that targets soon reached are on it."""
    largest = max(point.items for point in points)
    due = [
        law.items_for(targets[0]) / largest
        for name in attributes_of(points)
        for metric in metrics
        if targets and (law := law_of(points, name, metric))
    ]
    return max([1.0, *(times for times in due if times <= FARTHEST_DRAWN)])


def _style_panel(axes: Any, sizes: Sequence[int], edges: tuple[float, float], inches: float) -> None:
    axes.set_xscale("log")
    axes.set(xlim=edges, ylim=(0, 1.03))
    axes.set_xticks([], minor=True)
    axes.set_xticks(sizes, _size_labels(sizes, edges, inches), fontsize=8.5, color=MUTED)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"], fontsize=8.5, color=MUTED)
    axes.tick_params(length=0, labelbottom=True)
    axes.tick_params(axis="x", length=3, color=RULE)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)


def _size_labels(sizes: Sequence[int], edges: tuple[float, float], inches: float) -> list[str]:
    """What stands under the ticks of an axis `inches` long; the last is kept, a label without room is left empty."""
    labels = [f"{size // 1000:,}k" if size >= 10_000 and size % 1000 == 0 else f"{size:,}" for size in sizes]
    scale = inches / math.log(edges[1] / edges[0])
    taken = math.inf  # where the label to the right begins
    for place in reversed(range(len(sizes))):
        middle, half = scale * math.log(sizes[place] / edges[0]), 0.036 * len(labels[place]) + 0.02
        if middle + half > taken:
            labels[place] = ""
        else:
            taken = middle - half
    return labels


def _draw_metric(axes: Any, own: Sequence[Point], metric: Metric, shift: float, targets: Sequence[float]) -> None:
    """One attribute's scores; `shift` moves the marks of two metrics apart."""
    colour = METRIC_COLOURS[metric]
    found = levels(own, metric)
    trained = [level for level in found if level.items]
    for level in found[: len(found) - len(trained)]:
        axes.axhline(level.mean, color=colour, linewidth=1.1, dashes=(4, 3), zorder=1.5, label="zero-shot")
    if not trained:
        return
    if any(level.seeds > 1 for level in trained):
        single = [(point.items * shift, getattr(point, metric)) for point in own if point.items]
        axes.scatter(*zip(*single, strict=True), s=9, color=colour, alpha=0.3, linewidths=0, label="one seed")
    sizes = np.array([level.items for level in trained])
    low, means, high = np.array([(level.low, level.mean, level.high) for level in trained]).T
    law = law_of(own, trained[0].attribute, metric)
    if law is None:
        axes.plot(sizes, means, color=colour, linewidth=0.8)
    else:
        _draw_law(axes, law, trained, colour, targets)
    style = {"fmt": "o", "color": colour, "markersize": 4.5, "elinewidth": 1.3, "zorder": 3}
    axes.errorbar(sizes * shift, means, (means - low, high - means), label=METRIC_NAMES[metric], **style)


def _draw_law(axes: Any, law: PowerLaw, trained: Sequence[Level], colour: str, targets: Sequence[float]) -> None:
    first, last = trained[0].items, trained[-1].items
    line = {"color": colour, "linewidth": 1.0, "zorder": 2.5}
    places = np.geomspace(first, last, 100)
    axes.plot(places, [law.score(items) for items in places], label="fitted law", **line)
    due = law.items_for(targets[0]) if targets else math.inf
    if not last < due <= FARTHEST_DRAWN * last:
        return
    places = np.geomspace(last, due, 50)
    axes.plot(places, [law.score(items) for items in places], linestyle=":", **line)
    hollow = {"marker": "D", "markersize": 6, "color": "white", "markeredgecolor": colour, "linestyle": ""}
    axes.plot([due], targets[:1], zorder=3.5, label="target due", **hollow)


def _told(own: Sequence[Point], metric: Metric, targets: Sequence[float], both: bool) -> str:
    """What a panel says under its name: where the first target is reached, or is due."""
    found = levels(own, metric)
    if not targets:
        return ""
    goal = f"{METRIC_NAMES[metric]} {targets[0]:g}" if both else f"{targets[0]:g}"
    reached = next((level for level in found if level.mean >= targets[0]), None)
    if reached:
        return f"{goal} reached with {reached.items:,}" if reached.items else f"{goal} reached without labels"
    law = law_of(own, own[0].attribute, metric)
    due = law.items_for(targets[0]) if law else math.inf
    if found[-1].items < due <= FARTHEST * found[-1].items:
        return f"{goal} due at about {rounded_up(math.ceil(due)):,}"
    return f"{goal} not reached" + (f": {found[-1].mean:.2f} with {found[-1].items:,}" if found[-1].items else "")


def _title(axes: Any, name: str, told: str, inches: float) -> None:
    beside = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom", "annotation_clip": False}
    name = _shortened(axes.figure, name, inches, fontsize=11, weight="bold")
    axes.annotate(name, (0, 1), xytext=(0, 17), fontsize=11, weight="bold", color=INK, **beside)
    axes.annotate(told, (0, 1), xytext=(0, 5), fontsize=8.5, color=MUTED, **beside)


def _finish(figure: Any, panels: Any, used: int) -> None:
    """Hides empty panels, says what the axis is, and explains each mark that was drawn once."""
    for axes in panels[used:]:
        axes.set_visible(False)
    wide, high = figure.get_size_inches()
    drawn = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels[:used]]
    handles = {label: handle for pairs in drawn for handle, label in pairs}
    labels = [label for label in LEGEND if label in handles]
    columns = len(labels) if wide > 9 else math.ceil(len(labels) / 2)
    corner = {"loc": "upper left", "bbox_to_anchor": (0.4 / wide, 0.62 / high), "columnspacing": 1.6}
    style = {"ncols": columns, "frameon": False, "fontsize": 8.5, "labelcolor": INK}
    figure.legend([handles[label] for label in labels], labels, **corner, **style)
    axis = "labelled training images, mean over seeds with 95% interval"
    figure.text(0.62 / wide, 0.68 / high, axis, fontsize=8.5, color=MUTED)


@any_letters()
def draw_captions(arms: Sequence[Arm], *, metric: Metric) -> bytes:
    """A PNG of caption form (rows) by tuning mode (colours): means over attributes, 95% intervals over seeds."""
    from matplotlib.figure import Figure

    cells = caption_spreads(arms, metric)
    forms, modes = list(dict.fromkeys(arm.form for arm in arms)), list(dict.fromkeys(arm.mode for arm in arms))
    each, wide = max(0.62, 0.2 * len(modes) + 0.25), 9.6  # inches: one form's row, the picture
    figure = Figure(dpi=PER_INCH, facecolor="white")
    labels = [_shortened(figure, form, 3.4, fontsize=10) for form in forms]
    shown = [_shortened(figure, mode, 2.2, fontsize=9) for mode in modes]
    left = 0.45 + max(_inches(figure, label, fontsize=10) for label in labels)
    columns = int((wide - left) / (0.75 + max(_inches(figure, mode, fontsize=9) for mode in shown)))
    bottom = 0.65 + 0.24 * math.ceil(len(modes) / columns)
    high = 0.6 + each * len(forms) + bottom
    figure.set_size_inches(wide, high)
    axes = figure.add_axes((left / wide, bottom / high, 1 - (left + 0.35) / wide, each * len(forms) / high))
    for place, mode in enumerate(modes):
        rows = {row: cells[form, mode] for row, form in enumerate(forms) if (form, mode) in cells}
        colour = ZERO_SHOT_COLOUR if mode == "zero_shot" else MODE_COLOURS[place % len(MODE_COLOURS)]
        style = {"color": colour, "fmt": MODE_MARKS[place % len(MODE_MARKS)], "label": shown[place]}
        _draw_mode(axes, rows, (place - (len(modes) - 1) / 2) * 0.2 / each, style)
    _style_captions(axes, labels, cells)
    title = f"{METRIC_NAMES[metric]} by caption form and tuning mode"
    figure.text(0.2 / wide, 1 - 0.3 / high, title, fontsize=12, weight="bold", color=INK, va="center")
    corner = {"loc": "lower left", "bbox_to_anchor": ((left - 0.1) / wide, 0.05 / high), "labelcolor": INK}
    figure.legend(ncols=min(columns, len(modes)), frameon=False, fontsize=9, **corner)
    return _png(figure)


def _draw_mode(axes: Any, rows: dict[int, Spread], shift: float, style: dict[str, Any]) -> None:
    """One tuning mode's mean and interval in each form's row, `shift` off the row's middle."""
    means = np.array([cell.mean for cell in rows.values()])
    whiskers = np.abs([means - [cell.low for cell in rows.values()], [cell.high for cell in rows.values()] - means])
    axes.errorbar(means, np.array(list(rows)) + shift, xerr=whiskers, markersize=6.5, elinewidth=1.6, **style)


def _style_captions(axes: Any, labels: Sequence[str], cells: dict[tuple[str, str], Spread]) -> None:
    tenth = max(0, math.floor(10 * min((cell.low for cell in cells.values()), default=0.0) - 0.3))
    axes.set(xlim=(tenth / 10 - 0.01, 1.015), ylim=(len(labels) - 0.5, -0.5))
    tenths = range(tenth, 11)
    axes.set_xticks([t / 10 for t in tenths], [f"{t / 10:g}" for t in tenths], fontsize=9, color=MUTED)
    axes.set_yticks(range(len(labels)), labels, fontsize=10, color=INK)
    axes.set_yticks(np.arange(len(labels) - 1) + 0.5, minor=True)
    axes.tick_params(which="both", length=0)
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    axes.grid(axis="y", which="minor", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("mean over attributes, 95% interval over seeds", fontsize=9, color=MUTED, labelpad=4)


def _shortened(figure: Any, text: str, most: float, **font: Any) -> str:
    """One line that takes at most `most` inches."""
    text = " ".join(text.split()) or "…"
    # A dollar sign would start mathematics in matplotlib.
    shown = text.replace("$", r"\$")
    while len(text) > 1 and (wide := _inches(figure, shown, **font)) > most:
        text = text[: max(1, min(len(text) - 1, int(len(text) * most / wide)))]
        shown = text.replace("$", r"\$") + "…"
    return shown


def _inches(figure: Any, text: str, **font: Any) -> float:
    drawn = figure.text(0, 0, text, **font)
    wide = drawn.get_window_extent().width / figure.dpi
    drawn.remove()
    return wide


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
