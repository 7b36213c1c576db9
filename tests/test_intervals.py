"""Intervals hold what they promise, and what they are about is what `measure_attribute` says."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_metrics import attribute, draw_scores

from facetclip import intervals
from facetclip.intervals import draws, estimate, mean_draws, numbers_of, share, tally
from facetclip.metrics import measure_attribute
from facetclip.schema import UNLABELLED

METRICS = ("accuracy", "macro_f1", "balanced_accuracy", "log_loss", "ece")


@given(
    labels=st.lists(st.integers(-1, 6), min_size=1, max_size=60).filter(lambda labels: max(labels) > 0),
    seed=st.integers(0, 1000),
    multi=st.booleans(),
)
def test_the_numbers_are_those_of_the_report(labels: list[int], seed: int, multi: bool) -> None:
    kind = attribute(3 if multi else 7, multi=multi)
    scores = draw_scores(seed, len(labels), len(kind.values), 2.0)
    truth = np.array(labels)
    products = np.random.default_rng(seed).integers(0, 9, len(labels))
    expected, found = measure_attribute(kind, truth, scores), tally(kind, truth, scores, products)
    if multi and not (truth > 0).any():
        return
    assert expected is not None
    assert found is not None
    assert numbers_of(found) == pytest.approx({name: getattr(expected, name) for name in METRICS})
    assert found.items == expected.items


@given(seed=st.integers(0, 1000))
def test_not_applicable_has_the_f1_of_the_report(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, excluded = random.integers(-2, 3, 40), random.random(40) < 0.4
    scores, products = draw_scores(seed, 40, 3, 2.0), random.integers(0, 9, 40)
    expected = measure_attribute(attribute(3), labels, scores, excluded)
    found = tally(attribute(3), labels, scores, products, excluded=excluded)
    if expected is None or found is None:
        assert expected is found is None
        return
    f1 = None if expected.not_applicable is None else expected.not_applicable.f1
    assert numbers_of(found).get("not_applicable_f1") == (f1 if f1 is None else pytest.approx(f1))


def test_each_draw_is_what_the_items_of_its_products_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 20)
    random = np.random.default_rng(0)
    labels, scores, products = random.integers(0, 4, 60), draw_scores(0, 60, 4, 2.0), random.integers(0, 12, 60)
    found = tally(attribute(4), labels, scores, products, ranked=True)
    assert found is not None
    drawn, weights = draws([{"a": found}])[0]["a"], intervals._weights(12)
    for draw in range(21):
        again = np.repeat(np.arange(60), weights[draw, intervals.groups_of(products)])
        expected = measure_attribute(attribute(4), labels[again], scores[again])
        assert expected is not None
        assert [drawn[name][draw] for name in METRICS] == pytest.approx([getattr(expected, name) for name in METRICS])


def test_nothing_labelled_has_no_tally() -> None:
    assert tally(attribute(2), np.array([UNLABELLED]), np.ones((1, 2)), np.zeros(1, int)) is None
    assert draws([{}]) == [{}]


def simulated(seed: int, products: int, right: float, photos: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and products; all photos of a product are read alike."""
    draw = np.random.default_rng(seed)
    labels, good = draw.integers(0, 2, products), draw.random(products) < right
    read = np.where(good, labels, 1 - labels)
    probable = np.where(read[:, None] == np.arange(2), 0.8, 0.2)
    return np.repeat(labels, photos), np.repeat(probable, photos, axis=0), np.repeat(np.arange(products), photos)


def test_nineteen_of_twenty_intervals_hold_the_truth_also_where_products_have_several_photos(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 300)
    held = 0
    for seed in range(200):
        found = tally(attribute(2), *simulated(seed, 80, 0.8, photos=4))
        assert found is not None
        each = estimate(draws([{"a": found}])[0]["a"]["accuracy"])
        held += each.low <= 0.8 <= each.high
    assert 0.9 <= held / 200 <= 0.99


def test_nineteen_of_twenty_intervals_of_a_coverage_and_of_a_difference_hold_the_truth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 120)
    covered = differs = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        labels, products = random.integers(0, 2, 300), np.arange(300) // 2
        sure = random.uniform(0.5, 1.0, 300)  # and right as often: nine tenths of those above 0.8, which are 0.4 of all

        def read(shift: float, labels: np.ndarray = labels, sure: np.ndarray = sure, seed: int = seed) -> np.ndarray:
            right = np.random.default_rng(seed + 1000).random(len(sure)) < sure + shift
            value = np.where(right, labels, 1 - labels)
            return np.where(value[:, None] == np.arange(2), sure[:, None], 1 - sure[:, None])

        model, other = (tally(attribute(2), labels, read(shift), products, ranked=True) for shift in (0.0, -0.1))
        assert model is not None
        assert other is not None
        ours, theirs = (each["a"] for each in draws([{"a": model}, {"a": other}]))
        coverage = estimate(ours["coverage_90"])
        covered += coverage.low <= 0.4 <= coverage.high
        difference = estimate(ours["accuracy"] - theirs["accuracy"])
        differs += difference.low <= 0.1 <= difference.high
    assert covered / 100 >= 0.88
    assert 0.9 <= differs / 100 <= 0.99


def test_copies_of_the_photos_make_no_interval_narrower() -> None:
    widths = []
    for photos in (1, 10):
        found = tally(attribute(2), *simulated(0, 80, 0.8, photos))
        assert found is not None
        each = estimate(draws([{"a": found}])[0]["a"]["macro_f1"])
        widths.append(each.high - each.low)
    assert widths[0] == pytest.approx(widths[1])


def test_two_models_share_their_draws_and_a_model_differs_from_itself_in_nothing() -> None:
    labels, probable, products = simulated(0, 200, 0.8)
    better = probable.copy()
    wrong = np.flatnonzero(probable.argmax(axis=1) != labels)[:8]
    better[wrong] = 1 - better[wrong]
    first, second = (tally(attribute(2), labels, each, products) for each in (probable, better))
    assert first is not None
    assert second is not None
    one, two, same = draws([{"a": first}, {"a": second}, {"a": first}])
    assert (one["a"]["accuracy"] == same["a"]["accuracy"]).all()
    difference = estimate(two["a"]["accuracy"] - one["a"]["accuracy"])
    alone = estimate(one["a"]["accuracy"])
    assert difference.value == pytest.approx(0.04)
    assert 0 < difference.low < difference.high < alone.high - alone.low


def test_the_mean_leaves_out_what_a_draw_does_not_hold_but_never_a_number_that_is_none() -> None:
    numbers = {"a": {"x": np.array([0.5, np.nan, 0.25])}, "b": {"x": np.array([1.0, 1.0, 0.75])}}
    assert mean_draws(numbers)["x"].tolist() == [0.75, 1.0, 0.5]
    assert np.isnan(mean_draws({**numbers, "a": {"x": np.array([np.nan, 1.0, 1.0])}})["x"][0])
    assert np.isnan(estimate(np.array([np.nan, 1.0])).low)


def test_very_many_products_are_drawn_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = share(np.arange(3000) % 4 > 0, np.arange(3000))
    monkeypatch.setattr(intervals, "MOST_GROUPS", 500)
    grouped = share(np.arange(3000) % 4 > 0, np.arange(3000))
    assert whole.value == grouped.value == 0.75
    # 500 is a multiple of 4, so that every group holds the same remainders: products next to each other stay apart
    assert whole.low < 0.75 < whole.high


def test_the_same_numbers_every_time() -> None:
    hits, products = np.arange(50) % 3 > 0, np.arange(50) // 2
    assert share(hits, products) == share(hits, products)


def test_twenty_thousand_photos_ten_attributes_and_a_thousand_draws_take_seconds() -> None:
    random, begun = np.random.default_rng(0), time.process_time()
    products, found = random.integers(0, 8_000, 20_000), {}
    for place in range(10):
        labels, scores = random.integers(-1, 8, 20_000), draw_scores(place, 20_000, 8, 2.0)
        each = tally(attribute(8), labels, scores, products, excluded=random.random(20_000) < 0.1, ranked=True)
        assert each is not None
        found[str(place)] = each
    (numbers,) = draws([found])
    assert all(len(drawn) == 1001 for each in numbers.values() for drawn in each.values())
    assert time.process_time() - begun < 20  # 3 on a machine with nothing else to do


def test_an_interval_holds_its_number_and_is_wide_where_draws_lie_beside_it() -> None:
    """As of an error of calibration, which draws enlarge, and of a mean whose rare values draws lack."""
    random = np.random.default_rng(0)
    for shift in (-4.0, -2.0, -0.5, 0.0, 0.5, 2.0, 4.0):
        found = estimate(np.concatenate([[0.0], random.normal(shift, 1.0, 1000)]))
        assert found.low <= found.value <= found.high
        assert found.high - found.low > 1.5
    even = estimate(np.concatenate([[0.0], np.linspace(-1, 1, 1001)]))
    assert (even.low, even.high) == pytest.approx((-0.95, 0.95), abs=0.01)
    moved = estimate(np.concatenate([[0.0], random.normal(0.25, 1.0, 4000)]))
    assert (moved.low, moved.high) == pytest.approx((-1.96 - 0.25, 1.96 - 0.25), abs=0.2)
    assert estimate(np.zeros(9)) == intervals.Estimate(0.0, 0.0, 0.0)
