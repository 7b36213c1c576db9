"""Photos that several products have in common, in a build: counted, and where it asks for that, in one split."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from facetclip.near_duplicates import MOST_BITS, Duplicates, find_duplicates, join_products, joined_splits
from facetclip.slices import Build, codes_of, found_in


@dataclass(frozen=True)
class Shared:
    """How many pairs of photos look the same under two products, and what came of it."""

    pairs: int
    apart: int  # pairs of two splits
    crowded: int  # photos that look like so many that pairs of theirs may be missing
    joined: int = 0  # products that share a split with others
    left_out: int = 0  # products with a photo that too many have, which were not joined for it
    torn: int = 0  # groups of products that an earlier build has put in two splits, which stay there


def shared_photos(build: Build, where: pa.Table) -> tuple[Build, Duplicates, Shared]:
    """What looks the same among the rows `where` (of those the pairs are), and `build` with the splits it comes to."""
    places = where.column("place").to_numpy()
    products = codes_of(build.rows.products)
    phash, tint = (where.column(name).to_numpy() for name in ("phash", "tint"))
    most = MOST_BITS if build.spec.join is None else build.spec.join
    found = find_duplicates(phash, tint, products[places], most)
    counts = {}
    if build.spec.join is not None:
        build, counts = _joined(build, products, found, places)
    splits = build.rows.splits[places]
    apart = int((splits[found.rows] != splits[found.others]).sum())
    return build, found, Shared(len(found), apart, found.crowded, **counts)


def _joined(build: Build, products: np.ndarray, found: Duplicates, places: np.ndarray) -> tuple[Build, dict[str, int]]:
    """The build with one split for products with photos in common; what an update finds placed stays there."""
    rows = build.rows
    _, first = np.unique(products, return_index=True)
    ids = rows.products.take(pa.array(first))
    joined = join_products(len(first), found, products[places])
    placed = np.full(len(first), -1, dtype=np.int8)
    if build.kept is not None:
        before = found_in(ids, build.kept.index.product_ids)
        placed = np.where(before >= 0, build.kept.index.splits[before], -1)
    splits, torn = joined_splits(ids.combine_chunks(), joined.group, rows.splits[first], placed)
    alone = np.bincount(joined.group, minlength=len(first))[joined.group] == 1
    counts = {"joined": int((~alone).sum()), "left_out": len(joined.left_out), "torn": len(torn)}
    return replace(build, rows=replace(rows, splits=splits[products])), counts
