"""Train, validation and test by product: a product's split is a function of its id and the seed alone.

So a catalog that grows never moves a product, and no photo of a product is learned from and tested on.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from facetclip.catalog import Catalog
from facetclip.errors import UserError
from facetclip.schema import Schema, spelling

SPLITS = ("train", "validation", "test")
WORDS = {
    "train": 0,
    "training": 0,
    "validation": 1,
    "valid": 1,
    "val": 1,
    "dev": 1,
    "test": 2,
    "testing": 2,
}
FEWEST_PRODUCTS = 3  # of a value that can be expected in every split


@dataclass(frozen=True)
class Shares:
    """The share of products in each split; they sum to 1."""

    train: float = 0.7
    validation: float = 0.1
    test: float = 0.2


@dataclass(frozen=True)
class Gap:
    """A value with products enough to be in every split, which `split` lacks all the same."""

    attribute: str
    value: str
    split: str


def parse_shares(text: str) -> Shares:
    """`0.7,0.1,0.2` -> Shares; UserError unless three shares sum to 1.

    >>> parse_shares("0.65,0.1,0.25")
    Shares(train=0.65, validation=0.1, test=0.25)
    """
    try:
        train, validation, test = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--shares {text!r}: expected three numbers such as 0.7,0.1,0.2") from None
    if not (train > 0 <= min(validation, test) and abs(train + validation + test - 1) <= 1e-6):  # also where it is nan
        raise UserError(f"--shares {text!r}: train, validation and test must sum to 1, with train above 0")
    return Shares(train, validation, test)


def split_of(product: str, *, seed: int, shares: Shares) -> int:
    """The place in SPLITS of one product.

    >>> [SPLITS[split_of(product, seed=0, shares=Shares())] for product in ("MH01", "MH02", "MH09")]
    ['train', 'train', 'train']
    """
    digest = hashlib.blake2b(f"{seed}\0{product}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    point = int.from_bytes(digest, "big") / 2**64
    return int(point >= shares.train) + int(point >= shares.train + shares.validation)


def assign_splits(catalog: Catalog, schema: Schema, *, seed: int, shares: Shares) -> np.ndarray:
    """int8 [rows]: the split of each row's product, as the split column says or else by hash.

    A row without a cell in the split column goes with the other rows of its product. UserError, naming the row, for a
    word that is no split, for a row of no product, and for a product whose rows disagree (naming both).
    """
    encoded = catalog.table.column(schema.columns.product).cast(pa.string()).combine_chunks().dictionary_encode()
    if encoded.null_count:
        place = encoded.is_null().to_numpy(zero_copy_only=False).argmax()
        raise UserError(f"{catalog.where(int(place))}: no product in column {schema.columns.product!r}")
    products = encoded.indices.to_numpy()
    of_product = np.array(
        [split_of(product, seed=seed, shares=shares) for product in encoded.dictionary.to_pylist()], dtype=np.int8
    )
    if schema.columns.split is not None:
        told = _listed_splits(catalog, schema.columns.split)
        stated = np.flatnonzero(told >= 0)
        first = stated[np.unique(products[stated], return_index=True)[1]]  # the first stated row of each product
        of_product[products[first]] = told[first]
        moved = stated[of_product[products[stated]] != told[stated]]
        if len(moved):
            place, before = int(moved[0]), int(first[products[first] == products[moved[0]]][0])
            raise UserError(
                f"{catalog.where(place)}: product {encoded.dictionary[int(products[place])].as_py()!r} is in "
                f"{SPLITS[told[place]]} here and in {SPLITS[told[before]]} in row {catalog.row_number(before)}; "
                "all rows of a product belong to one split"
            )
    return of_product[products]


def _listed_splits(catalog: Catalog, column: str) -> np.ndarray:
    """int8 [rows]: the split named in each row's cell, -1 where it is empty."""
    told = np.full(len(catalog), -1, dtype=np.int8)
    for place, cell in enumerate(catalog.column(column)):
        word = spelling(cell or "")
        if word and word not in WORDS:
            raise UserError(f"{catalog.where(place)}: split {cell!r}: expected train, validation or test")
        told[place] = WORDS.get(word, -1)
    return told


def coverage_gaps(labels: dict[str, np.ndarray], products: np.ndarray, splits: np.ndarray, schema: Schema) -> list[Gap]:
    """Every value that at least FEWEST_PRODUCTS products carry and that some split lacks.

    `labels` as from `encode_labels`, `products` any number per product, `splits` from `assign_splits`.
    """
    gaps = []
    for name, attribute in schema.attributes.items():
        for place, value in enumerate(attribute.values):
            has = labels[name] >= 0
            has &= (labels[name] >> place & 1).astype(bool) if attribute.multi_valued else labels[name] == place
            if len(np.unique(products[has])) >= FEWEST_PRODUCTS:
                gaps += [Gap(name, value, SPLITS[s]) for s in range(len(SPLITS)) if not (splits[has] == s).any()]
    return gaps
