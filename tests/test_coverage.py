"""Coverage against a loop over every place to cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics import attribute, draw_scores

from facetclip import coverage as module
from facetclip.coverage import TARGETS, Ranking, coverage, curve, rank
from facetclip.metrics import listed_values


def by_hand(sure: np.ndarray, right: np.ndarray, counts: np.ndarray, target: float) -> float:
    """Every threshold in turn; answers that are equally sure are given together."""
    best = 0
    for threshold in np.unique(sure):
        given = counts[sure >= threshold].sum()
        if given and (counts * right)[sure >= threshold].sum() / given >= target - 1e-9:
            best = max(best, given)
    return best / counts.sum()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), items=st.integers(1, 60), multi=st.booleans(), digits=st.integers(1, 4))
def test_coverage_is_that_of_trying_every_threshold_also_in_every_draw(seed, items, multi, digits):
    random = np.random.default_rng(seed)
    kind = attribute(3, multi=multi)
    labels = random.integers(1, 8, items) if multi else random.integers(0, 3, items)
    scores = draw_scores(seed, items, 3, 3.0).astype(np.float64).round(digits)  # ties
    groups = random.integers(0, 7, items)
    weights = random.poisson(1.0, (7, 5))
    weights[:, 0] = 1
    listed = listed_values(kind, labels)
    found = coverage(rank(kind, listed, scores, groups), weights)
    read = scores.argmax(axis=1)[:, None] == np.arange(3)
    read = read | (scores >= 0.5) if multi else read
    sure = np.where(read, scores, 1 - scores).min(axis=1) if multi else scores.max(axis=1)
    right = (read == listed).all(axis=1)
    for name, target in TARGETS.items():
        for draw in range(5):
            counts = weights[groups, draw]
            if counts.sum():
                assert found[name][draw] == pytest.approx(by_hand(sure, right, counts, target))
            else:
                assert np.isnan(found[name][draw])


def test_of_very_many_answers_so_many_places_are_tried_that_hardly_anything_is_lost():
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 3, 20_000), draw_scores(1, 20_000, 3, 3.0)
    scores[np.arange(20_000), labels] += 0.5
    listed, groups = listed_values(attribute(3), labels), np.arange(20_000) % 50
    ranking = rank(attribute(3), listed, scores, groups)
    assert len(ranking.ends) <= module.MOST_STEPS
    sure, right = scores.max(axis=1), scores.argmax(axis=1) == labels
    order = np.argsort(-sure)
    precise = np.cumsum(right[order]) / np.arange(1, 20_001)
    found = coverage(ranking, np.ones((50, 1), dtype=int))
    for name, target in TARGETS.items():
        whole = (np.flatnonzero(precise >= target).max(initial=-1) + 1) / 20_000
        assert whole - 0.002 <= found[name][0] <= whole


def test_answers_that_are_all_as_sure_are_given_all_or_none():
    ranking = rank(
        attribute(2),
        listed_values(attribute(2), np.array([0] * 95 + [1] * 5)),
        np.tile([0.9, 0.1], (100, 1)),
        np.arange(100) % 3,
    )
    found = coverage(ranking, np.ones((3, 1), dtype=int))
    assert {name: share.tolist() for name, share in found.items()} == {
        "coverage_90": [1.0],
        "coverage_95": [1.0],
        "coverage_99": [0.0],
    }


def test_a_curve_ends_at_all_answers_and_their_accuracy():
    right = np.arange(500) % 5 > 0
    points = curve(Ranking(np.arange(500), right, np.arange(500)))
    assert len(points) <= module.MOST_POINTS
    assert points[-1] == (1.0, 0.8)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
