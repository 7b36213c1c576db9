import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetclip.errors import UserError
from facetclip.sampling import SamplingSpec, group_cells, plan_epoch, systematic_counts


def skewed(count: int, values: int, *, seed: int, gaps: float = 0.0) -> np.ndarray:
    """Zipf-like labels with a share of gaps, as retail columns have them."""
    random = np.random.default_rng(seed)
    shares = 1 / np.arange(1, values + 1)
    labels = random.choice(values, size=count, p=shares / shares.sum())
    return np.where(random.random(count) < gaps, -1, labels).astype(np.int16)


@settings(max_examples=60, deadline=None)
@given(values=st.integers(2, 7), batch=st.integers(2, 24), seed=st.integers(0, 10_000), epoch=st.integers(0, 5))
def test_one_attribute_is_balanced_in_every_batch_within_one(values: int, batch: int, seed: int, epoch: int) -> None:
    labels = skewed(300, values, seed=seed, gaps=0.3)
    plan = plan_epoch({"colour": labels}, SamplingSpec(batch, max_repeats=1000), seed=seed, epoch=epoch)
    occurring = np.unique(labels[labels >= 0])
    for rows in plan:
        counts = np.bincount(labels[rows], minlength=values)[occurring]
        assert counts.max() - counts.min() <= 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), repeats=st.integers(1, 4), attributes=st.integers(1, 4))
def test_no_item_is_drawn_more_often_than_allowed(seed: int, repeats: int, attributes: int) -> None:
    labels = {f"a{i}": skewed(200, 3 + i, seed=seed + i, gaps=0.4) for i in range(attributes)}
    useful = np.any([column >= 0 for column in labels.values()], axis=0)
    plan = plan_epoch(labels, SamplingSpec(16, max_repeats=repeats), seed=seed, epoch=3)
    drawn = np.bincount(plan.ravel(), minlength=200)
    assert drawn.max() <= repeats
    assert drawn[~useful].sum() == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_natural_sampling_draws_each_item_at_most_once_and_loses_less_than_a_batch(seed: int) -> None:
    labels = {"sleeve": skewed(211, 4, seed=seed), "colour": skewed(211, 5, seed=seed + 1, gaps=0.5)}
    plan = plan_epoch(labels, SamplingSpec(16, balanced=False), seed=seed, epoch=1)
    assert plan.shape == (211 // 16, 16)
    assert len(np.unique(plan)) == plan.size


def test_an_epoch_is_a_function_of_seed_and_epoch_alone() -> None:
    labels = {"lid": skewed(500, 2, seed=1), "kind": skewed(500, 6, seed=2, gaps=0.2)}
    spec = SamplingSpec(32)
    first = plan_epoch(labels, spec, seed=7, epoch=2)
    assert np.array_equal(first, plan_epoch(labels, spec, seed=7, epoch=2))
    assert not np.array_equal(first, plan_epoch(labels, spec, seed=7, epoch=3))
    assert not np.array_equal(first, plan_epoch(labels, spec, seed=8, epoch=2))


def test_balancing_several_patchy_attributes_brings_each_closer_to_even() -> None:
    labels = {f"a{i}": skewed(20_000, 6, seed=i, gaps=0.5) for i in range(4)}
    plan = plan_epoch(labels, SamplingSpec(64, max_repeats=8), seed=0, epoch=0)
    for column in labels.values():
        drawn = np.bincount(column[plan.ravel()][column[plan.ravel()] >= 0], minlength=6)
        assert drawn.min() / drawn.max() > 0.9
        assert np.bincount(column[column >= 0]).min() / np.bincount(column[column >= 0]).max() < 0.2


def test_successive_epochs_cover_a_frequent_value_before_any_item_comes_again() -> None:
    labels = np.repeat([0, 1], [900, 100]).astype(np.int16)
    spec = SamplingSpec(20, max_repeats=5)
    seen = np.concatenate([plan_epoch({"lid": labels}, spec, seed=3, epoch=epoch).ravel() for epoch in range(2)])
    frequent = np.bincount(seen, minlength=1000)[:900]
    assert frequent.max() - frequent.min() <= 2
    assert (frequent > 0).mean() > 0.99


def test_what_cannot_be_planned_is_refused_with_the_numbers() -> None:
    nothing = np.full(10, -1, dtype=np.int16)
    with pytest.raises(UserError, match="no item of the training split carries a label"):
        plan_epoch({"lid": nothing}, SamplingSpec(2), seed=0, epoch=0)
    few = np.array([0, 1, -1], dtype=np.int16)
    with pytest.raises(UserError, match="a batch of 64 cannot be filled: 2 labelled items, repeated 4 times"):
        plan_epoch({"lid": few}, SamplingSpec(64), seed=0, epoch=0)


def test_cells_of_many_wide_attributes_stay_apart_although_their_product_overflows() -> None:
    labels = {f"a{i}": np.random.default_rng(i).integers(-1, 30_000, 400).astype(np.int16) for i in range(8)}
    cells = group_cells(labels)
    assert int(cells.size.sum()) == 400
    for name, column in enumerate(labels.values()):
        for place in range(len(cells.size)):
            members = cells.order[cells.start[place] : cells.start[place] + cells.size[place]]
            assert (column[members] == cells.labels[name, place]).all()


@settings(deadline=None)
@given(st.lists(st.floats(0, 20), min_size=1, max_size=30), st.floats(0, 1, exclude_max=True))
def test_systematic_counts_stay_within_one_of_their_share(shares: list[float], offset: float) -> None:
    total = round(sum(shares))
    expected = np.array(shares) * (total / sum(shares)) if total else np.zeros(len(shares))
    counts = systematic_counts(expected, total, offset)
    assert counts.sum() == total
    assert (counts >= 0).all()
    assert np.abs(counts - expected).max() <= 1 + 1e-6


def test_a_million_items_and_forty_values_are_planned_whole() -> None:
    labels = {"kind": skewed(1_000_000, 40, seed=0)}
    plan = plan_epoch(labels, SamplingSpec(4096), seed=0, epoch=1)
    assert plan.size > 0.99 * 1_000_000
