from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facetclip.catalog import read_catalog
from facetclip.errors import UserError
from facetclip.infer import infer_schema
from facetclip.labels import encode_labels
from facetclip.render import RenderSpec, render_catalog
from facetclip.schema import UNKNOWN_VALUE, Schema, read_schema

HEADER = "sku,style,photo,name,category,Sleeve,material,note"
ROWS = [
    ("shirt", "Long-Sleeve", "wool|silk", "N/A"),
    ("shirt", "long sleeve", "wool", "x"),
    ("shirt", "Short", "silk", "x"),
    ("shirt", "Striped", "silk|hemp", "x"),
    ("shirt", "Stiped", "hemp", "x"),
    ("pants", "", "wool", "x"),
]


def infer(tmp_path: Path, text: str) -> Schema:
    catalog = tmp_path / "shop.csv"
    catalog.write_text(text)
    path = tmp_path / "schema.toml"
    path.write_text(infer_schema(read_catalog(str(catalog))))
    return read_schema(path)


def shop() -> str:
    lines = [HEADER]
    for number in range(90):
        category, sleeve, material, _ = ROWS[number % len(ROWS)]
        note = f"free text number {number} that is longer than any value of an attribute could be"
        lines.append(f"S{number},P{number // 2},img/{number}.jpg,Shirt {number},{category},{sleeve},{material},{note}")
    return "\n".join(lines) + "\n"


def test_columns_attributes_and_spellings_are_found(tmp_path: Path) -> None:
    schema = infer(tmp_path, shop())
    assert (schema.columns.item, schema.columns.product, schema.columns.image) == ("sku", "style", "photo")
    assert set(schema.names) == {"category", "Sleeve", "material"}
    sleeve = schema.attributes["Sleeve"]
    assert sleeve.encode("Long-Sleeve") == sleeve.encode("long sleeve") >= 0
    assert sleeve.encode("Stiped") == sleeve.encode("Striped") >= 0
    assert sleeve.applies_where == {"category": ("shirt",)}
    assert schema.attributes["material"].separator == "|"
    assert set(schema.attributes["material"].values) == {"wool", "silk", "hemp"}


def test_every_cell_of_the_table_is_explained(tmp_path: Path) -> None:
    schema = infer(tmp_path, shop())
    labels = encode_labels(read_catalog(str(tmp_path / "shop.csv")), schema)
    assert not any((column == UNKNOWN_VALUE).any() for column in labels.values())


@pytest.mark.parametrize("kind", ["cookware", "garments"])
def test_a_rendered_catalog_is_understood(tmp_path: Path, kind: str) -> None:
    catalog = render_catalog(RenderSpec(kind, 60, size=32), tmp_path / "catalog")
    schema = infer(tmp_path, catalog.read_text())
    if kind == "cookware":
        assert set(schema.attributes["handle"].values) == {"none", "one", "two"}
        assert set(schema.attributes["lid"].values) == {"yes", "no"}
    else:
        assert schema.attributes["sleeve"].applies_where.keys() == {"category"}


def test_words_that_differ_by_meaning_are_not_joined(tmp_path: Path) -> None:
    cells = ["v-neck", "u-neck", "red", "reddish", "size 10", "size 11"]
    lines = ["id,image,cut", *(f"{n},{n}.jpg,{cells[n % 6]}" for n in range(60))]
    assert set(infer(tmp_path, "\n".join(lines)).attributes["cut"].values) == set(cells)


def values_of(tmp_path: Path, **counts: int) -> tuple[set[str], dict[str, str]]:
    """The values and aliases that are proposed where these words occur so often."""
    cells = [word for word, count in counts.items() for _ in range(count)]
    lines = ["id,image,cut", *(f"{n},{n}.jpg,{cell}" for n, cell in enumerate(cells))]
    cut = infer(tmp_path, "\n".join(lines)).attributes["cut"]
    return set(cut.values), cut.aliases


def test_words_that_are_the_same_but_for_gaps_are_joined_unless_numbers_would_run_together(tmp_path: Path) -> None:
    counts = {"crosstraining": 79, "cross-training": 46, "Cross_Training": 5, "run": 20, "1-2": 10, "12": 10}
    values, aliases = values_of(tmp_path, **counts)
    assert values == {"crosstraining", "run", "1-2", "12"}
    assert aliases == {"cross-training": "crosstraining", "Cross_Training": "crosstraining"}


def test_a_value_with_another_word_is_another_value_and_the_first_word_of_one_is_short_for_it(tmp_path: Path) -> None:
    counts = {"solid": 80, "Solid-Highlight": 30, "scoop neck": 40, "scoop": 10, "striped": 40, "stiped": 2}
    values, aliases = values_of(tmp_path, **counts)
    assert values == {"solid", "solid-highlight", "scoop neck", "striped"}
    assert aliases == {"scoop": "scoop neck", "stiped": "striped"}


def test_where_no_column_names_the_product_the_schema_says_what_that_means(tmp_path: Path) -> None:
    for style, said in (("style", False), ("heap", True)):
        infer(tmp_path, shop().replace("style", style))
        lines = (tmp_path / "schema.toml").read_text().splitlines()
        place = next(number for number, line in enumerate(lines) if line.startswith("product = "))
        told = lines[place - 1] == "# product land in train and in test, and what is measured is too good."
        assert told is said


def test_cells_cannot_break_out_of_the_file(tmp_path: Path) -> None:
    nasty = ['"""', "=cmd()", "<script>", "a]\nb = 1"]
    lines = ["id,image,cut"]
    for number in range(40):
        cell = nasty[number % 4].replace('"', '""')
        lines.append(f'{number},{number}.jpg,"{cell}"')
    assert len(infer(tmp_path, "\n".join(lines)).attributes["cut"].values) == 4


def test_a_table_without_images_is_refused_with_its_columns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column holds image paths; the columns are: id, cut"):
        infer(tmp_path, "id,cut\n1,a\n2,b\n")


def test_photos_without_an_id_of_text_are_refused_with_their_columns(tmp_path: Path) -> None:
    cell = {"bytes": b"x", "path": "a.jpg"}
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"image": [cell, cell], "label": ["pan", "pan"]}), path)
    with pytest.raises(UserError, match=r"no column of text tells the rows apart.*the columns are: image, label"):
        infer_schema(read_catalog(str(path)))


def test_lists_are_several_values_and_such_as_cannot_be_cells_are_told_and_passed_over(tmp_path: Path) -> None:
    cells = {"id": [str(n) for n in range(60)], "image": [f"{n}.jpg" for n in range(60)]}
    colours = [[["red"], ["red", "blue"], []][n % 3] for n in range(60)]
    pq.write_table(pa.table(cells | {"colour": colours, "boxes": [[[n]] for n in range(60)]}), tmp_path / "c.parquet")
    path = tmp_path / "schema.toml"
    path.write_text(infer_schema(read_catalog(str(tmp_path / "c.parquet"))))
    (attribute,) = read_schema(path).attributes.values()
    assert (attribute.column, attribute.values, attribute.separator) == ("colour", ("red", "blue"), "|")
    assert "# c.parquet, row 1: column 'boxes': a list with list<" in path.read_text()


@pytest.mark.parametrize("name", ["image_url", "shot"])
@pytest.mark.parametrize("query", ["", "?width=800"])
def test_photos_may_be_urls_alone(tmp_path: Path, name: str, query: str) -> None:
    text = shop().replace("photo", name).replace("img/", "https://cdn.shop.example/").replace(".jpg", f".jpg{query}")
    assert infer(tmp_path, text).columns.image == name


@pytest.mark.parametrize("name", ["photo", "shot"])
def test_paths_come_before_urls_beside_them(tmp_path: Path, name: str) -> None:
    paths, *rows = shop().replace("photo", name).splitlines()
    beside = [f"{paths},image_url", *(f"{row},https://cdn.shop.example/{place}.jpg" for place, row in enumerate(rows))]
    schema = infer(tmp_path, "\n".join(beside))
    assert schema.columns.image == name
    assert "image_url" not in schema.names


@pytest.mark.parametrize("silent", ["", "none", "n/a"])
def test_a_word_for_nothing_is_a_gap_where_the_rule_is_looked_for_too(tmp_path: Path, silent: str) -> None:
    rows = [("shirt", "long"), ("shirt", "short"), ("pants", silent)] * 20
    lines = [f"S{place},P{place},{place}.jpg,{kind},{sleeve}" for place, (kind, sleeve) in enumerate(rows)]
    schema = infer(tmp_path, "\n".join(["item_id,product_id,image,category,sleeve", *lines]) + "\n")
    assert schema.attributes["sleeve"].applies_where == {"category": ("shirt",)}


def test_the_index_that_pandas_writes_below_an_empty_name_is_passed_over(tmp_path: Path) -> None:
    lines = [f"{number},{number}.jpg,{('red', 'blue')[number % 2]}" for number in range(40)]
    schema = infer(tmp_path, "\n".join([",image,colour", *lines]) + "\n")
    assert (schema.columns.item, schema.columns.product, schema.columns.image) == ("image", "image", "image")
    assert schema.names == ("colour",)


def test_attributes_that_are_filled_in_the_same_rows_do_not_lean_on_each_other_in_a_circle(tmp_path: Path) -> None:
    kinds = [("full", "100 mm", 20), ("full", "120 mm", 10), ("", "180 mm", 20), ("rigid", "", 20)]
    cells = [(frame, travel) for frame, travel, count in kinds for _ in range(count)]
    rows = [f"{number},{number}.jpg,{frame},{travel}" for number, (frame, travel) in enumerate(cells)]
    schema = infer(tmp_path, "\n".join(["item_id,image,frame,travel", *rows]) + "\n")
    assert schema.attributes["frame"].applies_where == {"travel": ("100 mm", "120 mm")}
    assert schema.attributes["travel"].applies_where == {}
