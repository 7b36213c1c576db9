import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampling import table

from facetclip.sampling import SamplingSpec, plan_epoch
from facetclip.windows import deal_in_windows, shard_places, windows_of


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 9), st.integers(0, 99))
def test_every_card_is_dealt_once_in_batches_of_neighbouring_windows(sizes, batch, seed):
    sizes[-1] += -sum(sizes) % batch or (batch if not sum(sizes) else 0)
    window = np.repeat(np.arange(len(sizes)), sizes)
    deck = random(seed).permutation(len(window))
    dealt = deal_in_windows(deck, window[deck], batch, random(seed))
    assert dealt.shape == (batch, len(deck) // batch)
    assert sorted(dealt.ravel()) == sorted(deck)
    first, last = window[dealt].min(axis=0), window[dealt].max(axis=0)
    assert (np.diff(first) >= 0).all()
    assert (first[1:] >= last[:-1]).all(), "what was begun is filled up before the next window is"


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 20))
def test_windows_have_at_most_so_many_shards_and_differ_by_one(count, size):
    window, within = windows_of(np.arange(count), size)
    counts = np.bincount(window)
    assert counts.max() <= size
    assert counts.max() - counts.min() <= 1
    assert (within == np.concatenate([np.arange(each) for each in counts])).all()


def test_the_order_of_shards_is_shuffled_and_leaves_no_gap():
    shards = np.repeat([3, 5, 9, 11], 4)
    places = shard_places(shards, random(1))
    assert sorted(set(places.tolist())) == [0, 1, 2, 3]
    assert (places.reshape(4, 4) == places[::4, None]).all()


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**32), st.integers(0, 5), st.sampled_from(["balanced", "square_root", "natural"]), st.integers(1, 9)
)
def test_a_window_changes_the_order_of_an_epochs_draws_and_nothing_else(seed, epoch, strategy, window):
    labels, products, shards = table(240, 3, seed=seed), np.arange(240) // 2, np.arange(240) // 20
    plans = [
        plan_epoch(labels, products, SamplingSpec(16, strategy, window=size), seed=seed, epoch=epoch, shards=shards)
        for size in (None, window)
    ]
    assert plans[0].shape == plans[1].shape
    assert (np.sort(plans[0].ravel()) == np.sort(plans[1].ravel())).all()


def windowed(epoch: int = 0, *, items: int = 4000, shards: int = 40, window: int = 8, batch: int = 64):
    labels = {"kind": random().integers(0, 4, items).astype(np.int16)}
    of = np.arange(items) * shards // items
    spec = SamplingSpec(batch, window=window, max_repeats=4)
    return plan_epoch(labels, np.arange(items), spec, seed=3, epoch=epoch, shards=of), of, labels["kind"]


def test_at_any_time_no_more_than_a_windows_shards_are_needed_but_where_two_meet():
    plan, of, _ = windowed()
    needed = [set(of[batch].tolist()) for batch in plan]
    assert sorted(len(each) > 8 for each in needed)[-5:].count(True) <= 4
    spans = {
        shard: (min(at), max(at)) for shard in range(40) for at in [[k for k, s in enumerate(needed) if shard in s]]
    }
    assert max(last - first for first, last in spans.values()) <= len(plan) / 5 + 2


def test_windows_are_other_shards_in_another_epoch():
    (one, of, _), (two, _, _) = windowed(0), windowed(1)
    assert set(of[one[0]].tolist()) != set(of[two[0]].tolist())


def test_every_batch_has_the_mix_of_its_window():
    plan, _, kind = windowed()
    counts = np.stack([np.bincount(kind[batch], minlength=4) for batch in plan])
    assert counts.min() >= 10, "sixteen of each, give or take what a window has less of"


@pytest.mark.parametrize("nodes", [2, 4])
def test_a_machine_that_takes_neighbouring_columns_reads_a_part_of_the_shards(nodes):
    plan, of, _ = windowed(items=32_000, shards=64, window=16, batch=256)
    widths = []
    for node in range(nodes):
        columns = slice(node * 256 // nodes, (node + 1) * 256 // nodes)
        widths.append(len(set(of[plan[:, columns]].ravel().tolist())) / 64)
    strided = [len(set(of[plan[:, node::nodes]].ravel().tolist())) / 64 for node in range(nodes)]
    assert min(strided) == 1.0
    assert np.mean(widths) < 1 / nodes + 0.25
