"""How right a model is on parts of the items: those with one brand, season, supplier, or what else a column says."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from facetclip.catalog import Catalog
from facetclip.errors import UserError
from facetclip.findings import Questions, exact, tallies
from facetclip.index import ShardIndex
from facetclip.intervals import FEWEST_PRODUCTS, draws, estimate, mean_draws, numbers_of, share
from facetclip.labels import listed_text
from facetclip.report import Estimates, Slice
from facetclip.scores import Scores

PRODUCT = "product"
MOST_SLICES = 20  # of a column; items with rarer values are taken together
SHOWN = ("accuracy", "macro_f1")  # a calibration error of few items is mostly one of counting


def columns_of(
    index: ShardIndex, rows: np.ndarray, names: Sequence[str], catalog: Catalog | None
) -> dict[str, list[str]]:
    """The cells of `rows` in each of the columns `names`, of the `catalog` or else of the index: an attribute, or
    `product`. UserError where there is no such column, or an item is not in the catalog."""
    within = [] if catalog is None else catalog.table.column_names
    found = {}
    for name in dict.fromkeys(names):
        if catalog is not None and (name in within or name not in (PRODUCT, *index.schema.names)):
            found[name] = catalog.cells(name, index.schema.columns.item, index.item_ids.take(rows).to_pylist())
        elif name in index.schema.names:
            listed = listed_text(index.schema.attributes[name], index.labels[name][rows])
            found[name] = [cell or "" for cell in listed]
        elif name == PRODUCT:
            found[name] = index.product_ids.take(rows).to_pylist()
        else:
            known = ", ".join((PRODUCT, *index.schema.names))
            raise UserError(f"--slice {name}: the index knows {known}; give the catalog with that column by --catalog")
    return found


def slices(asked: Questions, scores: Scores, cells: Mapping[str, Sequence[str]]) -> dict[str, tuple[Slice, ...]]:
    """Of each column, given by its `cells` [n], its slices, the largest first; rare values come last, as one."""
    return {name: tuple(_slices(asked, scores, np.array(column, dtype=object))) for name, column in cells.items()}


def _slices(asked: Questions, scores: Scores, cells: np.ndarray) -> list[Slice]:
    values, code, count = np.unique(cells, return_inverse=True, return_counts=True)
    order = np.lexsort((np.arange(len(values)), -count))
    kept = order if len(order) <= MOST_SLICES else order[: MOST_SLICES - 1]
    found = [_slice(asked, scores, str(values[each]), np.flatnonzero(code == each)) for each in kept.tolist()]
    if len(kept) < len(order):
        rest = _slice(asked, scores, "", np.flatnonzero(~np.isin(code, kept)))
        found.append(replace(rest, merged=len(order) - len(kept)))
    return found


def _slice(asked: Questions, scores: Scores, value: str, places: np.ndarray) -> Slice:
    part, read = asked.of_slice(places), scores.at(places)
    summed = tallies(part, read)
    products = len(np.unique(part.products))
    numbers: Estimates = {}
    if summed:
        right, known = exact(part, read)
        mean = mean_draws(draws([summed])[0])
        numbers = {name: estimate(mean[name]) for name in SHOWN}
        numbers["exact_match"] = share(right[known], part.products[known])
    return Slice(
        value=value,
        items=len(places),
        products=products,
        small=products < FEWEST_PRODUCTS,
        numbers=numbers,
        accuracy={name: numbers_of(each)["accuracy"] for name, each in summed.items()},
    )
