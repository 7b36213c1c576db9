"""The same photo under two products: found by fingerprint, reported, and kept from being learned from and tested on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from facetclip.files import write_whole
from facetclip.fingerprints import NONE, tint_distance
from facetclip.hamming import near_pairs
from facetclip.labels import listed_text
from facetclip.schema import Schema
from facetclip.splits import SPLITS
from facetclip.spreadsheets import csv_of

MOST_BITS = 4  # of the 64 of a phash, in which copies of a photo differ at most
MOST_TINT = 6  # of 255, by which their tints do
MOST_JOINED = 100  # products; a photo that more of them share is a placeholder, or what is shown is too alike
MOST_LISTED = 1_000_000  # pairs in the report, the nearest first
HEADER = ("item", "product", "split", "other_item", "other_product", "other_split", "distance", "same_split", "differ")


@dataclass(frozen=True)
class Duplicates:
    """Rows, int64 [pairs], of photos that look the same under two products; `distance`, uint8, in bits.

    Of a photo that many products share, every product's first row is paired with one other's: enough to join all.
    `crowded`: how many photos look like so many that pairs of theirs may be missing.
    """

    rows: np.ndarray
    others: np.ndarray
    distance: np.ndarray
    crowded: int = 0

    def __len__(self) -> int:
        return len(self.rows)


def find_duplicates(phash: np.ndarray, tint: np.ndarray, products: np.ndarray, most: int = MOST_BITS) -> Duplicates:
    """The photos that look the same under two products, within `most` bits; of each row uint64, uint64 and a number."""
    rows = np.flatnonzero(phash != NONE)
    order = rows[np.lexsort((products[rows], tint[rows], phash[rows]))]
    new = np.ones(len(order), dtype=bool)  # the first row of each fingerprint
    new[1:] = (phash[order][1:] != phash[order][:-1]) | (tint[order][1:] != tint[order][:-1])
    another = ~new  # the first row of each further product of a fingerprint
    another[1:] &= products[order][1:] != products[order][:-1]
    firsts = order[new]
    shared, first = order[another], firsts[np.cumsum(new)[another] - 1]

    def wanted(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        one, other = firsts[one], firsts[other]
        return (products[one] != products[other]) & (tint_distance(tint[one], tint[other]) <= MOST_TINT)

    near = near_pairs(phash[firsts], most, wanted)
    pairs = np.stack([np.append(shared, firsts[near.first]), np.append(first, firsts[near.second])])
    distance = np.append(np.zeros(len(shared), np.uint8), near.distance)
    pairs = np.sort(pairs, axis=0)
    order = np.lexsort((pairs[0], pairs[1]))
    return Duplicates(pairs[1][order], pairs[0][order], distance[order], near.crowded)


@dataclass(frozen=True)
class Joined:
    """`group`, int64 [products]: the smallest number of those that are joined with each product, its own where alone.

    `left_out`, int64: products that share a photo with more than MOST_JOINED others even at distance 0, not joined.
    """

    group: np.ndarray
    left_out: np.ndarray


def join_products(count: int, found: Duplicates, products: np.ndarray) -> Joined:
    """Which of `count` products have to share a split: those that have photos in common, directly or by others.

    Where that would join more than MOST_JOINED, only nearer photos count there: many a false alarm in a row, or a
    placeholder, must not bring the catalog into one split.
    """
    one, other = products[found.rows], products[found.others]
    group, undecided = np.arange(count), np.ones(count, dtype=bool)
    for most in range(int(found.distance.max(initial=0)), -1, -1):
        near = (found.distance <= most) & undecided[one]
        label = connected(count, one[near], other[near])
        small = undecided & (np.bincount(label, minlength=count)[label] <= MOST_JOINED)
        group[small] = label[small]
        undecided &= ~small
    return Joined(group, np.flatnonzero(undecided))


def connected(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """int64 [count]: the smallest number that each is connected with, by the edges between `one` and `other`.

    >>> connected(6, np.array([4, 1, 5]), np.array([1, 3, 2])).tolist()
    [0, 1, 2, 1, 1, 2]
    """
    label = np.arange(count)
    while True:
        low, high = np.sort(np.stack([label[one], label[other]]), axis=0)
        if (low == high).all():
            return label
        np.minimum.at(label, high, low)
        while (label != (shorter := label[label])).any():
            label = shorter


def joined_splits(
    ids: pa.Array, group: np.ndarray, own: np.ndarray, placed: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Each product's split, int8, one for all that are joined; and the groups for which that cannot be.

    `own`: what each would have alone; `placed`: what it has already and keeps, -1 where nothing. A group goes with its
    first placed product by id, or else where its first product by id would go. Groups with products placed in two
    splits are returned, as the numbers of their products.
    """
    splits, torn = np.where(placed >= 0, placed, own).astype(np.int8), []
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        members = order[start : start + size]
        kept = members[placed[members] >= 0]
        leader = min((kept if len(kept) else members).tolist(), key=lambda product: ids[product].as_py())
        splits[members[placed[members] < 0]] = splits[leader]
        if len(set(placed[kept].tolist())) > 1:
            torn.append(members)
    return splits, torn


def write_duplicates(path: Path, found: Duplicates, index: pa.Table, schema: Schema) -> None:
    """The pairs as CSV, the nearest first, at most MOST_LISTED; `index` has the columns of an index."""
    order = np.lexsort((found.rows, found.distance))[:MOST_LISTED]
    one, other = (_named(index, rows[order]) for rows in (found.rows, found.others))
    differ = _disagreements(index, found.rows[order], found.others[order], schema)
    rows = (
        (*first, *second, bits, "yes" if first[2] == second[2] else "no", said)
        for first, second, bits, said in zip(one, other, found.distance[order].tolist(), differ, strict=True)
    )
    write_whole(path, csv_of(HEADER, rows))


def _named(index: pa.Table, rows: np.ndarray) -> Iterator[tuple[str, str, str]]:
    """(item, product, split) of each row."""
    columns = [index.column(name).take(pa.array(rows)).to_pylist() for name in ("item", "product_id", "split")]
    return ((item, product, SPLITS[split]) for item, product, split in zip(*columns, strict=True))


def _disagreements(index: pa.Table, rows: np.ndarray, others: np.ndarray, schema: Schema) -> list[str]:
    """What the catalog says otherwise of two rows: `sleeve: long, short; lid: yes, no`."""
    said = [[] for _ in rows]
    for name, attribute in schema.attributes.items():
        labels = index.column(f"label:{name}").to_numpy()
        one, other = labels[rows], labels[others]
        apart = np.flatnonzero((one != other) & (one >= 0) & (other >= 0))
        texts = listed_text(attribute, one[apart]), listed_text(attribute, other[apart])
        for place, mine, theirs in zip(apart.tolist(), *texts, strict=True):
            said[place].append(f"{name}: {mine}, {theirs}")
    return ["; ".join(words) for words in said]
