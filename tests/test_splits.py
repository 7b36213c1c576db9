import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetclip.catalog import Catalog
from facetclip.errors import UserError
from facetclip.labels import encode_labels
from facetclip.schema import Schema
from facetclip.splits import FEWEST_PRODUCTS, SPLITS, Gap, Shares, assign_splits, coverage_gaps, parse_shares, split_of

FACTS = {
    "columns": {"item": "id", "product": "product", "image": "image"},
    "attributes": {
        "kind": {"column": "kind", "values": ["pan", "pot", "wok"]},
        "material": {"column": "material", "values": ["iron", "steel"], "separator": "|"},
    },
}
SCHEMA = Schema.model_validate(FACTS)
LISTED = Schema.model_validate(FACTS | {"columns": FACTS["columns"] | {"split": "part"}})
SHARES = Shares()


def shop(products, parts=None):
    """A catalog of these products, row by row, with what the split column says."""
    columns = {"product": products, "part": parts or [None] * len(products)}
    return Catalog("shop.csv", pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()}), 2)


def assign(products, parts=None, *, seed=0, shares=SHARES):
    schema = SCHEMA if parts is None else LISTED
    return [SPLITS[place] for place in assign_splits(shop(products, parts), schema, seed=seed, shares=shares)]


def hashed(products):
    return [SPLITS[split_of(product, seed=0, shares=SHARES)] for product in products]


@settings(deadline=None)
@given(st.lists(st.text(max_size=5), min_size=1, max_size=30), st.data())
def test_a_catalog_that_grows_shrinks_or_is_sorted_never_moves_a_product(products, data):
    before = dict(zip(products, assign(products), strict=True))
    grown = data.draw(st.permutations([*products[::2], *products, "new", "newer"]))
    after = dict(zip(grown, assign(grown), strict=True))
    assert {product: after[product] for product in before} == before


def test_the_split_of_a_product_is_written_in_stone():
    # Were the hash to change, every catalog sharded again would leak its old test products into training.
    splits = [split_of(f"MH{number:02d}", seed=0, shares=SHARES) for number in range(1, 25)]
    assert "".join("tve"[place] for place in splits) == STONE
    assert split_of("Größe 名前 \ud800", seed=0, shares=SHARES) in (0, 1, 2)


STONE = "ttettvtetvttteetttttvttt"


def test_all_rows_of_a_product_are_in_one_split():
    products = [f"P{number % 37}" for number in range(400)]
    splits = assign(products)
    assert len(set(zip(products, splits, strict=True))) == 37
    assert set(splits) == set(SPLITS)


@pytest.mark.parametrize("shares", [Shares(), Shares(0.5, 0.25, 0.25), Shares(0.9, 0.1, 0.0), Shares(1.0, 0.0, 0.0)])
def test_the_splits_hold_about_their_shares_of_the_products(shares):
    splits = np.array([split_of(f"P{number}", seed=0, shares=shares) for number in range(20_000)])
    for place, name in enumerate(SPLITS):
        share = getattr(shares, name)
        assert abs((splits == place).mean() - share) < 0.015
        assert share > 0 or not (splits == place).any()


def test_another_seed_is_another_draw_of_the_same_shares():
    products = [f"P{number}" for number in range(2000)]
    one, other = assign(products), assign(products, seed=1)
    same = sum(a == b for a, b in zip(one, other, strict=True)) / len(products)
    assert abs(same - (0.7**2 + 0.1**2 + 0.2**2)) < 0.05


def test_with_the_training_share_unchanged_no_product_leaves_or_enters_training():
    products = [f"P{number}" for number in range(500)]
    before, after = assign(products), assign(products, shares=Shares(0.7, 0.0, 0.3))
    assert [name for name in after if name == "train"] == [name for name in before if name == "train"]
    assert all(b == "test" for a, b in zip(before, after, strict=True) if a == "test")


def test_the_split_column_is_honoured_in_its_many_spellings():
    words = ["train", "Training", " TRAIN ", "val", "valid", "Dev", "validation", "test", "Testing"]
    products = [f"P{number}" for number in range(len(words))]
    assert assign(products, words) == ["train"] * 3 + ["validation"] * 4 + ["test"] * 2


def test_a_row_the_split_column_is_silent_on_goes_with_its_product_else_by_hash():
    products = ["A", "B", "A", "C", "A", "B"]
    parts = [None, "", "test", " ", "", None]
    splits = assign(products, parts)
    assert [splits[place] for place in (0, 2, 4)] == ["test"] * 3
    assert [splits[place] for place in (1, 3, 5)] == hashed(["B", "C", "B"])


def test_a_catalog_where_the_split_column_is_silent_is_split_by_hash():
    products = [f"P{number}" for number in range(50)]
    assert assign(products, [None] * 50) == assign(products) == hashed(products)


def test_a_product_in_two_splits_is_refused_naming_both_rows():
    with pytest.raises(UserError) as refusal:
        assign(["B", "A", "A", "A", "A"], ["test", None, "train", "train", "val"])
    assert str(refusal.value) == (
        "shop.csv, row 6: product 'A' is in validation here and in train in row 4; "
        "all rows of a product belong to one split"
    )


@pytest.mark.parametrize("word", ["trian", "1", "holdout", "unknown"])
def test_a_word_that_is_no_split_is_refused_by_row(word):
    with pytest.raises(UserError, match=re.escape(f"shop.csv, row 3: split {word!r}: expected train, validation")):
        assign(["A", "B"], ["train", word])


def test_a_row_of_no_product_is_refused_by_row():
    with pytest.raises(UserError, match=r"shop\.csv, row 4: no product in column 'product'"):
        assign(["A", "B", None, None])


def test_products_in_many_chunks_are_the_same_products():
    table = pa.concat_tables([shop(["A", "B"]).table, shop(["B", "A", "C"]).table])
    splits = assign_splits(Catalog("chunks", table, 1), SCHEMA, seed=0, shares=SHARES)
    assert [SPLITS[place] for place in splits] == hashed(["A", "B", "B", "A", "C"])


@pytest.mark.parametrize(
    "text",
    [
        *("", "0.7", "0.7,0.3", "0.7,0.1,0.1,0.1", "0.7,0.1,0.3", "a,b,c", "-0.1,0.6,0.5", "0,0.5,0.5", "70,10,20"),
        *("1.2,-0.1,-0.1", "nan,0,0", "1,nan,0", "nan,nan,nan", "inf,0,0", "1,inf,-inf"),
    ],
)
def test_shares_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="--shares"):
        parse_shares(text)


def test_shares_may_leave_validation_or_test_out():
    assert parse_shares("1, 0, 0") == Shares(1.0, 0.0, 0.0)
    assert parse_shares("0.8,0.2,0") == Shares(0.8, 0.2, 0.0)


def gaps(kinds, products, splits, materials=None):
    rows = len(kinds)
    table = {"kind": kinds, "material": materials or [None] * rows}
    catalog = Catalog("shop.csv", pa.table({name: pa.array(cells, pa.string()) for name, cells in table.items()}), 2)
    places = np.array([SPLITS.index(name) for name in splits], dtype=np.int8)
    return coverage_gaps(encode_labels(catalog, SCHEMA), np.array(products), places, SCHEMA)


def test_a_value_of_three_products_that_a_split_lacks_is_a_gap():
    splits = ["train", "train", "test", "test", "validation"]
    assert gaps(["pan"] * 3 + ["pot", "wok"], [0, 1, 2, 3, 4], splits) == [Gap("kind", "pan", "validation")]


def test_a_value_of_fewer_products_is_no_gap_however_many_photos_it_has():
    products = [number % (FEWEST_PRODUCTS - 1) for number in range(50)]
    assert gaps(["pan"] * 50, products, ["train"] * 50) == []


def test_a_value_in_every_split_is_no_gap_and_silent_rows_do_not_count():
    splits = ["train", "validation", "test", "train"]
    assert gaps(["pan", "pan", "pan", "odd"], [0, 1, 2, 3], splits) == []
    assert gaps(["", "N/A", None, "odd"], [0, 1, 2, 3], ["train"] * 4) == []


def test_each_value_of_a_multi_valued_cell_counts():
    materials = ["iron|steel", "steel", "steel|iron", "iron"]
    splits = ["train", "validation", "test", "train"]
    found = gaps([None] * 4, [0, 1, 2, 3], splits, materials)
    assert found == [Gap("material", "iron", "validation")]
