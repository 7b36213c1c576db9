import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetclip import hamming
from facetclip.hamming import near_pairs


def all_pairs(hashes, most):
    """Every pair, compared."""
    found = [
        (one, other, int(np.bitwise_count(hashes[one] ^ hashes[other])))
        for one in range(len(hashes))
        for other in range(one + 1, len(hashes))
    ]
    return [pair for pair in found if pair[2] <= most]


def listed(pairs):
    return list(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.distance.tolist(), strict=True))


def clustered(seed, count, flips=9):
    """Hashes around a few others, doubled and skewed, as those of product photos are."""
    draw = np.random.default_rng(seed)
    hashes = draw.choice(draw.integers(0, 2**64, 5, dtype=np.uint64), count)
    for _ in range(flips):
        hashes ^= np.where(draw.random(count) < 0.5, 1 << draw.integers(0, 64, count, dtype=np.uint64), 0).astype("u8")
    return hashes


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(0, 120), st.integers(0, hamming.FARTHEST), st.integers(0, 9))
def test_the_pairs_are_those_that_comparing_all_would_find_each_once(seed, count, most, flips):
    hashes = clustered(seed, count, flips)
    pairs = near_pairs(hashes, most)
    assert listed(pairs) == all_pairs(hashes, most)
    assert pairs.crowded == 0


@pytest.mark.parametrize("alike", [1, 2, 3, 4])
def test_they_are_the_same_for_any_number_of_blocks_and_any_portion(monkeypatch, alike):
    hashes = clustered(1, 150)
    monkeypatch.setattr(hamming, "_alike", lambda hashes, most: alike)
    monkeypatch.setattr(hamming, "PORTION", 7)
    assert listed(near_pairs(hashes, 4)) == all_pairs(hashes, 4)


def test_only_what_is_kept_is_returned():
    hashes = clustered(2, 100)
    wanted = near_pairs(hashes, 6, lambda one, other: (one + other) % 2 == 1)
    assert listed(wanted) == [pair for pair in all_pairs(hashes, 6) if (pair[0] + pair[1]) % 2 == 1]
    assert len(wanted.first)


def test_a_crowd_is_counted_and_takes_no_square_of_the_time(monkeypatch):
    monkeypatch.setattr(hamming, "MOST_STEPS", 20)
    hashes = np.concatenate([np.zeros(500, np.uint64), clustered(3, 50)])
    pairs = near_pairs(hashes, 4)
    assert 480 <= pairs.crowded <= 500
    assert len(pairs.first) <= 20 * 500 + 50 * 49
    connected = set(pairs.first[pairs.second < 500].tolist()) | set(pairs.second[pairs.second < 500].tolist())
    assert connected == set(range(500)), "each is still paired with its neighbours"


def test_a_hundred_thousand_hashes_take_seconds():
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 2**64, 100_000, dtype=np.uint64)
    hashes[50_000:50_100] = hashes[:100] ^ np.uint64(0b10010000000001)
    pairs = near_pairs(hashes, 4)
    assert listed(pairs)[:100] == [(number, number + 50_000, 3) for number in range(100)]


def test_more_bits_than_sorting_can_help_with_are_refused():
    with pytest.raises(ValueError, match="expected 0 to 12 bits, found 13"):
        near_pairs(np.zeros(2, np.uint64), 13)
