"""Photos that a person should look at whatever the table says: blank, blurred, the same for two products, or unlike the
other photos of their own product."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facetclip.files import write_whole
from facetclip.images import BadImage, read_pixels
from facetclip.index import ShardIndex
from facetclip.near_duplicates import find_duplicates
from facetclip.spreadsheets import csv_of
from facetclip.squares import to_longest

SIDE = 128  # pixels at which photos are looked at
FLAT = 4.0  # standard deviation of brightness, of 255, below which nothing is to be seen
BLURRED = 12.0  # strongest hundredth of the brightness steps from pixel to pixel, below which there is no edge
ODD = 6.0  # robust standard deviations below the usual likeness of a product's photos
LEAST_SPREAD = 0.02  # of likenesses, where most products repeat one picture
FEWEST_LIKENESSES = 30  # that say what is usual
THREADS = 4
PORTION = 1024


@dataclass(frozen=True)
class PhotoFlag:
    """One photo and what is odd about it: `flag` is blank, blurred, shared or odd_one_out."""

    item_id: str
    product_id: str
    flag: str
    detail: str


def flag_photos(index: ShardIndex, features: np.ndarray) -> Iterator[PhotoFlag]:
    """The photos of `index` with something odd about them; `features` [n, d] of length 1, of the same rows."""
    yield from _faint(index)
    yield from _shared(index)
    yield from _odd(index, features)


def _flag(index: ShardIndex, row: int, flag: str, detail: str) -> PhotoFlag:
    return PhotoFlag(index.item_id(row), index.product_ids[row].as_py(), flag, detail)


def _faint(index: ShardIndex) -> Iterator[PhotoFlag]:
    """Blank and blurred photos."""
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(index), PORTION):
            rows = range(start, min(start + PORTION, len(index)))
            for row, (spread, edge) in zip(rows, pool.map(lambda row: _looks(index, row), rows), strict=True):
                if spread < FLAT:
                    yield _flag(index, row, "blank", f"brightness varies by {spread:.1f} of 255")
                elif edge < BLURRED:
                    yield _flag(index, row, "blurred", f"the sharpest edges step by {edge:.1f} of 255")


def _looks(index: ShardIndex, row: int) -> tuple[float, float]:
    try:
        return clarity(to_longest(read_pixels(index.read(row), at_least=SIDE), SIDE))
    except BadImage:
        return 0.0, 0.0


def clarity(pixels: np.ndarray) -> tuple[float, float]:
    """How much the brightness of uint8 [height, width, 3] varies, and how steep its sharpest edges are, of 255."""
    grey = pixels.mean(axis=2)
    steps = np.concatenate([np.abs(np.diff(grey, axis=axis)).ravel() for axis in (0, 1)])
    return float(grey.std()), float(np.quantile(steps, 0.99))


def _shared(index: ShardIndex) -> Iterator[PhotoFlag]:
    """What looks the same under two products."""
    found = find_duplicates(index.phash, index.tint, index.products)
    others: dict[int, dict[str, None]] = {}
    for row, other in zip(found.rows.tolist(), found.others.tolist(), strict=True):
        others.setdefault(row, {})[index.product_ids[other].as_py()] = None
        others.setdefault(other, {})[index.product_ids[row].as_py()] = None
    for row, products in sorted(others.items()):
        yield _flag(index, row, "shared", f"looks the same as a photo of product {', '.join([*products][:3])}")


def _odd(index: ShardIndex, features: np.ndarray) -> Iterator[PhotoFlag]:
    """Photos far less like the others of their product than photos of one product are elsewhere."""
    order = np.argsort(index.products, kind="stable")
    starts = np.flatnonzero(np.diff(index.products[order], prepend=-1))
    rows: list[int] = []
    likeness: list[float] = []
    for group in np.split(order, starts[1:]):
        if len(group) >= 3:
            alike = features[group] @ features[group].T
            np.fill_diagonal(alike, -1.0)
            rows += group.tolist()
            likeness += alike.max(axis=1).tolist()
    if len(rows) < FEWEST_LIKENESSES:
        return
    values = np.array(likeness)
    usual = np.median(values)
    spread = max(LEAST_SPREAD, 1.4826 * float(np.median(np.abs(values - usual))))
    for place in np.flatnonzero(values < usual - ODD * spread).tolist():
        yield _flag(
            index,
            rows[place],
            "odd_one_out",
            f"likeness to its product's nearest other photo {values[place]:.2f}, usually {usual:.2f}",
        )


def write_flags(flags: Iterable[PhotoFlag], path: Path) -> None:
    """The flags as CSV."""
    names = ("item_id", "product_id", "flag", "detail")
    write_whole(path, csv_of(names, ([getattr(flag, name) for name in names] for flag in flags)))
