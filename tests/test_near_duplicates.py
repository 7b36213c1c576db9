import csv
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetclip import near_duplicates
from facetclip.fingerprints import NONE
from facetclip.near_duplicates import (
    Duplicates,
    connected,
    find_duplicates,
    join_products,
    joined_splits,
    write_duplicates,
)
from facetclip.schema import NOT_APPLICABLE, UNLABELLED, Schema

FAR = 0x0F0F0F0F0F0F0F0F


def columns(*rows):
    """phash, tint and product of some rows."""
    phash, tint, products = zip(*rows, strict=True)
    return np.array(phash, np.uint64), np.array(tint, np.uint64), np.array(products, np.int32)


def pairs(found):
    return sorted(zip(found.rows.tolist(), found.others.tolist(), found.distance.tolist(), strict=True))


def made(*edges, distance=0):
    """Duplicates between rows of the same numbers as their products."""
    rows, others = (np.array(side, np.int64) for side in zip(*edges, strict=True)) if edges else [np.empty(0, int)] * 2
    return Duplicates(rows, others, np.broadcast_to(np.uint8(distance), rows.shape).copy())


def test_the_same_look_under_two_products_is_a_pair_and_under_one_is_none():
    found = find_duplicates(
        *columns((5, 9, 0), (5, 9, 0), (FAR, 9, 1), (5, 9, 2), (5 ^ 0b1010, 9, 3), (FAR << 4, 9, 4))
    )
    assert pairs(found) == [(3, 0, 0), (4, 0, 2)]


def test_another_colour_is_another_photo():
    near, far = 0x0000000600000000, 0x0000000700000000  # 6 and 7 of 255 in one part
    found = find_duplicates(*columns((5, 0, 0), (5, near, 1), (FAR, 0, 2), (FAR, far, 3)))
    assert pairs(found) == [(1, 0, 0)]


def test_blank_pictures_are_like_none():
    assert len(find_duplicates(*columns((NONE, 0, 0), (NONE, 0, 1), (1, 0, 2)))) == 0
    assert len(find_duplicates(*columns((NONE, 0, 0)))) == 0


def test_as_many_bits_as_are_asked_for():
    rows = columns((0b1, 0, 0), (0b1111, 0, 1), (FAR, 0, 2))
    assert [len(find_duplicates(*rows, most)) for most in (0, 2, 3, 4)] == [0, 0, 1, 1]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from([0, 1, 3, 7, FAR, FAR ^ 1, FAR << 4]), st.sampled_from([0, 4, 90]),
                          st.integers(0, 6)), max_size=25), st.integers(0, 4))  # fmt: skip
def test_what_is_alike_is_connected_as_if_every_pair_had_been_listed(rows, most):
    phash, tint, products = columns(*rows) if rows else (np.empty(0, np.uint64),) * 2 + (np.empty(0, np.int32),)
    found = find_duplicates(phash, tint, products, most)
    alike = [
        (one, other)
        for one in range(len(rows))
        for other in range(one)
        if NONE not in (phash[one], phash[other])
        and int(phash[one] ^ phash[other]).bit_count() <= most
        and abs(int(tint[one]) - int(tint[other])) <= near_duplicates.MOST_TINT
        and products[one] != products[other]
    ]
    assert set(zip(found.rows.tolist(), found.others.tolist(), strict=True)) <= set(alike)
    whole = np.array(alike, dtype=np.int64).reshape(-1, 2).T
    expected = connected(7, products[whole[0]], products[whole[1]])
    assert connected(7, products[found.rows], products[found.others]).tolist() == expected.tolist()


def test_a_placeholder_of_many_products_is_listed_once_a_product():
    count = 2000
    found = find_duplicates(np.full(count, 5, np.uint64), np.zeros(count, np.uint64), np.arange(count) // 2)
    assert pairs(found) == [(row, 0, 0) for row in range(2, count, 2)]


def test_products_are_joined_over_others():
    joined = join_products(6, made((1, 3), (3, 5), (2, 4)), np.arange(6))
    assert joined.group.tolist() == [0, 1, 2, 1, 2, 1]
    assert joined.left_out.tolist() == []


def test_too_many_to_join_are_joined_by_their_nearest_photos_alone(monkeypatch):
    monkeypatch.setattr(near_duplicates, "MOST_JOINED", 3)
    edges = [(0, 1, 0), (1, 2, 3), (2, 3, 1), (3, 4, 4), (5, 6, 4), (7, 8, 0), (8, 9, 0), (9, 10, 0)]
    rows, others, distance = map(np.array, zip(*edges, strict=True))
    joined = join_products(12, Duplicates(rows, others, distance.astype(np.uint8)), np.arange(12))
    assert joined.group.tolist() == [0, 0, 2, 2, 4, 5, 5, 7, 8, 9, 10, 11]
    assert joined.left_out.tolist() == [7, 8, 9, 10], "a photo of four products at distance 0"


@given(st.integers(1, 30).flatmap(lambda count: st.tuples(st.just(count), st.lists(
    st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=40))))  # fmt: skip
def test_connected_numbers_are_the_smallest_that_can_be_reached(drawn):
    count, edges = drawn
    label = list(range(count))
    for _ in range(count):
        for one, other in edges:
            label[one] = label[other] = min(label[one], label[other])
    one, other = np.array(edges, np.int64).reshape(-1, 2).T
    assert connected(count, one, other).tolist() == label


IDS = pa.array(["D", "B", "A", "C", "E"])
OWN = np.array([0, 1, 2, 0, 1])


def test_a_group_goes_where_its_first_product_would_go_alone():
    splits, torn = joined_splits(IDS, np.array([0, 0, 0, 3, 4]), OWN, np.full(5, -1))
    assert (splits.tolist(), torn) == ([2, 2, 2, 0, 1], [])


def test_what_is_placed_already_stays_and_draws_the_others_to_it():
    placed = np.array([0, -1, -1, 2, -1])
    splits, torn = joined_splits(IDS, np.array([0, 0, 0, 3, 3]), OWN, placed)
    assert (splits.tolist(), torn) == ([0, 0, 0, 2, 2], [])


def test_a_group_placed_in_two_splits_is_told_and_nothing_moves():
    placed = np.array([0, 2, -1, -1, -1])
    splits, torn = joined_splits(IDS, np.array([0, 0, 0, 3, 4]), OWN, placed)
    assert splits.tolist() == [0, 2, 2, 0, 1], "the new one goes with the first by id of those placed"
    assert [members.tolist() for members in torn] == [[0, 1, 2]]


@given(st.permutations(range(5)))
def test_the_order_of_products_changes_no_split(order):
    order = np.array(order)
    labels = np.array([0, 0, 2, 2, 4])
    expected, _ = joined_splits(IDS, labels, OWN, np.full(5, -1))
    ids = IDS.take(pa.array(order))
    smallest = {group: int(np.flatnonzero(labels[order] == group)[0]) for group in (0, 2, 4)}
    group = np.array([smallest[label] for label in labels[order].tolist()])
    splits, _ = joined_splits(ids, group, OWN[order], np.full(5, -1))
    assert splits.tolist() == expected[order].tolist()


SCHEMA = Schema.model_validate(
    {
        "columns": {"item": "id", "product": "product", "image": "image"},
        "attributes": {
            "sleeve": {"column": "sleeve", "values": ["long", "short"]},
            "colour": {"column": "colour", "values": ["red", "blue"], "separator": "|"},
        },
    }
)


def test_values_are_named_as_the_catalog_joins_them(tmp_path):
    words = Schema.from_json(SCHEMA.to_json().replace('"|"', '";"'))
    index = pa.table(
        {
            "item": ["a", "b"],
            "product_id": ["P0", "P1"],
            "split": pa.array([0, 2], pa.int8()),
            "label:sleeve": pa.array([0, 0], pa.int16()),
            "label:colour": pa.array([0b11, 0b10], pa.int64()),
        }
    )
    found = Duplicates(np.array([1]), np.array([0]), np.array([3], np.uint8))
    write_duplicates(tmp_path / "duplicates.csv", found, index, words)
    assert "colour: blue, red;blue" in (tmp_path / "duplicates.csv").read_text()


def test_the_report_names_both_the_distance_the_splits_and_what_they_say_otherwise(tmp_path):
    index = pa.table(
        {
            "item": ["a", "=b", "c", "d"],
            "product_id": ["P0", "P1", "P2", "P3"],
            "split": pa.array([0, 2, 0, 2], pa.int8()),
            "label:sleeve": pa.array([0, 1, UNLABELLED, NOT_APPLICABLE], pa.int16()),
            "label:colour": pa.array([0b11, 0b10, 0b11, UNLABELLED], pa.int64()),
        }
    )
    found = Duplicates(np.array([1, 2, 3]), np.array([0, 0, 1]), np.array([3, 0, 1], np.uint8))
    write_duplicates(tmp_path / "duplicates.csv", found, index, SCHEMA)
    with (tmp_path / "duplicates.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [list(line.values()) for line in lines] == [
        ["c", "P2", "train", "a", "P0", "train", "0", "yes", ""],
        ["d", "P3", "test", "'=b", "P1", "test", "1", "yes", ""],
        ["'=b", "P1", "test", "a", "P0", "train", "3", "no", "sleeve: short, long; colour: blue, red|blue"],
    ]


def test_the_nearest_are_listed_where_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(near_duplicates, "MOST_LISTED", 1)
    index = pa.table({"item": ["a", "b", "c"], "product_id": ["A", "B", "C"], "split": [0, 0, 0]})
    index = index.append_column("label:sleeve", [[0, 0, 0]]).append_column("label:colour", [[0, 0, 0]])
    found = Duplicates(np.array([1, 2]), np.array([0, 1]), np.array([3, 1], np.uint8))
    write_duplicates(tmp_path / "d.csv", found, index, SCHEMA)
    assert [line.split(",")[0] for line in (tmp_path / "d.csv").read_text().splitlines()] == ["item", "c"]


MILLION = """
import time
from pathlib import Path
import numpy as np
from facetclip.near_duplicates import find_duplicates, join_products

draw = np.random.default_rng(0)
count = 1_000_000
phash = draw.integers(1, 2**64, count, dtype=np.uint64)
tint = draw.integers(0, 2**64, count, dtype=np.uint64)
products = np.arange(count) // 2
copies = np.arange(0, 20_000, 4)
phash[copies + 2] = phash[copies] ^ np.uint64(0b101)
tint[copies + 2] = tint[copies]
phash[900_000:910_000], tint[900_000:910_000] = 77, 5
start = time.process_time()
found = find_duplicates(phash, tint, products)
joined = join_products(count // 2, found, products)
print(len(found), len(joined.left_out), (joined.group != np.arange(count // 2)).sum(), time.process_time() - start,
      int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10)  # ru_maxrss is also the parent's
"""


@pytest.mark.nightly
def test_a_million_photos_take_less_than_a_minute_and_half_a_gigabyte():
    done = subprocess.run([sys.executable, "-c", MILLION], capture_output=True, text=True, check=True)
    found, left_out, joined, seconds, megabytes = map(float, done.stdout.split())
    assert (found, left_out, joined) == (5000 + 4999, 5000, 5000)
    assert seconds < 60
    assert megabytes < 512
