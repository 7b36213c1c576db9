import csv
import json
import re
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flaky_server import serving
from small_shop import SCHEMA, SCHEMA_TOML, make_reader, photo

from facetclip.abstention import Cutoff
from facetclip.calibration import Calibration
from facetclip.catalog import read_catalog
from facetclip.checks import CheckSpec, check_catalog
from facetclip.cli import main
from facetclip.errors import UserError
from facetclip.extract import FromCatalog, extract
from facetclip.filling import FillSpec, fill
from facetclip.model import AttributeReader, ModelCard, save_model
from facetclip.scores import Photos, Scores

LOW = {name: (Cutoff(0.95, 0.0),) for name in SCHEMA.names}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    rows = ["id,product,image,category,sleeve,colour,note"]
    for number in range(8):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(photo(number))
        category = ("shirt", "pants", "")[number % 3]
        rows.append(f"item {number},P{number // 2},{number}.jpg,{category},,{'red' if number % 2 else ''},=1+{number}")
    (tmp_path / "shop.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "schema.toml").write_text(SCHEMA_TOML)
    return tmp_path


def extracted(shop: Path, monkeypatch: pytest.MonkeyPatch, max_bad: float = 0.0, **card: Any) -> Path:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    reader = make_reader()
    reader.calibration = card.pop("calibration", {name: Calibration(0.05, 0.1) for name in SCHEMA.names})
    given = replace(reader.card, start="starter", calibration=reader.calibration, **({"cutoffs": LOW} | card))
    save_model(reader, shop / "model", card=given)
    source = FromCatalog(str(shop / "shop.csv"), shop / "schema.toml", shop / "images", max_bad=max_bad)
    extract(str(shop / "model"), source, shop / "scores", part_size=3)
    return shop / "scores"


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_split_of_a_dataset_is_read_and_filled_when_it_is_named(shop, monkeypatch, capsys):
    datasets = pytest.importorskip("datasets")
    rows = rows_of(shop / "shop.csv")
    parts = {"old": datasets.Dataset.from_list(rows[:3]), "new": datasets.Dataset.from_list(rows[3:])}
    datasets.DatasetDict(parts).save_to_disk(str(shop / "saved"))
    extracted(shop, monkeypatch)
    words = ["--schema", str(shop / "schema.toml"), "--dataset-split", "new", "--out"]
    read = ["extract", str(shop / "model"), "--catalog", str(shop / "saved"), "--images", str(shop / "images"), *words]
    assert main([*read, str(shop / "read")]) == 0
    assert main(["fill", str(shop / "read"), str(shop / "saved"), *words, str(shop / "filled.csv")]) == 0
    assert [row["id"] for row in rows_of(shop / "filled.csv")] == [row["id"] for row in rows[3:]]


def test_gaps_are_filled_and_marked_and_nothing_that_was_given_changes(shop, monkeypatch, capsys):
    scores = extracted(shop, monkeypatch)
    words = ["fill", str(scores), str(shop / "shop.csv"), "--schema", str(shop / "schema.toml"), "--out"]
    assert main([*words, str(shop / "filled.csv"), "--precision", "0.2"]) == 0
    assert "category: 2 of 2 gaps filled" in capsys.readouterr().out
    before, after = rows_of(shop / "shop.csv"), rows_of(shop / "filled.csv")
    assert [row["note"] for row in after] == [row["note"] for row in before]
    for old, new in zip(before, after, strict=True):
        for column in ("category", "colour"):
            if old[column]:
                assert (new[column], new[f"{column}_source"], new[f"{column}_confidence"]) == (old[column], "table", "")
            else:
                assert new[f"{column}_source"] == "photo"
                assert 0 < float(new[f"{column}_confidence"]) <= 1
                assert SCHEMA.attributes[column].encode(new[column]) >= 0
        if old["category"] == "pants":
            assert (new["sleeve"], new["sleeve_source"]) == ("", "table")  # it does not apply
    assert (shop / "shop.csv").read_text().count("photo") == 0


def test_a_gap_whose_photo_cannot_be_read_is_counted_and_stays(shop, monkeypatch):
    (shop / "images" / "2.jpg").write_bytes(b"no photo")
    scores = extracted(shop, monkeypatch, max_bad=0.2)
    found = fill(scores, str(shop / "shop.csv"), shop / "schema.toml", shop / "filled.csv", FillSpec(0.2))
    assert (found["category"].gaps, found["category"].filled) == (2, 1)
    row = rows_of(shop / "filled.csv")[2]
    assert (row["category"], row["category_source"]) == ("", "")


def test_a_spreadsheets_file_is_filled_as_one(shop, monkeypatch):
    scores, source = extracted(shop, monkeypatch), shop / "shop.csv"
    source.write_bytes(source.read_text().replace(",", ";").replace("\n", "\r\n").encode("utf-8-sig"))
    fill(scores, str(source), shop / "schema.toml", shop / "filled.csv", FillSpec(0.2))
    content = (shop / "filled.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbfid;product;image;category;category_source;")
    assert content.count(b"\r\n") == content.count(b"\n") == 9


def test_an_item_that_is_there_twice_is_refused(shop, monkeypatch):
    scores, source = extracted(shop, monkeypatch), shop / "shop.csv"
    source.write_text(source.read_text() + "item 0,P0,0.jpg,,,,\n")
    with pytest.raises(UserError, match=r"shop\.csv, row 10: item id 'item 0' is already in row 2"):
        fill(scores, str(source), shop / "schema.toml", shop / "filled.csv", FillSpec(0.2))


def test_where_photos_are_not_sure_enough_gaps_stay(shop, monkeypatch):
    scores = extracted(shop, monkeypatch, cutoffs={"category": (Cutoff(0.9, 0.0), Cutoff(0.95, 1.1))})
    told = fill(scores, str(shop / "shop.csv"), shop / "schema.toml", shop / "filled.csv", FillSpec(0.92))
    assert {name: (each.filled, each.threshold) for name, each in told.items()} == {
        "category": (0, 1.1),
        "sleeve": (0, None),
        "colour": (0, None),
    }
    assert [row["colour"] for row in rows_of(shop / "filled.csv")] == [
        row["colour"] for row in rows_of(shop / "shop.csv")
    ]


def test_what_the_table_says_is_replaced_only_when_asked_for(shop, monkeypatch):
    scores = extracted(shop, monkeypatch)
    catalog, schema = str(shop / "shop.csv"), shop / "schema.toml"
    kept = fill(scores, catalog, schema, shop / "kept.parquet", FillSpec())
    changed = fill(scores, catalog, schema, shop / "changed.parquet", FillSpec(overwrite=True))
    assert sum(each.replaced for each in kept.values()) == 0
    assert sum(each.replaced for each in changed.values()) > 0
    before, after = (pq.read_table(shop / f"{name}.parquet").to_pylist() for name in ("kept", "changed"))
    differs = [(old, new) for old, new in zip(before, after, strict=True) if old["category"] != new["category"]]
    assert len(differs) == changed["category"].replaced
    assert all(new["category_source"] == "photo" for _, new in differs)


def test_a_cell_that_the_schema_does_not_explain_is_no_gap_and_one_that_says_that_it_is_silent_is(shop, monkeypatch):
    text = (shop / "shop.csv").read_text().replace("0.jpg,shirt", "0.jpg,Poncho dress").replace("2.jpg,,", "2.jpg,N/A,")
    (shop / "shop.csv").write_text(text)
    scores = extracted(shop, monkeypatch)
    catalog, schema = str(shop / "shop.csv"), shop / "schema.toml"
    kept = fill(scores, catalog, schema, shop / "kept.csv", FillSpec(0.2))
    assert (kept["category"].gaps, kept["category"].filled) == (2, 2)
    odd, _, silent, *_ = rows_of(shop / "kept.csv")
    assert (odd["category"], odd["category_source"], odd["category_confidence"]) == ("Poncho dress", "table", "")
    assert (silent["category"] in SCHEMA.attributes["category"].values, silent["category_source"]) == (True, "photo")
    changed = fill(scores, catalog, schema, shop / "changed.csv", FillSpec(0.2, overwrite=True))
    odd = rows_of(shop / "changed.csv")[0]
    assert (odd["category"] in SCHEMA.attributes["category"].values, odd["category_source"]) == (True, "photo")
    assert changed["category"].gaps == 2
    assert changed["category"].replaced >= 1


def test_photos_of_one_product_give_one_answer(shop, monkeypatch):
    scores = extracted(shop, monkeypatch, by_product=("colour",))
    fill(scores, str(shop / "shop.csv"), shop / "schema.toml", shop / "filled.csv", FillSpec(overwrite=True))
    rows = rows_of(shop / "filled.csv")
    filled = [row for row in rows if row["colour_source"] == "photo"]
    assert len(filled) >= 4
    answers = {row["product"]: {r["colour"] for r in filled if r["product"] == row["product"]} for row in filled}
    assert all(len(found) == 1 for found in answers.values())


def test_a_carriage_return_in_a_cell_does_not_break_the_filled_file(shop, monkeypatch):
    text = (shop / "shop.csv").read_text().replace("=1+0", '"two\rlines"')
    (shop / "shop.csv").write_bytes(text.encode())
    scores = extracted(shop, monkeypatch)
    fill(scores, str(shop / "shop.csv"), shop / "schema.toml", shop / "filled.csv", FillSpec(0.2))
    assert read_catalog(str(shop / "filled.csv")).column("note") == read_catalog(str(shop / "shop.csv")).column("note")


def test_columns_of_a_parquet_catalog_keep_their_types_and_their_cells(shop, monkeypatch):
    columns = {
        name: list(cells)
        for name, *cells in zip(*csv.reader((shop / "shop.csv").read_text().splitlines()), strict=True)
    }
    others: dict[str, Any] = {
        "price": [19.999999, None, *[7.0] * 6],
        "stock": pa.array(range(8), pa.int64()),
        "sold": [True, None] * 4,
        "tags": [["a", "b"]] * 8,
        "since": [datetime(2024, 2, 29, 23, 59, 59)] * 8,
        "tax": [Decimal("1.50")] * 8,
        "photo": [{"bytes": photo(number), "path": None} for number in range(8)],
    }
    silent = {name: [cell or None for cell in columns.pop(name)] for name in ("category", "sleeve", "colour")}
    table = pa.table(columns | {name: pa.array(cells) for name, cells in silent.items()} | others)
    colours = [cell and cell.split("|") for cell in silent["colour"]]
    table = table.set_column(table.schema.get_field_index("colour"), "colour", pa.array(colours))
    kind = table.schema.get_field_index("category")
    table = table.set_column(kind, "category", table.column("category").dictionary_encode())
    pq.write_table(table, shop / "shop.parquet")
    scores, schema = extracted(shop, monkeypatch), shop / "schema.toml"
    assert fill(scores, str(shop / "shop.parquet"), schema, shop / "filled.parquet", FillSpec(0.2))["category"].filled
    filled = pq.read_table(shop / "filled.parquet")
    assert filled.schema.field("colour").type == table.schema.field("colour").type
    assert filled.column("colour").to_pylist()[1::2] == [["red"]] * 4
    assert all(filled.column("colour").to_pylist())
    for name in (*columns, *others):
        assert filled.column(name).equals(table.column(name)), name
    assert filled.schema.field("category").type == table.schema.field("category").type
    with pytest.raises(UserError, match=r"filled.csv: a .csv cannot hold the images in column 'photo'"):
        fill(scores, str(shop / "shop.parquet"), schema, shop / "filled.csv", FillSpec())
    pq.write_table(table.drop_columns(["photo"]), shop / "plain.parquet")
    fill(scores, str(shop / "plain.parquet"), schema, shop / "filled.csv", FillSpec())
    first = rows_of(shop / "filled.csv")[0]
    assert (first["price"], first["sold"], first["tags"]) == ("19.999999", "true", "a|b")


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_filled_cell_breaks_a_rule_of_the_schema(shop, monkeypatch, overwrite):
    draw = np.random.default_rng(5)
    rows = ["id,product,image,category,sleeve,colour"]
    for number in range(60):
        category = draw.choice(["shirt", "pants", "", "", "poncho"])
        sleeve = "" if category == "pants" else draw.choice(["long", "", ""])
        rows.append(f"item {number},P{number // 3},{draw.integers(8)}.jpg,{category},{sleeve},")
    (shop / "shop.csv").write_text("\n".join(rows) + "\n")

    def at_random(reader: AttributeReader, photos: Photos, rows: np.ndarray, **_: Any) -> Scores:
        sizes = {name: len(attribute.values) for name, attribute in reader.schema.attributes.items()}
        read = {name: draw.dirichlet([0.3] * size, len(rows)).astype(np.float32) for name, size in sizes.items()}
        return Scores(rows, [photos.item_id(row) for row in rows.tolist()], reader.schema, read, {})

    monkeypatch.setattr("facetclip.extract.score_rows", at_random)
    scores = extracted(shop, monkeypatch, by_product=("category",), calibration={})
    catalog, schema, out = str(shop / "shop.csv"), shop / "schema.toml", shop / "filled.csv"
    told = fill(scores, catalog, schema, out, FillSpec(0.2, overwrite))
    assert min(told["category"].filled, told["sleeve"].filled) > 0
    assert {row["category"] for row in rows_of(out) if row["category_source"] == "photo"} == {"shirt", "pants"}
    problems = check_catalog(read_catalog(str(out)), SCHEMA, CheckSpec(images=shop / "images")).problems
    assert not [problem for problem in problems if problem.code == "not_applicable_value"]
    for row in rows_of(out):
        if row["category"] == "pants":
            assert (row["sleeve"], row["sleeve_source"]) == ("", "table")


@pytest.mark.parametrize("blank", ["", " "])
def test_rows_without_a_product_are_each_a_product_of_their_own(shop, monkeypatch, blank):
    text = re.sub(r",P\d,", f",{blank},", (shop / "shop.csv").read_text())
    (shop / "shop.csv").write_text(text)
    scores = extracted(shop, monkeypatch, by_product=SCHEMA.names)
    fill(scores, str(shop / "shop.csv"), shop / "schema.toml", shop / "filled.csv", FillSpec(0.2))
    (shop / "shop.csv").write_text(re.sub(rf"(item \d),{blank},", r"\1,\1,", text))
    fill(scores, str(shop / "shop.csv"), shop / "schema.toml", shop / "apart.csv", FillSpec(0.2))
    answers = [[dict(row, product="") for row in rows_of(shop / name)] for name in ("filled.csv", "apart.csv")]
    assert answers[0] == answers[1]


def test_what_other_rows_of_the_product_list_counts_beside_the_photos(shop, monkeypatch, capsys):
    """Product P1 lists `shirt` and nothing, P2 `pants` and nothing, P3 nothing and `shirt`; P0 nothing at all. Twenty
    others show that a product's rows agree."""
    listed = {"item 2": "shirt", "item 4": "pants", "item 7": "shirt"}
    names = [(f"item {number}", f"P{number // 2}", number) for number in range(8)]
    names += [(f"more {number}", f"Q{number // 2}", number % 8) for number in range(40)]
    rows = [
        f"{item},{product},{image}.jpg,{listed.get(item, '') if item[0] == 'i' else 'pants'},,,"
        for item, product, image in names
    ]
    (shop / "shop.csv").write_text("\n".join(["id,product,image,category,sleeve,colour,note", *rows]) + "\n")
    cut = {name: (Cutoff(0.95, 0.9),) for name in SCHEMA.names}
    calibration = {name: Calibration(100.0, 0.1) for name in SCHEMA.names}  # photos say next to nothing
    scores = extracted(shop, monkeypatch, cutoffs=cut, by_product=("category",), calibration=calibration)
    words = ["fill", str(scores), str(shop / "shop.csv"), "--schema", str(shop / "schema.toml")]
    assert main([*words, "--out", str(shop / "filled.csv")]) == 0
    said = r"category: 3 of 5 gaps filled, where at least 0\.9\d\d sure; 3 of them as other rows of the product say"
    assert re.search(said, capsys.readouterr().out)
    filled = {row["id"]: row for row in rows_of(shop / "filled.csv")}
    for item, value in (("item 3", "shirt"), ("item 5", "pants"), ("item 6", "shirt")):
        assert (filled[item]["category"], filled[item]["category_source"]) == (value, "product")
        assert float(filled[item]["category_confidence"]) == pytest.approx(0.975, abs=0.02)
    for item in ("item 2", "item 4", "item 7"):
        assert (filled[item]["category"], filled[item]["category_source"]) == (listed[item], "table")
    assert filled["item 0"]["category_source"] == filled["item 1"]["category_source"] == ""


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_written_is_as_sure_as_was_wanted_in_the_mean(shop, monkeypatch, overwrite):
    scores = extracted(shop, monkeypatch, calibration={name: Calibration(0.3) for name in SCHEMA.names})
    catalog, schema = str(shop / "shop.csv"), shop / "schema.toml"
    counts = []
    for wanted in (0.5, 0.7, 0.9):
        out = shop / f"{wanted}.csv"
        told = fill(scores, catalog, schema, out, FillSpec(wanted, overwrite))
        counts.append(sum(each.filled + each.replaced for each in told.values()))
        for name, each in told.items():
            sure = [float(cell) for row in rows_of(out) if (cell := row[f"{name}_confidence"])]
            assert len(sure) == each.filled + each.replaced
            assert not sure or np.mean(sure) >= wanted - 1e-4
            assert each.threshold is not None
            assert min(sure, default=1.0) >= each.threshold - 1e-4
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2]


def test_what_cannot_be_filled_is_said_and_nothing_is_written(shop, monkeypatch):
    catalog, schema, out = str(shop / "shop.csv"), shop / "schema.toml", shop / "filled.csv"
    with pytest.raises(UserError, match=r"no manifest.json; run facetclip extract to its end first"):
        fill(shop, catalog, schema, out, FillSpec())
    scores = extracted(shop, monkeypatch)
    with pytest.raises(UserError, match=r"ends in .csv or .parquet"):
        fill(scores, catalog, schema, shop / "filled.xlsx", FillSpec())
    schema.write_text(SCHEMA_TOML.replace('"red", ', '"pink", '))
    with pytest.raises(UserError, match="reads other attributes or values than the schema"):
        fill(scores, catalog, schema, out, FillSpec())
    schema.write_text(
        SCHEMA_TOML.replace('separator = "|"', "")
    )  # a mask of values would be taken for the number of one
    with pytest.raises(UserError, match="or lists several where that lists one"):
        fill(scores, catalog, schema, out, FillSpec())
    schema.write_text(SCHEMA_TOML.replace('column = "sleeve"', 'column = "category"'))
    with pytest.raises(UserError, match="two attributes are read from column 'category'"):
        fill(scores, catalog, schema, out, FillSpec())
    schema.write_text(SCHEMA_TOML)
    (shop / "other.csv").write_text((shop / "shop.csv").read_text().replace("item ", "thing "))
    with pytest.raises(UserError, match=r"other.csv: has no item 'item 0', nor 7 others of the 8"):
        fill(scores, str(shop / "other.csv"), schema, out, FillSpec())
    fill(scores, catalog, schema, shop / "once.csv", FillSpec())
    with pytest.raises(UserError, match="has a column 'category_source' already"):
        fill(scores, str(shop / "once.csv"), schema, out, FillSpec())
    manifest = json.loads((scores / "manifest.json").read_text())
    manifest["card"]["cutoffs"] = {}
    (scores / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="does not know when to abstain"):
        fill(scores, catalog, schema, out, FillSpec())
    for strange in ("[]", '"scores"', '{"card": {}}'):
        (scores / "manifest.json").write_text(strange)
        with pytest.raises(UserError, match=r"manifest.json: is not what facetclip extract writes"):
            fill(scores, catalog, schema, out, FillSpec())
    assert not out.exists()


def test_a_column_that_was_renamed_since_the_extraction_is_read_by_its_new_name(shop, monkeypatch):
    scores, schema, catalog = extracted(shop, monkeypatch), shop / "renamed.toml", shop / "renamed.csv"
    text = (shop / "shop.csv").read_text()
    assert text.startswith("id,product,")
    catalog.write_text(text.replace("id,product,", "id,style,", 1))
    schema.write_text((shop / "schema.toml").read_text().replace('product = "product"', 'product = "style"'))
    before = fill(scores, str(shop / "shop.csv"), shop / "schema.toml", shop / "before.csv", FillSpec())
    assert fill(scores, str(catalog), schema, shop / "after.csv", FillSpec()) == before


def test_items_that_left_the_catalog_since_hold_up_nothing_and_cells_are_spelled_as_its_own(shop, monkeypatch, capsys):
    scores, schema, lines = (
        extracted(shop, monkeypatch),
        shop / "schema.toml",
        (shop / "shop.csv").read_text().splitlines(),
    )
    fill(scores, str(shop / "shop.csv"), schema, shop / "all.csv", FillSpec())
    (shop / "less.csv").write_text("\n".join(lines[:-1]).replace("pants", "Pants").replace("red", "RED") + "\n")
    capsys.readouterr()
    fill(scores, str(shop / "less.csv"), schema, shop / "filled.csv", FillSpec())
    assert "less.csv: has no item 'item 7', 1 in all of the 8 that" in capsys.readouterr().err
    before, after = rows_of(shop / "all.csv")[:-1], rows_of(shop / "filled.csv")
    spelled = {"pants": "Pants", "red": "RED"}
    for name in ("category", "colour"):
        told = ["|".join(spelled.get(part, part) for part in row[name].split("|")) for row in before]
        assert [row[name] for row in after] == told
    assert {row["category"] for row in after if row["category_source"] != "table"} >= {"Pants"}


def test_scores_on_the_web_need_not_be_written_to(shop, monkeypatch):
    extracted(shop, monkeypatch)
    catalog, schema = str(shop / "shop.csv"), shop / "schema.toml"
    with serving(shop) as server:
        fill(f"{server.url}/scores", catalog, schema, shop / "web.csv", FillSpec())
        with pytest.raises(UserError, match="nothing can be written over the web"):
            fill(shop / "scores", catalog, schema, f"{server.url}/filled.csv", FillSpec())
    fill(shop / "scores", catalog, schema, shop / "filled.csv", FillSpec())
    assert (shop / "web.csv").read_bytes() == (shop / "filled.csv").read_bytes()


def test_cut_offs_travel_with_the_model(tmp_path):
    reader = make_reader()
    card = replace(reader.card, cutoffs=LOW, by_product=("category",))
    save_model(reader, tmp_path, card=card)
    assert ModelCard.from_folder(tmp_path) == card
    assert np.isfinite(card.cutoffs["sleeve"][0].threshold)
