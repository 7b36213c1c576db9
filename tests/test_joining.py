"""Photos that several products have in common: listed with every index, and where that is asked, in one split."""

import csv
import io

import numpy as np
import pytest
from PIL import Image
from strange_shop import contents
from test_fingerprints import coded, cropped

from facetclip.catalog import read_catalog
from facetclip.cli import main
from facetclip.errors import UserError
from facetclip.images import encode_jpeg, read_rgb
from facetclip.index import open_index
from facetclip.indexing import DUPLICATES
from facetclip.joining import Shared
from facetclip.portions import Portion
from facetclip.schema import Schema
from facetclip.shards import ShardSpec, build_portion, build_shards
from facetclip.splits import SPLITS, Shares, split_of

FACTS = {
    "columns": {"item": "id", "product": "product", "image": "image"},
    "attributes": {"sleeve": {"column": "sleeve", "values": ["long", "short"]}},
}
SCHEMA = Schema.model_validate(FACTS)
PRODUCTS = 30  # two photos each


def picture(number):
    """A photo unlike those of other numbers."""
    draw = np.random.default_rng(number)
    pixels = draw.integers(0, 255, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((150, 180), Image.Resampling.BICUBIC)


def half(image):
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


class Shop:
    """A catalog of rows (id, product, photo file, sleeve), two photos a product, all unlike."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "images").mkdir()
        self.rows = []
        for number in range(2 * PRODUCTS):
            self.add(f"P{number // 2:02d}", picture(number))

    def add(self, product, image, sleeve="long"):
        """One more row; its place."""
        name = f"{len(self.rows)}.jpg"
        (self.folder / "images" / name).write_bytes(image if isinstance(image, bytes) else encode_jpeg(image))
        self.rows.append([f"I{len(self.rows)}", product, name, sleeve])
        return len(self.rows) - 1

    def catalog(self):
        with (self.folder / "shop.csv").open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([["id", "product", "image", "sleeve"], *self.rows])
        return read_catalog(str(self.folder / "shop.csv"))

    def spec(self, out="shards", **more):
        settings = {"images": self.folder / "images", "resize": 64, "samples_per_shard": 20} | more
        return ShardSpec(self.folder / out, **settings)

    def build(self, out="shards", **more):
        return build_shards(self.catalog(), SCHEMA, self.spec(out, **more))

    def listed(self, out="shards"):
        with (self.folder / out / DUPLICATES).open(newline="", encoding="utf-8") as table:
            return list(csv.DictReader(table))

    def splits(self, out="shards"):
        """Product -> split."""
        index = open_index(self.folder / out)
        found = set(zip(index.product_ids.to_pylist(), index.splits.tolist(), strict=True))
        assert len(found) == len(dict(found)), "no product is in two splits"
        return dict(found)


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


def alone(product):
    return split_of(product, seed=0, shares=Shares())


def in_split(split, start="Q"):
    """A product id that goes to this split by itself."""
    return next(name for name in (f"{start}{number}" for number in range(1000)) if alone(name) == SPLITS.index(split))


def test_unlike_photos_are_no_duplicates(shop):
    assert shop.build().duplicates == Shared(pairs=0, apart=0, crowded=0)
    assert shop.listed() == []


@pytest.mark.parametrize("resize", [64, None])
def test_copies_under_other_products_are_listed_and_counted(shop, resize, capsys):
    train, test = in_split("train"), in_split("test")
    shop.add(train, half(picture(500)))
    rows = [shop.add(test, picture(500), "short"), shop.add(test, coded(picture(500), "JPEG", quality=40))]
    shop.add("P00", picture(0))  # of its own product: no news
    report = shop.build(resize=resize)
    assert report.duplicates == Shared(pairs=2, apart=2, crowded=0)
    listed = shop.listed()
    assert {line["item"] for line in listed} == {f"I{row}" for row in rows}
    for line in listed:
        assert (line["product"], line["other_product"]) == (test, train)
        assert (line["split"], line["other_split"], line["same_split"]) == ("test", "train", "no")
        assert int(line["distance"]) <= 4
        assert line["differ"] == ("sleeve: short, long" if line["item"] == f"I{rows[0]}" else "")
    assert main(["inspect", str(shop.folder / "shards")]) == 0
    assert "2 pairs of photos look the same under two products, 2 of them in two splits" in capsys.readouterr().out


def test_joined_products_share_a_split_and_no_other_moves(shop):
    train, test = in_split("train", "Y"), in_split("test", "X")
    shop.add(train, half(picture(500)))
    shop.add(test, picture(500))
    shop.add("P07", cropped(picture(501), 0.004))
    shop.add(in_split("validation", "A"), picture(501))
    shop.build("apart")
    report = shop.build(join=4)
    assert (report.duplicates.apart, report.duplicates.joined) == (0, 4)
    splits, before = shop.splits(), shop.splits("apart")
    assert splits[train] == splits[test] == alone(min(train, test))
    assert splits["P07"] == splits[in_split("validation", "A")] == SPLITS.index("validation")
    moved = {product for product in splits if splits[product] != before[product]}
    assert moved <= {train, test, "P07"}
    assert all(line["same_split"] == "yes" for line in shop.listed())
    rows = [splits[product] for _, product, _, _ in shop.rows]
    assert report.splits == {name: rows.count(place) for place, name in enumerate(SPLITS)}


def test_the_same_inputs_give_the_same_bytes_also_by_portions(shop):
    for number in range(6):
        shop.add(f"Q{number}", half(picture(number * 5)))
    shop.build("one", join=4)
    shop.build("again", join=4)
    for number in (1, 0):
        build_portion(shop.catalog(), SCHEMA, shop.spec("parts", join=4), Portion(number, 2))
    assert contents(shop.folder / "one") == contents(shop.folder / "again") == contents(shop.folder / "parts")
    assert shop.build("one", join=4).duplicates.joined == 12, "a finished build is left as it is"


def test_a_picture_on_which_nothing_is_to_be_seen_joins_nothing(shop):
    for number in range(8):
        shop.add(f"Q{number}", Image.new("RGB", (150, 180), "white"))
    assert shop.build(join=4).duplicates == Shared(pairs=0, apart=0, crowded=0)


def test_a_placeholder_of_very_many_products_is_listed_and_joins_nothing(shop, monkeypatch):
    monkeypatch.setattr("facetclip.near_duplicates.MOST_JOINED", 5)
    for number in range(9):
        shop.add(f"Q{number}", picture(500))
    report = shop.build(join=4)
    assert (report.duplicates.pairs, report.duplicates.joined, report.duplicates.left_out) == (8, 0, 9)
    assert {product: alone(product) for product in shop.splits()} == shop.splits()


def test_what_is_new_in_an_update_goes_to_the_split_of_what_it_looks_like(shop):
    shop.build(join=4)
    before = shop.splits()
    test = next(product for product, split in before.items() if SPLITS[split] == "test")
    new = in_split("train", "A")  # before all others by its id, and meant for another split
    shop.add(new, half(picture(2 * int(test[1:]))))
    report = shop.build(join=4, update=True)
    assert shop.splits() == before | {new: SPLITS.index("test")}
    assert (report.duplicates.joined, report.duplicates.torn) == (2, 0)
    assert report.changes is not None
    assert report.changes.moved == 0


def test_products_that_are_in_two_splits_already_stay_and_that_is_said(shop, capsys):
    shop.build(join=4)
    before = shop.splits()
    train, test = (next(p for p, split in before.items() if SPLITS[split] == name) for name in ("train", "test"))
    shop.add(train, picture(500))
    shop.add(test, picture(500))
    (shop.folder / "schema.toml").write_text(
        '[columns]\nitem = "id"\nproduct = "product"\nimage = "image"\n'
        '[attributes.sleeve]\ncolumn = "sleeve"\nvalues = ["long", "short"]\n'
    )
    report = build_shards(shop.catalog(), SCHEMA, shop.spec(join=4, update=True))
    assert shop.splits() == before
    assert (report.duplicates.torn, report.duplicates.apart) == (1, 1)
    command = ["shard", str(shop.folder / "shop.csv"), "--schema", str(shop.folder / "schema.toml"), "--resize", "64"]
    command += ["--images", str(shop.folder / "images"), "--out", str(shop.folder / "by hand"), "--workers", "1"]
    assert main(command) == 0
    assert "1 of them in two splits; --join-duplicates gives such products one split" in capsys.readouterr().out
    assert main([*command[:-3], str(shop.folder / "joined"), "--workers", "1", "--join-duplicates"]) == 0
    said = capsys.readouterr().out
    assert "0 of them in two splits; see" in said
    assert "2 products share their split with others that have a photo in common" in said


@pytest.mark.parametrize("bits", [-1, 13])
def test_bits_that_make_no_sense_are_refused(shop, bits):
    with pytest.raises(UserError, match=f"--join-duplicates: expected 0 to 12 bits, found {bits}"):
        shop.build(join=bits)


def test_splits_that_the_catalog_says_are_not_joined(shop):
    facts = {**FACTS, "columns": FACTS["columns"] | {"split": "sleeve"}}
    with pytest.raises(UserError, match="column 'sleeve' says which split each product is in"):
        build_shards(shop.catalog(), Schema.model_validate(facts), shop.spec(join=4))


def test_an_update_joins_as_the_folder_was_built(shop):
    shop.build(join=4)
    shop.add("Q", picture(500))
    with pytest.raises(
        UserError, match=r"was built with --join-duplicates 4, asked for is one without --join-duplicates"
    ):
        shop.build(update=True)


def test_photos_of_any_format_are_found(shop):
    out = io.BytesIO()
    picture(500).save(out, "PNG")
    shop.add("Q0", out.getvalue())
    shop.add("Q1", read_rgb(encode_jpeg(picture(500))).resize((75, 90)))
    assert shop.build().duplicates.pairs == 1
