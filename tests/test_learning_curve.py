import json
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetclip.learning_curve import (
    FARTHEST,
    METRIC_NAMES,
    Arm,
    Level,
    Point,
    caption_spreads,
    captions_table,
    curve_json,
    curve_table,
    forecast,
    law_of,
    levels,
    mean_over_attributes,
    rounded_up,
    spread,
)
from facetclip.power_law import fit_power_law
from facetclip.tables import text_table

SIZES = (10, 20, 40, 60, 100, 200, 437)


def curve(
    attribute: str = "lid",
    *,
    law: tuple[float, float, float] = (0.97, 1.3, 0.55),
    sizes: tuple[int, ...] = SIZES,
    seeds: int = 5,
    noise: float = 0.2,
) -> list[Point]:
    """Trainings whose noise falls with the square root of the size, and one zero-shot reading."""
    draw = np.random.default_rng(len(attribute))
    points = [Point(0, 0, attribute, 0.4, 0.3)]
    for items in sizes:
        for seed in range(seeds):
            score = law[0] - law[1] * items ** -law[2] + noise * draw.normal() / math.sqrt(items)
            points.append(Point(items, seed, attribute, *np.clip([score, 0.95 * score], 0, 1).tolist()))
    return points


def flat(score: float, sizes: tuple[int, ...] = SIZES) -> list[Point]:
    return [Point(items, seed, "lid", score, score) for items in sizes for seed in range(3)]


scores = st.floats(0, 1)


@st.composite
def some_points(draw: st.DrawFn) -> list[Point]:
    sizes = draw(st.lists(st.integers(0, 5000), min_size=1, max_size=7, unique=True))
    seeds = draw(st.integers(1, 4))
    found = []
    for items in sizes:
        for seed in range(draw(st.integers(1, seeds))):
            found.append(Point(items, seed, "lid", draw(scores), draw(scores)))
    return found


@settings(deadline=None, max_examples=60)
@given(st.lists(scores, min_size=1, max_size=12))
def test_an_interval_contains_its_mean_and_stays_between_0_and_1(found: list[float]) -> None:
    over = spread(found)
    assert 0 <= over.low <= over.mean + 1e-12
    assert over.mean - 1e-12 <= over.high <= 1
    assert len(found) > 1 or over.low == over.mean == over.high


@pytest.mark.parametrize(("seeds", "quantile"), [(2, 12.7062), (5, 2.7764), (6, 2.5706), (10, 2.2622), (31, 2.0423)])
def test_the_half_width_follows_students_t(seeds: int, quantile: float) -> None:
    found = np.linspace(0.4, 0.6, seeds)
    assert spread(found.tolist()).half == pytest.approx(quantile * found.std(ddof=1) / math.sqrt(seeds), rel=5e-4)


def test_the_interval_holds_the_true_mean_in_95_of_100_studies() -> None:
    draw = np.random.default_rng(3)
    held = [abs((over := spread(row)).mean - 0.5) <= over.half for row in draw.normal(0.5, 0.05, (2000, 5)).tolist()]
    error = NormalDist().inv_cdf(0.9995) * math.sqrt(0.95 * 0.05 / 2000)
    assert np.mean(held) == pytest.approx(0.95, abs=error)


def test_levels_go_by_attribute_and_size_and_keep_zero_shot() -> None:
    points = [*curve("lid", sizes=(20, 10), seeds=2), *curve("handle", sizes=(10,), seeds=1)]
    found = levels(points[::-1], "accuracy")
    assert [(level.attribute, level.items, level.seeds) for level in found] == [
        ("handle", 0, 1),
        ("handle", 10, 1),
        ("lid", 0, 1),
        ("lid", 10, 2),
        ("lid", 20, 2),
    ]
    assert found[0] == Level("handle", 0, 1, 0.4, 0.4, 0.4)


def test_a_training_listed_twice_or_a_score_that_is_none_is_refused() -> None:
    point = Point(10, 0, "lid", 0.5, 0.5)
    with pytest.raises(ValueError, match="listed twice"):
        levels([point, Point(10, 0, "lid", 0.6, 0.5)], "accuracy")
    with pytest.raises(ValueError, match="outside 0 to 1"):
        levels([point, Point(20, 0, "lid", math.nan, 0.5)], "accuracy")
    with pytest.raises(ValueError, match="no training measured the attribute 'handle'"):
        forecast([point], "handle", "accuracy", 0.9, have=10)
    arm = Arm("value", "probe", 0, "lid", 0.5, 0.5)
    with pytest.raises(ValueError, match="listed twice"):
        captions_table([arm, arm], "accuracy")


@settings(deadline=None, max_examples=40)
@given(st.floats(0.5, 1.0), st.floats(0.3, 3.0), st.floats(0.2, 1.5))
def test_a_known_law_is_recovered(ceiling: float, scale: float, rate: float) -> None:
    sizes = np.array(SIZES)
    law = fit_power_law(SIZES, (ceiling - scale * sizes**-rate).tolist())
    assert law is not None
    assert law.ceiling == pytest.approx(ceiling, abs=2e-3)
    assert law.rate == pytest.approx(rate, rel=2e-2)
    assert law.scale == pytest.approx(scale, rel=3e-2)
    assert law.rmse < 1e-3
    assert law.points == len(SIZES)


def test_one_failed_training_hardly_bends_the_law() -> None:
    points = curve(noise=0.05)
    failed = [*points[:-1], Point(437, 4, "lid", 0.3, 0.3)]
    whole, bent = law_of(points, "lid", "accuracy"), law_of(failed, "lid", "accuracy")
    assert whole is not None
    assert bent is not None
    assert bent.score(437) == pytest.approx(whole.score(437), abs=0.02)


def test_the_ceiling_stays_at_1_where_scores_still_climb() -> None:
    law = fit_power_law([10, 100, 1000, 10_000], [0.2, 0.4, 0.6, 0.8])
    assert law is not None
    assert law.ceiling == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        ([10, 20, 40], [0.2, 0.4, 0.5]),
        ([10, 10, 20, 20, 40], [0.2, 0.3, 0.4, 0.4, 0.5]),
        ([0, 10, 20, 40], [0.1, 0.2, 0.4, 0.5]),
        (SIZES, [0.7] * 7),
        (SIZES, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]),
        ([], []),
    ],
    ids=["three sizes", "three sizes, two seeds", "zero-shot is no size", "equal", "falling", "nothing"],
)
def test_there_is_no_law_for_few_sizes_or_scores_that_do_not_rise(sizes: list[float], found: list[float]) -> None:
    assert fit_power_law(sizes, found) is None


@settings(deadline=None, max_examples=25)
@given(some_points(), st.lists(st.floats(0.05, 1.0), min_size=2, max_size=3))
def test_a_forecast_is_consistent_whatever_was_measured(points: list[Point], targets: list[float]) -> None:
    told = [forecast(points, "lid", "accuracy", target, have=100) for target in sorted(targets)]
    needed = [each.needed or math.inf for each in told]
    assert needed == sorted(needed)
    largest = max(point.items for point in points)
    for each in told:
        ends = (each.low or math.inf, each.needed or math.inf, each.high or math.inf)
        assert each.low is None or ends[0] <= ends[1]
        assert each.high is None or ends[1] <= ends[2]
        assert all(1 <= end <= FARTHEST * largest + 1 for end in ends if end < math.inf)
        assert each.words.startswith("lid: accuracy ")


def test_a_reached_target_says_with_how_many_images() -> None:
    told = forecast(curve(noise=0), "lid", "accuracy", 0.7, have=437)
    assert told.reached_at == 20
    assert told.words == "lid: accuracy 0.7 was reached with 20 labelled images"
    assert forecast(curve(), "lid", "accuracy", 0.4, have=10).words == "lid: accuracy 0.4 was reached without labels"


def test_a_target_ahead_says_how_many_more() -> None:
    told = forecast(curve(), "lid", "accuracy", 0.94, have=437)
    assert told.reached_at is None
    assert None not in (told.low, told.needed, told.high)
    true = (1.3 / 0.03) ** (1 / 0.55)
    assert (told.low or 0) <= true <= (told.high or 0)
    more = rounded_up(told.needed or 0) - 437
    assert f"by the fitted curve, {more:,} more than you have" in told.words
    assert forecast(curve(), "lid", "accuracy", 0.94, have=437) == told
    assert "no more than the 9,000 you have" in forecast(curve(), "lid", "accuracy", 0.94, have=9000).words


def test_one_seed_gives_a_forecast_without_an_interval() -> None:
    told = forecast(curve(seeds=1, noise=0), "lid", "accuracy", 0.94, have=437)
    assert told.needed == pytest.approx((1.3 / 0.03) ** (1 / 0.55), rel=0.02)
    assert (told.low, told.high) == (None, None)
    assert "(" not in told.words


def test_a_curve_that_levels_off_asks_for_better_labels() -> None:
    told = forecast(curve(law=(0.83, 1.1, 0.6), noise=0.02), "lid", "accuracy", 0.9, have=437)
    assert (told.reached_at, told.needed) == (None, None)
    assert told.words.endswith("better labels or photos rather than more")
    assert "levels off at 0.8" in told.words
    far = forecast(curve(law=(1.0, 1.0, 0.1), noise=0), "lid", "accuracy", 0.9, have=437)
    assert far.needed is None
    assert "more than 44,000 labelled images by the fitted curve" in far.words


def test_without_a_law_the_forecast_says_why() -> None:
    assert forecast(flat(0.8), "lid", "macro_f1", 0.9, have=437).words == (
        "lid: macro-F1 0.9 was not reached; the score does not rise with the number of images (0.80 with 437)"
    )
    few = forecast(flat(0.8, (10, 20)), "lid", "macro_f1", 0.9, have=20)
    assert few.words.endswith("a forecast takes 4 numbers of images, there are 2")
    start = forecast([Point(0, 0, "lid", 0.5, 0.4)], "lid", "macro_f1", 0.9, have=0)
    assert start.words.endswith("there are 0")


def test_the_table_has_a_cell_for_each_measured_size_and_a_mean_row() -> None:
    points = [*curve("lid", sizes=(10, 20)), *curve("handle", sizes=(10, 1000), seeds=1)]
    headers, rows = curve_table(points, "accuracy")
    assert headers == ["attribute", "zero-shot", "10", "20", "1,000"]
    assert [row[0] for row in rows] == ["lid", "handle", "mean"]
    assert [bool(cell) for cell in rows[1]] == [True, True, True, False, True]
    assert "±" in rows[0][2]
    assert "±" not in rows[1][2]
    assert rows[2][1] == "0.400"
    assert rows[2][3:] == ["", ""]
    assert len(text_table(headers, rows).splitlines()) == 5
    assert [row[0] for row in curve_table(curve("lid"), "accuracy")[1]] == ["lid"]


def test_means_over_attributes_take_whole_trainings_only() -> None:
    points = [Point(10, 0, "a", 0.2, 0.4), Point(10, 0, "b", 0.4, 0.8), Point(10, 1, "a", 1.0, 1.0)]
    (mean,) = mean_over_attributes(points)
    assert (mean.items, mean.seed, mean.attribute) == (10, 0, "mean")
    assert (mean.accuracy, mean.macro_f1) == pytest.approx((0.3, 0.6))


def test_the_json_holds_everything_in_plain_types() -> None:
    points = [*curve("lid"), *curve("handle", sizes=(10, 20), seeds=1)]
    numpy_points = [
        Point(np.int64(p.items), np.int64(p.seed), p.attribute, np.float64(p.accuracy), np.float64(p.macro_f1))  # pyright: ignore[reportArgumentType]
        for p in points
    ]
    found = curve_json(numpy_points, [0.8, 0.9])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert len(found["points"]) == len(points)
    for metric in METRIC_NAMES:
        assert [(each["attribute"], each["target"]) for each in found["forecasts"][metric]] == [
            (name, target) for name in ("lid", "handle") for target in (0.8, 0.9)
        ]
        assert found["laws"][metric]["handle"] is None
        assert found["laws"][metric]["lid"]["points"] == 35
        assert len(found["levels"][metric]) == 8 + 3


def arms() -> list[Arm]:
    return [
        Arm(form, mode, seed, attribute, 0.5 + 0.1 * bonus + 0.01 * seed, 0.4)
        for bonus, form in enumerate(("value only", "a photo of {value}"))
        for mode in ("probe", "lora")
        for seed in range(3)
        for attribute in ("lid", "handle")
    ]


def test_the_captions_table_marks_the_best_form_and_mode() -> None:
    better = Arm("value only", "full", 0, "lid", 0.9, 0.9)
    (headers, rows), by_attribute = captions_table([*arms(), better], "accuracy")
    assert headers == ["caption form", "probe", "lora", "full"]
    assert rows[0][1:] == ["0.510 ±0.025 ", "0.510 ±0.025 ", ""]
    assert rows[1][1:] == ["0.610 ±0.025*", "0.610 ±0.025*", ""]
    assert list(by_attribute) == ["lid", "handle"]
    assert by_attribute["lid"][1][0][-1] == "0.900*"
    assert sum(cell.endswith("*") for row in by_attribute["lid"][1] for cell in row) == 1
    assert by_attribute["handle"][0] == ["caption form", "probe", "lora"]


def test_a_seed_that_lacks_an_attribute_is_in_no_mean_over_attributes() -> None:
    cells = caption_spreads(arms()[:-1], "accuracy")
    assert [cell.seeds for cell in cells.values()] == [3, 3, 3, 2]
    assert caption_spreads([], "accuracy") == {}
