import io

import numpy as np
import pytest
from PIL import Image

from facetclip.learning_curve import Arm, Metric, Point
from facetclip.study_pictures import draw_captions, draw_curve

HOSTILE = ["price in $ or $$", "W$" * 60, r"a\b_{x}^2", "two\nlines", "", "黒い $x$"]


def curve(names: list[str], *, sizes: tuple[int, ...] = (10, 20, 40, 100, 437), seeds: int = 3) -> list[Point]:
    draw = np.random.default_rng(0)
    found = [Point(0, 0, name, 0.4, 0.3) for name in names]
    for place, name in enumerate(names):
        for items in sizes:
            for seed in range(seeds):
                score = 0.98 - 0.08 * (place % 3) - 1.1 * items**-0.5 + 0.02 * float(draw.normal())
                found.append(Point(items, seed, name, min(1.0, score), max(0.0, score - 0.05)))
    return found


def arms(forms: list[str], modes: list[str], *, seeds: int = 3) -> list[Arm]:
    return [
        Arm(form, mode, seed, name, 0.5 + 0.01 * (row + column + seed), 0.4 + 0.01 * (row + column + seed))
        for row, form in enumerate(forms)
        for column, mode in enumerate(modes)
        for seed in range(seeds)
        for name in ("lid", "handle")
    ]


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def edge_is_white(shown: np.ndarray) -> bool:
    """Whether nothing touches the edge of the picture, as a label that is cut off would."""
    return bool((shown[[0, -1]] == 255).all() and (shown[:, [0, -1]] == 255).all())


@pytest.mark.parametrize("names", [1, 2, 5, 12])
def test_a_curve_has_a_panel_for_each_attribute(names: int) -> None:
    shown = pixels(draw_curve(curve([f"attribute {place}" for place in range(names)]), metric="macro_f1"))
    assert edge_is_white(shown)
    assert shown.shape[1] == {1: 1152, 2: 1536}.get(names, 1920)
    rows = {1: 1, 2: 1, 5: 2, 12: 3}[names]
    assert shown.shape[0] == pytest.approx(160 * (1.4 + 2.95 * rows), abs=2)


@pytest.mark.parametrize(
    "points",
    [
        [Point(0, 0, "lid", 0.5, 0.4)],
        [Point(10, 0, "lid", 1.0, 1.0)],
        curve(["lid"], sizes=(10, 20)),
        curve(["lid"], seeds=1),
        [Point(items, seed, "lid", 0.7, 0.7) for items in (10, 20, 40, 80, 160) for seed in (0, 1)],
        curve(["lid", "handle"], sizes=tuple(range(10, 200, 10))),
        curve(HOSTILE),
    ],
    ids=["zero-shot only", "one training", "two sizes", "one seed", "equal scores", "many sizes", "hostile names"],
)
def test_a_curve_is_drawn_whatever_was_measured(points: list[Point]) -> None:
    assert edge_is_white(pixels(draw_curve(points, metric="both", targets=(0.9, 0.99))))


def test_a_curve_needs_no_target() -> None:
    assert edge_is_white(pixels(draw_curve(curve(["lid"]), metric="both", targets=())))


def test_the_two_metrics_have_colours_of_their_own() -> None:
    points = curve(["lid"])
    both, one = pixels(draw_curve(points, metric="both")), pixels(draw_curve(points, metric="accuracy"))
    macro_f1 = (0x17, 0x53, 0x9C)
    assert (both == macro_f1).all(axis=2).any()
    assert not (one == macro_f1).all(axis=2).any()


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_captions_are_drawn_by_form_and_mode(metric: Metric, seeds: int) -> None:
    modes = ["zero_shot", "probe", "prompt", "lora", "image_tower", "last_blocks", "full", "WiSE-FT", "W" * 50]
    few = pixels(draw_captions(arms(["value only"], ["probe"], seeds=seeds), metric=metric))
    many = pixels(draw_captions(arms(["value only", *HOSTILE], modes, seeds=seeds), metric=metric))
    assert edge_is_white(few)
    assert edge_is_white(many)
    assert few.shape[1] == many.shape[1] == 1536


def test_a_cell_that_is_not_measured_is_left_empty() -> None:
    measured = [arm for arm in arms(["a", "b"], ["probe", "lora"]) if (arm.form, arm.mode) != ("b", "lora")]
    assert edge_is_white(pixels(draw_captions(measured, metric="accuracy")))
    halves = [arm for arm in arms(["a"], ["probe", "lora"]) if arm.mode == "probe" or arm.attribute == "lid"]
    assert edge_is_white(pixels(draw_captions(halves, metric="accuracy")))


def test_the_same_study_gives_the_same_bytes() -> None:
    points, made = curve(["lid"]), arms(["a", "b"], ["probe"])
    assert draw_curve(points, metric="both") == draw_curve(points, metric="both")
    assert draw_captions(made, metric="accuracy") == draw_captions(made, metric="accuracy")
