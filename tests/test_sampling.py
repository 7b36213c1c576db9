from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetclip.errors import UserError
from facetclip.mix import Mix, describe_mix, plan_mix
from facetclip.sampling import SamplingSpec, expected_draws, labelled_subset, plan_epoch, systematic_counts


def skewed(count: int, values: int, *, seed: int, gaps: float = 0.0) -> np.ndarray:
    """Zipf-like labels with a share of gaps, as retail columns have them."""
    random = np.random.default_rng(seed)
    shares = 1 / np.arange(1, values + 1)
    labels = random.choice(values, size=count, p=shares / shares.sum())
    return np.where(random.random(count) < gaps, -1, labels).astype(np.int16)


def table(items: int, attributes: int, *, seed: int, gaps: float = 0.5) -> dict[str, np.ndarray]:
    return {f"a{i}": skewed(items, 3 + i, seed=100 * seed + i, gaps=gaps) for i in range(attributes)}


def plan_of(labels: Mapping[str, np.ndarray], spec: SamplingSpec, *, seed: int = 0, epoch: int = 0, views: int = 1):
    items = len(next(iter(labels.values())))
    return plan_epoch(labels, np.arange(items) // views, spec, seed=seed, epoch=epoch)


def distance(column: np.ndarray, places: np.ndarray) -> float:
    """Total variation between the mix of values among the labelled draws and an even one."""
    drawn = column[places][column[places] >= 0]
    shares = np.bincount(drawn, minlength=int(column.max()) + 1)[np.unique(column[column >= 0])] / len(drawn)
    return float(np.abs(shares - 1 / len(shares)).sum() / 2)


@settings(max_examples=60)
@given(values=st.integers(2, 7), batch=st.integers(2, 24), seed=st.integers(0, 10_000), epoch=st.integers(0, 5))
def test_one_attribute_is_balanced_in_every_batch_within_one(values: int, batch: int, seed: int, epoch: int) -> None:
    labels = skewed(300, values, seed=seed, gaps=0.3)
    plan = plan_of({"colour": labels}, SamplingSpec(batch, max_repeats=1000), seed=seed, epoch=epoch)
    occurring = np.unique(labels[labels >= 0])
    for rows in plan:
        counts = np.bincount(labels[rows], minlength=values)[occurring]
        assert counts.max() - counts.min() <= 1


@settings(max_examples=40)
@given(batch=st.integers(4, 24), seed=st.integers(0, 10_000), repeats=st.integers(1, 6))
def test_where_the_cap_binds_each_batch_still_has_the_mix_of_the_epoch(batch: int, seed: int, repeats: int) -> None:
    labels = skewed(240, 6, seed=seed)
    plan = plan_of({"colour": labels}, SamplingSpec(batch, max_repeats=repeats), seed=seed)
    per_batch = np.array([np.bincount(labels[rows], minlength=6) for rows in plan])
    assert (per_batch.max(axis=0) - per_batch.min(axis=0)).max() <= 1
    whole, room = per_batch.sum(axis=0), np.bincount(labels, minlength=6) * repeats
    free = whole[(whole < room - len(plan)) & (room > 0)]  # values that the cap does not hold back are drawn alike
    assert free.size == 0 or free.max() - free.min() <= len(plan)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    repeats=st.integers(1, 4),
    attributes=st.integers(1, 4),
    strategy=st.sampled_from(["balanced", "square_root"]),
)
def test_no_item_is_drawn_more_often_than_allowed(seed: int, repeats: int, attributes: int, strategy) -> None:
    labels = table(200, attributes, seed=seed, gaps=0.4)
    useful = np.any([column >= 0 for column in labels.values()], axis=0)
    plan = plan_of(labels, SamplingSpec(16, strategy, max_repeats=repeats), seed=seed, epoch=3, views=3)
    drawn = np.bincount(plan.ravel(), minlength=200)
    assert drawn.max() <= repeats
    assert drawn[~useful].sum() == 0


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), batch=st.integers(2, 40), epoch=st.integers(0, 3))
def test_natural_sampling_loses_no_item_and_repeats_less_than_a_batch(seed: int, batch: int, epoch: int) -> None:
    labels = table(211, 2, seed=seed)
    useful = np.flatnonzero(np.any([column >= 0 for column in labels.values()], axis=0))
    plan = plan_of(labels, SamplingSpec(batch, "natural"), seed=seed, epoch=epoch)
    assert np.array_equal(np.unique(plan), useful)
    assert plan.size - len(useful) < batch
    assert np.bincount(plan.ravel()).max() <= 2


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), attributes=st.integers(1, 5))
def test_the_plan_is_the_same_for_any_number_of_processes(seed: int, attributes: int) -> None:
    """Processes take neighbouring columns of one plan that each of them computes."""
    labels, spec = table(150, attributes, seed=seed), SamplingSpec(24)
    whole = plan_of(labels, spec, seed=seed, epoch=1)
    for world in range(1, 9):
        ends = [rank * 24 // world for rank in range(world + 1)]
        copies = [plan_of(labels, spec, seed=seed, epoch=1)[:, slice(*pair)] for pair in pairwise(ends)]
        assert {part.shape[1] for part in copies} <= {24 // world, -(-24 // world)}
        assert np.array_equal(np.concatenate(copies, axis=1), whole)


def test_an_epoch_is_a_function_of_seed_and_epoch_alone() -> None:
    labels = {"lid": skewed(500, 2, seed=1), "kind": skewed(500, 6, seed=2, gaps=0.2)}
    spec = SamplingSpec(32)
    first = plan_of(labels, spec, seed=7, epoch=2)
    assert np.array_equal(first, plan_of(labels, spec, seed=7, epoch=2))
    assert not np.array_equal(first, plan_of(labels, spec, seed=7, epoch=3))
    assert not np.array_equal(first, plan_of(labels, spec, seed=8, epoch=2))


def test_balancing_several_patchy_attributes_brings_each_to_even_where_the_cap_allows() -> None:
    labels = {f"a{i}": skewed(20_000, 6, seed=i, gaps=0.5) for i in range(4)}
    plan = plan_of(labels, SamplingSpec(64, max_repeats=50))
    for column in labels.values():
        assert distance(column, plan.ravel()) < 0.01
        assert distance(column, np.arange(20_000)) > 0.2


def test_items_with_the_same_labels_are_counted_not_repeated() -> None:
    """Expected draws of each kind of item, with how many there are, are those found from every item."""
    labels = {f"a{i}": skewed(5_000, 4, seed=20 + i, gaps=0.5) for i in range(3)}
    items = np.stack([column + 1 for column in labels.values()])
    kinds, of, sizes = np.unique(items, axis=1, return_inverse=True, return_counts=True)
    spec = SamplingSpec(16, max_repeats=3)
    counted = expected_draws(list(kinds), sizes, 4_800, spec, seed=0)
    repeated = expected_draws(list(items), np.ones(5_000), 4_800, spec, seed=0)
    assert counted[of.ravel()] == pytest.approx(repeated, rel=1e-6)
    assert counted @ sizes == pytest.approx(4_800)


def test_no_reweighting_under_the_cap_is_closer_to_even_than_ours_by_much() -> None:
    """Against the optimum of the summed distance, a linear programme over the items of a small table."""
    from scipy.optimize import linprog

    labels = {f"a{i}": skewed(400, 4, seed=10 + i, gaps=0.5) for i in range(3)}
    spec = SamplingSpec(16, max_repeats=2)
    codes = [column.astype(np.int64) + 1 for column in labels.values()]
    useful = np.any([code > 0 for code in codes], axis=0)
    codes = [code[useful] for code in codes]
    draws = float(useful.sum() // 16 * 16)
    ours = expected_draws(codes, np.ones(len(codes[0])), int(draws), spec, seed=0)
    items = len(ours)

    def strays(weights: np.ndarray) -> float:
        shares = [np.bincount(code, weights=weights, minlength=5)[1:] for code in codes]
        return sum(float(np.abs(share / share.sum() - 0.25).sum() / 2) for share in shares)

    # minimise the summed slack of |mass of a value - a quarter of the attribute's mass|
    slack, rows, limits = 12, [], []
    for place, code in enumerate(codes):
        for value in range(1, 5):
            lean = (code == value) - 0.25 * (code > 0)
            for sign in (1, -1):
                row = np.concatenate([sign * lean, np.zeros(slack)])
                row[items + 4 * place + value - 1] = -1
                rows.append(row)
                limits.append(0.0)
    solved = linprog(
        np.concatenate([np.zeros(items), np.ones(slack)]),
        A_ub=np.array(rows),
        b_ub=limits,
        A_eq=np.concatenate([np.ones(items), np.zeros(slack)])[None],
        b_eq=[draws],
        bounds=[(0, 2)] * items + [(0, None)] * slack,
    )
    assert strays(ours) <= strays(solved.x[:items]) + 0.03


def test_the_square_root_lies_between() -> None:
    labels = {"kind": skewed(5_000, 8, seed=1)}
    far, between, near = (
        distance(labels["kind"], plan_of(labels, SamplingSpec(50, strategy, max_repeats=9)).ravel())
        for strategy in ("natural", "square_root", "balanced")
    )
    assert near + 0.05 < between < far - 0.05


def test_balance_over_a_chosen_attribute_leaves_the_others_as_they_fall() -> None:
    labels = {"kind": skewed(6_000, 6, seed=1), "colour": skewed(6_000, 6, seed=2)}
    plan = plan_of(labels, SamplingSpec(60, over=("kind",), max_repeats=12)).ravel()
    assert distance(labels["kind"], plan) < 0.01
    natural = distance(labels["colour"], np.arange(6_000))
    assert distance(labels["colour"], plan) == pytest.approx(natural, abs=0.05)


def test_successive_epochs_take_turns_through_a_frequent_value() -> None:
    labels = np.repeat([0, 1], [900, 100]).astype(np.int16)
    spec = SamplingSpec(20, max_repeats=5)
    seen = np.concatenate([plan_of({"lid": labels}, spec, seed=3, epoch=epoch).ravel() for epoch in range(3)])
    frequent = np.bincount(seen, minlength=1000)[:900]
    assert frequent.max() - frequent.min() <= 2
    assert frequent.min() >= 1  # by chance a fifth would be left out


def test_views_of_a_product_do_not_crowd_a_batch() -> None:
    """Products of five views: 64 of 2,000 drawn by chance would meet some 2.5 times in every batch."""
    labels = {name: np.repeat(column, 5) for name, column in table(400, 3, seed=4, gaps=0.3).items()}
    spec = SamplingSpec(64, max_repeats=3)
    products = np.arange(2_000) // 5
    plan = plan_epoch(labels, products, spec, seed=1, epoch=2)
    meetings = sum(len(rows) - len(np.unique(products[rows])) for rows in plan)
    assert meetings <= len(plan) * 0.1


def test_what_cannot_be_planned_is_refused_with_the_numbers() -> None:
    nothing = np.full(10, -1, dtype=np.int16)
    with pytest.raises(UserError, match="no item of the training split carries a label"):
        plan_of({"lid": nothing}, SamplingSpec(2))
    few = np.array([0, 1, -1], dtype=np.int16)
    with pytest.raises(UserError, match="a batch of 64 cannot be filled: 2 labelled items, repeated 4 times"):
        plan_of({"lid": few}, SamplingSpec(64))


def test_attributes_whose_combinations_overflow_an_integer_are_planned_too() -> None:
    random = np.random.default_rng(0)
    labels = {f"a{i}": random.integers(-1, 1 << 30, 400) for i in range(8)}  # bit masks of thirty values
    plan = plan_of(labels, SamplingSpec(20, max_repeats=3))
    assert plan.shape == (20, 20)
    assert np.bincount(plan.ravel()).max() <= 3


@given(st.lists(st.floats(0, 20), min_size=1, max_size=30), st.floats(0, 1, exclude_max=True))
def test_systematic_counts_stay_within_one_of_their_share(shares: list[float], offset: float) -> None:
    total = round(sum(shares))
    expected = np.array(shares) * (total / sum(shares)) if total else np.zeros(len(shares))
    counts = systematic_counts(expected, total, offset)
    assert counts.sum() == total
    assert (counts >= 0).all()
    assert np.abs(counts - expected).max() <= 1 + 1e-6


def test_the_mix_says_what_is_short_and_why() -> None:
    lid = np.repeat([0, 1], [95, 5]).astype(np.int16)
    spec = SamplingSpec(10, max_repeats=2)
    (mix,) = plan_mix({"lid": lid}, plan_of({"lid": lid}, spec), spec)
    (short,) = mix.short
    assert (short.value, short.items, short.why) == (1, 5, "max_repeats")
    assert mix.got[1] == pytest.approx(0.1)
    lines = describe_mix([mix], {"lid": ("yes", "no")})
    assert lines[0] == "  lid: yes 90%, no 10%"
    assert "no: 10% instead of 50%: carried by 5 photos, and max_repeats is reached" in lines[1]


def test_the_mix_names_a_single_value_and_several_at_once() -> None:
    mix = Mix("colour", {0b001: 0.5, 0b010: 0.25, 0b110: 0.25}, ())
    lines = describe_mix([mix], {"colour": ("red", "green", "blue")}, masks={"colour"})
    assert lines == ["  colour: red 50%, green 25%, green + blue 25%"]


def test_what_whole_draws_round_off_is_not_called_short() -> None:
    column = np.arange(21, dtype=np.int16) % 7
    (mix,) = plan_mix({"kind": column}, np.arange(20)[None], SamplingSpec(20))
    assert min(mix.got.values()) < 0.9 * max(mix.got.values())
    assert mix.short == ()


def test_a_value_tied_to_another_is_short_for_the_sake_of_it() -> None:
    kind = np.repeat([0, 1], 100).astype(np.int16)
    lid = np.where(kind == 0, 0, np.where(np.arange(200) < 110, 1, 0)).astype(np.int16)  # 10 of the second kind
    spec = SamplingSpec(20, max_repeats=30)
    labels = {"kind": kind, "lid": lid}
    whys = {short.why for mix in plan_mix(labels, plan_of(labels, spec), spec) for short in mix.short}
    assert whys <= {"other attributes"}


@settings(max_examples=30)
@given(seed=st.integers(0, 1_000), fewer=st.integers(1, 60))
def test_a_labelled_subset_holds_every_value_and_lies_within_the_next_larger_one(seed: int, fewer: int) -> None:
    labels, products = table(200, 2, seed=seed), np.arange(200) // 3
    small, large = (labelled_subset(labels, products, items, seed=seed) for items in (fewer, 2 * fewer))
    assert len(small) == fewer
    assert set(small) <= set(large)
    assert np.any([column[small] >= 0 for column in labels.values()], axis=0).all()
    if fewer >= 7:  # 3 + 4 values
        for column in labels.values():
            assert set(column[small][column[small] >= 0]) == set(column[column >= 0])


def test_a_million_items_and_forty_values_are_planned_whole() -> None:
    labels = {"kind": skewed(1_000_000, 40, seed=0)}
    plan = plan_of(labels, SamplingSpec(4096), epoch=1)
    assert plan.size > 0.99 * 1_000_000
