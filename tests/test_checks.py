import csv
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from facetclip.catalog import Catalog, read_catalog
from facetclip.checks import CheckSpec, check_catalog, render_text, write_problems
from facetclip.errors import UserError
from facetclip.images import encode_jpeg
from facetclip.schema import Schema, read_schema
from facetclip.shards import ShardSpec, build_shards
from facetclip.splits import Shares

FACTS = {
    "columns": {"item": "sku", "product": "style", "image": "photo", "split": "part"},
    "attributes": {
        "category": {"column": "category", "values": ["top", "pants"]},
        "sleeve": {
            "column": "sleeve",
            "values": ["Long", "Short", "no"],
            "aliases": {"long sleeve": "Long"},
            "applies_where": {"category": ["top"]},
        },
        "material": {"column": "material", "values": ["wool", "silk", "hemp"], "separator": "|"},
    },
}
SCHEMA = Schema.model_validate(FACTS)
HEADER = ["sku", "style", "photo", "part", "category", "sleeve", "material"]
GOOD = 40
ALL = {"decode": True, "max_bad": 0.5}


def photo(number, size=(24, 16)):
    draw = np.random.default_rng(number)
    return encode_jpeg(Image.fromarray(draw.integers(0, 255, (2, 3, 3), dtype=np.uint8)).resize(size))


class Shop:
    """A catalog on disk: GOOD clean rows, two a product, skewed; then whatever a test adds."""

    def __init__(self, folder):
        self.folder, self.root = folder, folder / "images"
        (self.root / "a").mkdir(parents=True)
        self.rows = [self.row(number) for number in range(GOOD)]

    def row(self, number, **cells):
        (self.root / "a" / f"{number}.jpg").write_bytes(photo(number))
        pants = number // 2 % 4 == 3
        row = {
            "sku": f"S{number}",
            "style": f"P{number // 2}",
            "photo": f"a/{number}.jpg",
            "part": ["train", "train", "", "val", "Test"][number // 2 % 5],
            "category": "Pants" if pants else "top",
            "sleeve": "N/A" if pants else ["long-sleeve", "NO", "short", ""][number % 4],
            "material": ["wool", "silk|wool", "", "Hemp"][number % 4],
        }
        return row | cells

    def add(self, **cells):
        """One more row, wrong in these cells; its row number."""
        self.rows.append(self.row(len(self.rows), **cells))
        return len(self.rows) + 1

    def catalog(self):
        path = self.folder / "catalog.csv"
        with path.open("w", newline="", encoding="utf-8") as out:
            table = csv.DictWriter(out, HEADER)
            table.writeheader()
            table.writerows(self.rows)
        return read_catalog(str(path))

    def check(self, **more):
        return check_catalog(self.catalog(), SCHEMA, CheckSpec(images=self.root, **more))

    def shardable(self, max_bad=0.01):
        """Whether the shards can be built."""
        try:
            build_shards(self.catalog(), SCHEMA, ShardSpec(self.folder / "out", self.root, max_bad=max_bad))
        except UserError:
            return False
        return True


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


def found(report, *, without=("coverage_gap",)):
    """(row, column, code, severity) of every problem."""
    return [(p.row, p.column, p.code, p.severity) for p in report.problems if p.code not in without]


def only(report):
    """The one problem of a row."""
    (problem,) = [problem for problem in report.problems if problem.row]
    return problem


def test_a_clean_catalog_has_no_problem_in_any_row_and_is_sound(shop):
    report = shop.check(decode=True)
    assert found(report) == []
    assert report.sound
    assert (report.rows, report.products, report.bad_images) == (GOOD, GOOD // 2, 0)
    assert sum(report.splits.values()) == GOOD
    assert shop.shardable()


def test_an_attribute_that_no_cell_says_anything_of_is_a_warning(shop):
    for row in shop.rows:
        row["material"] = ""
    report = shop.check()
    assert found(report) == [(0, "material", "no_label", "warning")]
    assert report.sound


def test_every_label_is_counted_once_where_one_value_is_allowed(shop):
    shop.add(sleeve="lnog", category="top")
    report = shop.check()
    for name in ("category", "sleeve"):
        assert sum(report.labels[name].values()) + sum(report.silent[name].values()) == GOOD + 1
    assert report.labels["sleeve"] == {"Long": 10, "Short": 5, "no": 10}
    assert report.silent["sleeve"] == {"unlabelled": 6, "not applicable": 10}
    assert report.labels["material"] == {"wool": 21, "silk": 10, "hemp": 10}  # the last row is wool too
    assert report.silent["material"] == {"unlabelled": 10, "not applicable": 0}


@pytest.mark.parametrize(
    ("cells", "column", "code"),
    [
        ({"sku": ""}, "sku", "no_item_id"),
        ({"sku": " \u00a0"}, "sku", "no_item_id"),
        ({"sku": "S3"}, "sku", "duplicate_id"),
        ({"style": ""}, "style", "no_product"),
        ({"part": "trian"}, "part", "unknown_split"),
        ({"style": "P0", "part": "test"}, "part", "split_disagreement"),
    ],
)
def test_what_makes_sharding_impossible_is_fatal(shop, cells, column, code):
    row = shop.add(**cells)
    report = shop.check()
    assert found(report) == [(row, column, code, "fatal")]
    assert not report.sound
    assert not shop.shardable()


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        ("", "no_reference"),
        ("a/none.jpg", "not_found"),
        ("a", "not_found"),
        ("../catalog.csv", "outside_root"),
        ("/etc/passwd", "outside_root"),
        ("a/link.jpg", "outside_root"),
        ("https://shop.example/1.jpg", "url"),
        ("a/empty.jpg", "empty"),
        ("a/page.jpg", "not_an_image"),
        ("a/dot.jpg", "too_small"),
        ("a/drawing.svg", "format"),
        ("a/cut.jpg", "truncated"),
    ],
)
def test_an_unusable_image_is_an_error_with_the_code_that_sharding_gives(shop, cell, code):
    folder = shop.root / "a"
    (folder / "link.jpg").symlink_to("/etc/hostname")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<html>404</html>")
    (folder / "dot.jpg").write_bytes(photo(1, (1, 1)))
    (folder / "drawing.svg").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "cut.jpg").write_bytes(photo(1)[:-90])
    row = shop.add(photo=cell)
    report = shop.check(**ALL)
    assert found(report) == [(row, "photo", code, "error")]
    assert report.sound
    assert shop.shardable(max_bad=0.5)
    with (shop.folder / "out" / "quarantine.csv").open(newline="") as table:
        assert [(int(line["row"]), line["code"]) for line in csv.DictReader(table)] == [(row, code)]


def test_a_file_cut_after_its_header_is_seen_only_when_decoded(shop):
    (shop.root / "a" / "cut.jpg").write_bytes(photo(1)[:-90])
    shop.add(photo="a/cut.jpg")
    assert found(shop.check()) == []
    assert "--decode" in render_text(shop.check())
    assert only(shop.check(decode=True)).code == "truncated"
    assert "--decode" not in render_text(shop.check(decode=True))


@pytest.mark.parametrize(("bad", "sound"), [(2, True), (3, False)])
def test_more_bad_images_than_allowed_make_the_catalog_unsound_for_check_and_shard_alike(shop, bad, sound):
    for number in range(bad):
        shop.add(photo=f"a/none{number}.jpg")
    report = shop.check(max_bad=0.05)  # of 42 or 43 rows: 2
    assert (report.bad_images, report.most_bad, report.sound) == (bad, 2, sound)
    assert shop.shardable(max_bad=0.05) is sound
    assert ("--max-bad 0.05 allows 2" in render_text(report)) is not sound


def test_a_catalog_without_one_good_image_is_never_sound(shop):
    shop.rows = [row | {"photo": "none.jpg"} for row in shop.rows]
    assert not shop.check(max_bad=1.0).sound
    assert not shop.shardable(max_bad=1.0)


@pytest.mark.parametrize(
    ("column", "cell", "said"),
    [
        ("sleeve", "lnog", "'lnog' (did you mean 'Long'?)"),
        ("sleeve", "Long Sleve", "'Long Sleve' (did you mean 'long sleeve'?)"),
        ("material", "wool|slik", "'slik' (did you mean 'silk'?)"),
        ("sleeve", "=cmd()", "'=cmd()' is no value of sleeve"),
        ("material", "<script>", "'<script>' is no value of material"),
    ],
)
def test_an_unknown_value_is_an_error_that_names_the_nearest_word_of_the_schema(shop, column, cell, said):
    row = shop.add(**{"category": "top", column: cell})
    problem = only(shop.check())
    assert (problem.row, problem.column, problem.code, problem.severity) == (row, column, "unknown_value", "error")
    assert said in problem.message
    assert shop.check().sound


def test_a_value_where_the_attribute_cannot_apply_is_a_warning(shop):
    row = shop.add(category="pants", sleeve="Long")
    shop.add(category="pants", sleeve="N/A")
    shop.add(category="pants", sleeve="nonsense")
    shop.add(category="", sleeve="Long")
    assert found(shop.check()) == [(row, "sleeve", "not_applicable_value", "warning")]


def test_the_same_image_of_two_products_is_a_warning_also_under_another_name(shop):
    (shop.root / "copy.jpg").write_bytes((shop.root / "a" / "0.jpg").read_bytes())
    rows = [shop.add(photo="a/0.jpg"), shop.add(photo="copy.jpg"), shop.add(photo="./a/3.jpg")]
    shop.add(photo="a/1.jpg", style="P0", part="train")  # of the same product: two rows of one view
    report = shop.check()
    assert found(report) == [(row, "photo", "shared_image", "warning") for row in rows]
    assert "row 2, which is product 'P0', not 'P20'" in report.problems[-3].message
    assert report.sound


def test_products_spelt_nearly_alike_are_a_warning_once_a_spelling(shop):
    rows = [shop.add(style="p3 "), shop.add(style="p3 ")]
    assert found(shop.check()) == [(rows[0], "style", "product_spelling", "warning")]


def test_items_that_are_their_own_products_are_a_warning_about_the_catalog(shop):
    for product, told in (("style", []), ("sku", [(0, "sku", "product_is_item", "warning")])):
        columns = FACTS["columns"] | {"product": product}
        report = check_catalog(
            shop.catalog(), Schema.model_validate(FACTS | {"columns": columns}), CheckSpec(images=shop.root)
        )
        assert [problem for problem in found(report) if problem[0] == 0] == told
        assert ("sku: names the item and the product" in render_text(report)) is bool(told)
        assert report.sound


def test_one_row_may_have_many_problems_and_all_rows_are_listed_in_order(shop):
    late = shop.add(sku="S1", style="", photo="none.jpg", part="?", sleeve="odd", material="odd", category="top")
    shop.rows[4] |= {"material": "felt"}
    assert [(row, code) for row, _, code, _ in found(shop.check())] == [
        (6, "unknown_value"),
        (late, "unknown_value"),
        (late, "unknown_split"),
        (late, "not_found"),
        (late, "duplicate_id"),
        (late, "unknown_value"),
        (late, "no_product"),
    ]


def test_rows_of_no_product_do_not_disagree_on_their_split(shop):
    shop.add(style="", part="train")
    shop.add(style="", part="test")
    assert {problem.code for problem in shop.check().problems if problem.row} == {"no_product"}


def test_a_coverage_gap_is_a_warning_about_the_catalog_not_a_row(shop):
    shop.rows = [row | {"part": "train" if row["category"] == "Pants" else row["part"]} for row in shop.rows]
    report = shop.check()
    gaps = [problem for problem in report.problems if problem.code == "coverage_gap" and problem.column == "category"]
    assert [(p.row, p.severity, p.message) for p in gaps] == [
        (0, "warning", f"category = pants is in no product of the {split} split") for split in ("validation", "test")
    ]
    assert {(gap.value, gap.split) for gap in report.gaps} >= {("pants", "test"), ("pants", "validation")}
    assert report.sound


def test_a_split_that_was_asked_to_be_empty_is_no_gap(shop):
    shop.rows = [row | {"part": ""} for row in shop.rows]
    report = shop.check(shares=Shares(0.7, 0.3, 0.0))
    assert report.splits["test"] == 0
    assert {gap.split for gap in report.gaps} <= {"train", "validation"}
    assert "test" in {gap.split for gap in shop.check(shares=Shares(0.7, 0.299, 0.001)).gaps}


def test_the_splits_counted_are_those_that_sharding_writes(shop):
    report = shop.check(seed=3)
    shards = build_shards(shop.catalog(), SCHEMA, ShardSpec(shop.folder / "out", shop.root, seed=3))
    assert shards.splits == report.splits
    assert shards.unknown_cells == {}


def test_what_makes_a_check_pointless_is_a_user_error(shop):
    shop.add()
    with pytest.raises(UserError, match="holds paths; give --images"):
        check_catalog(shop.catalog(), SCHEMA, CheckSpec())
    for row in shop.rows:
        row["photo"] = f" https://shop.example/{row['photo']}"
    with pytest.raises(UserError, match="holds URLs; --fetch-urls fetches them"):
        check_catalog(shop.catalog(), SCHEMA, CheckSpec())
    with pytest.raises(UserError, match="expected the folder of the images"):
        check_catalog(shop.catalog(), SCHEMA, CheckSpec(images=shop.root / "none"))
    schema = Schema.model_validate(FACTS | {"columns": FACTS["columns"] | {"item": "skuu"}})
    with pytest.raises(UserError, match=r"no column 'skuu'.*columns\.item; did you mean 'sku'"):
        check_catalog(shop.catalog(), schema, CheckSpec(images=shop.root))


def test_outer_blanks_of_a_path_are_nobodys_to_check_and_shard_alike(shop):
    for number, blank in enumerate((" ", "\t", "\n")):
        shop.rows[number]["photo"] = blank + shop.rows[number]["photo"] + blank
    assert shop.check(decode=True).bad_images == 0
    report = build_shards(shop.catalog(), SCHEMA, ShardSpec(shop.folder / "out", shop.root))
    assert (report.samples, report.bad) == (len(shop.rows), {})


def test_embedded_images_are_examined_too(shop):
    images = [{"bytes": photo(number), "path": None} for number in range(GOOD)]
    images[3] = {"bytes": b"GIF89a", "path": None}
    images[4] = {"bytes": None, "path": None}
    images[5] = {"bytes": None, "path": "a/5.jpg"}
    images[8] = images[0]
    table = shop.catalog().table
    catalog = Catalog("embedded", table.set_column(table.column_names.index("photo"), "photo", pa.array(images)), 1)
    report = check_catalog(catalog, SCHEMA, CheckSpec(max_bad=0.1))
    assert [(row, code) for row, _, code, _ in found(report)] == [
        (4, "corrupt"),
        (5, "no_reference"),
        (6, "no_reference"),
        (9, "shared_image"),
    ]
    assert "'a/5.jpg' but embeds no image; give --images" in found_message(report, 6)
    with_root = check_catalog(catalog, SCHEMA, CheckSpec(images=shop.root))
    assert [code for row, _, code, _ in found(with_root) if row == 6] == []


def found_message(report, row):
    return next(problem.message for problem in report.problems if problem.row == row)


def test_the_problem_table_can_be_opened_in_a_spreadsheet_without_harm(shop):
    cells = ["=cmd()", "+1", "-1", "@x", "\t=1", 'say "hi",\nthen']
    for cell in cells:
        shop.add(sku=cell, sleeve="odd", category="top")
    report = shop.check()
    write_problems(report, shop.folder / "deep" / "problems.csv")
    with (shop.folder / "deep" / "problems.csv").open(newline="", encoding="utf-8") as table:
        lines = list(csv.DictReader(table))
    assert len(lines) == len(report.problems)
    assert list(lines[0]) == ["row", "item", "column", "code", "severity", "message"]
    assert [line["item"] for line in lines if line["code"] == "unknown_value"] == [
        *(f"'{cell}" for cell in cells[:5]),
        cells[5],
    ]
    assert not any(line[name].startswith(("=", "+", "-", "@", "\t")) for line in lines for name in line)
    assert [path.name for path in (shop.folder / "deep").iterdir()] == ["problems.csv"]


def test_the_summary_counts_codes_shows_the_first_rows_and_ends_with_the_verdict(shop):
    rows = [shop.add(sleeve="odd", category="top") for _ in range(5)]
    shop.add(sku="S1\x1b[2J")
    text = render_text(shop.check())
    assert "error: unknown_value: 5" in text
    assert f"row {rows[0]}, item 'S40', sleeve: 'odd' is no value of sleeve" in text
    assert f"row {rows[3]}" not in text
    assert "and 2 more" in text
    assert "\x1b" not in text
    assert any(line.split() == ["category", "pants", "10"] for line in text.splitlines())
    assert text.splitlines()[-1] == "the catalog can be sharded"
    shop.add(sku="")
    assert render_text(shop.check()).splitlines()[-1] == "the catalog must not be sharded as it is"


def test_an_attribute_of_many_values_shows_the_commonest(shop):
    many = {"column": "style", "values": [f"P{number}" for number in range(30)]}
    schema = Schema.model_validate(FACTS | {"attributes": {"style": many}})
    shop.add(style="P19", part="")
    text = render_text(check_catalog(shop.catalog(), schema, CheckSpec(images=shop.root)))
    assert "P19" in text
    assert "more values" not in text  # 20 occur
    shop.add(style="P21")
    text = render_text(check_catalog(shop.catalog(), schema, CheckSpec(images=shop.root)))
    assert "(1 more value)" in text or "(2 more values)" in text


def test_five_thousand_rows_take_a_second_or_two(shop):
    rows = shop.rows * 125
    shop.rows = [row | {"sku": f"N{number}", "material": "felt"} for number, row in enumerate(rows)]
    catalog, before = shop.catalog(), time.monotonic()
    report = check_catalog(catalog, SCHEMA, CheckSpec(images=shop.root))
    assert time.monotonic() - before < 20  # on a busy machine
    assert sum(problem.code == "unknown_value" for problem in report.problems) == 5_000


def test_images_are_read_in_order_whatever_the_number_of_threads(shop):
    for number in range(100):
        shop.add(photo=f"none{number}.jpg" if number % 3 else "a/1.jpg")
    assert shop.check(threads=1).problems == shop.check(threads=7).problems


REAL = Path(__file__).parents[2] / "shared" / "data" / "luma"


@pytest.mark.skipif(not REAL.is_dir(), reason="the Luma catalog is not beside the repository")
def test_the_luma_catalog_is_sound():
    runs = Path(__file__).parents[1] / "training" / "runs"
    catalog = read_catalog(str(REAL / "catalog.csv"))
    report = check_catalog(catalog, read_schema(runs / "luma_schema.toml"), CheckSpec(images=REAL))
    assert report.sound
    assert not [problem for problem in report.problems if problem.severity != "warning"]
