import csv
import io
import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from facetclip.catalog import Catalog, read_catalog
from facetclip.errors import UserError
from facetclip.images import encode_jpeg
from facetclip.labels import encode_labels
from facetclip.schema import NOT_APPLICABLE, UNKNOWN_VALUE, UNLABELLED, Schema

FACTS = {
    "columns": {"item": "id", "product": "product", "image": "image"},
    "attributes": {
        "kind": {"column": "kind", "values": ["pan", "pot"], "not_applicable": ["n/a"]},
        "lid": {"column": "lid", "values": ["yes", "no"], "applies_where": {"kind": ["pot"]}},
        "material": {"column": "material", "values": ["iron", "steel", "no"], "separator": "|"},
    },
}
SCHEMA = Schema.model_validate(FACTS)


@pytest.fixture
def read(tmp_path):
    """Write a file of this name, text or bytes, and read it."""

    def write_and_read(content, name="c.csv"):
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(content)
        return read_catalog(str(tmp_path / name))

    return write_and_read


@pytest.fixture
def parquet(tmp_path):
    def write_and_read(table):
        pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), tmp_path / "c.parquet")
        return read_catalog(str(tmp_path / "c.parquet"))

    return write_and_read


# --- CSV and TSV


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_text_with_or_without_a_byte_order_mark_is_the_same_catalog(read, encoding):
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    catalog = read(f"{mark}id,name\r\nA1,Größe 名前\r\n".encode(encoding))
    assert catalog.table.column_names == ["id", "name"]
    assert catalog.column("name") == ["Größe 名前"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("name", "separator"), [("c.csv", ","), ("c.tsv", "\t"), ("C.CSV", ",")])
def test_every_kind_of_line_end_and_separator_is_read(read, newline, name, separator):
    lines = [separator.join(cells) for cells in (["id", " lid "], ["1", "no"], ["2", "yes"])]
    for end in ("", newline):
        catalog = read(newline.join(lines) + end, name)
        assert (catalog.column("id"), catalog.column("lid")) == (["1", "2"], ["no", "yes"])


def test_cells_stay_the_text_they_are(read):
    cells = ["no", "yes", "on", "TRUE", "007", "1e5", "1/4 zip", "4.0", "N/A", "nan", " x ", "", '"', "=cmd()", "<b>"]
    out = io.StringIO()
    csv.writer(out).writerows([["id", "cell"], *([str(number), cell] for number, cell in enumerate(cells))])
    assert read(out.getvalue()).column("cell") == cells


@settings(deadline=None)
@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6), min_size=2,
                         max_size=2), min_size=1, max_size=8))  # fmt: skip
def test_whatever_is_written_as_csv_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "c.csv"
    with path.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([["a", "b"], *rows])
    written = [(number, row) for number, row in enumerate(rows, start=2) if any(cell.strip() for cell in row)]
    if not written:
        with pytest.raises(UserError, match="0 rows"):
            read_catalog(str(path))
        return
    catalog = read_catalog(str(path))
    assert [list(row.values()) for row in catalog.table.to_pylist()] == [row for _, row in written]
    assert [catalog.row_number(place) for place in range(len(catalog))] == [number for number, _ in written]


def test_rows_have_the_number_that_a_spreadsheet_shows_blank_rows_and_multi_line_cells_or_not(read):
    catalog = read('id,text\n1,"a\nb\n\nc"\n\n\n2,x\n , \n3,y\n\n')
    assert catalog.column("id") == ["1", "2", "3"]
    assert [catalog.where(place) for place in range(3)] == ["c.csv, row 2", "c.csv, row 5", "c.csv, row 7"]


def test_blank_rows_above_the_header_count_too(read):
    assert [read("\n\nid,x\n1,a\n").where(0)] == ["c.csv, row 4"]
    with pytest.raises(UserError, match="row 3: column 'id' occurs twice"):
        read("\n\nid,id\n1,a\n")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty; expected column names in row 1"),
        (b"\n\n", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b"id,lid\n", "0 rows; expected one row per image"),
        (b"id,lid\n\n , \n", "0 rows"),
        (b"id,lid, id\n1,2,3\n", "row 1: column 'id' occurs twice"),
        (b"id,lid\n1,a\n2\n", "row 3: expected 2 cells as in the header, found 1"),
        (b"id,lid\n1,a\n\n2,a,b\n", "row 4: expected 2 cells as in the header, found 3"),
        (b'id,lid\n1,a\n2,"b\n3,c\n', "row 3: unexpected end of data; is a quote missing"),
        (b'id,lid\n1,a\n\n2,"b\n3,"c\n', "row 4: ',' expected after '\"'; is a quote missing"),
        (b"id,lid\n1,a\0b\n", "line 2: a NUL character"),
        ("id,lid\n1,a\n".encode("utf-16-le"), "line 1: a NUL character"),
        ("id,lid\n1,caf\xe9\n".encode("cp1252"), "line 2: not UTF-8 text; save the file as UTF-8"),
        (b"\xff\xfei\0d\0\n\0\x00\xd8", "line 2: not UTF-16 text"),
    ],
)
def test_a_broken_table_is_refused_in_one_line_with_file_and_row(read, content, said):
    with pytest.raises(UserError) as refusal:
        read(content)
    assert str(refusal.value).startswith("c.csv")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_cell_may_be_long(read):
    assert read("id,text\n1," + "x" * 300_000 + "\n").column("text") == ["x" * 300_000]


# --- JSON lines


def test_json_values_become_the_text_that_was_written(read):
    line = '{"id": 7, "b": true, "f": 4.10, "w": 2.0, "n": null, "s": "no", "u": "a\u2028b\x85c", "l": ["x", 1]'
    line += ', "o": {"k": "ü"}}'
    catalog = read(f'{line}\r\n\n{{"id": 12345678901234567890, "late": "x"}}\n', "c.jsonl")
    assert catalog.table.to_pylist() == [
        {"id": "7", "b": "true", "f": "4.10", "w": "2", "n": None, "s": "no", "u": "a\u2028b\x85c", "l": "x|1"}
        | {"o": '{"k": "ü"}', "late": None},
        {"id": "12345678901234567890", "late": "x"} | dict.fromkeys("bfwnsulo"),
    ]
    assert [catalog.where(0), catalog.where(1)] == ["c.jsonl, row 1", "c.jsonl, row 3"]
    assert all(pa.types.is_string(kind) for kind in catalog.table.schema.types)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"id": 1}\n\n{"id": \n', "row 3: not JSON"),
        ("[1, 2]\n", "row 1: expected an object"),
        ('{"id": "\\ud800"}\n', "row 1: not JSON"),
        ("[" * 100_000, "row 1: not JSON"),
        ('{"id": 1}\n{"id": 1, "lid": "yes", "id": 2}\n', "row 2: column 'id' occurs twice"),
        ('{"id": 1, "lid": "yes", "lid ": "no"}\n', "row 1: column 'lid' occurs twice"),
        ("\n", "0 rows"),
        ("", "0 rows"),
    ],
)
def test_broken_json_lines_are_refused_by_row(read, content, said):
    with pytest.raises(UserError, match=r"c\.ndjson") as refusal:
        read(content, "c.ndjson")
    assert said in str(refusal.value)


# --- Parquet


def test_parquet_columns_become_text_without_loss(parquet):
    catalog = parquet(
        {
            "id": pa.array([4006381333931.0, None, 1234567.0]),  # ids with a gap, as pandas writes them
            "float": pa.array([0.1, float("nan"), -2.5], pa.float32()),
            "whole": pa.array([2**62, 0, None]),
            "truth": [True, False, None],
            "price": [Decimal("4.10"), None, Decimal("0.00")],
            "word": pa.array(["no", None, "no"]).dictionary_encode(),
            "wide": pa.array(["no", None, ""], pa.large_string()),
            "list": [["a", "b"], None, []],
            "views": [[b"\xff"], None, [b""]],
            "time": pa.array([1, None, 2], pa.duration("s")),
            "nothing": pa.nulls(3),
        }
    )
    expected = {
        "id": ["4006381333931", None, "1234567"],
        "float": ["0.1", None, "-2.5"],
        "whole": ["4611686018427387904", "0", None],
        "truth": ["true", "false", None],
        "price": ["4.10", None, "0.00"],
        "word": ["no", None, "no"],
        "wide": ["no", None, ""],
        "list": ["a|b", None, None],
        "nothing": [None] * 3,
    }
    assert {name: catalog.column(name) for name in expected} == expected
    assert all(pa.types.is_string(kind) for kind in catalog.table.schema.types)
    assert catalog.where(0) == "c.parquet, row 1"


def test_embedded_images_stay_bytes(parquet):
    image = [{"bytes": b"\xff\xd8", "path": None}, None]
    catalog = parquet({"image": image, "raw": [b"\x89PNG", None], "big": pa.array([b"GIF", None], pa.large_binary())})
    assert catalog.column("image") == image
    assert (catalog.column("raw"), catalog.column("big")) == ([b"\x89PNG", None], [b"GIF", None])


def test_blanks_around_a_column_name_mean_nothing_in_any_kind_of_file(parquet, read):
    for catalog in (
        parquet({"id": ["1", "2"], "lid ": ["yes", None]}),
        read('{"id": 1, "lid ": "yes"}\n{" id": 2, "lid": null}\n', "c.jsonl"),
        read("id, lid \n1,yes\n2,\n"),
    ):
        assert catalog.column("id") == ["1", "2"]
        assert [cell or None for cell in catalog.column("lid")] == ["yes", None]
    with pytest.raises(UserError, match=r"c\.parquet: column 'lid' occurs twice"):
        parquet({"lid": ["yes"], "lid ": ["no"]})


def test_broken_parquet_is_refused(parquet, read):
    with pytest.raises(UserError, match=r"c\.parquet: not a readable Parquet file"):
        read(b"PAR1 and no more", "c.parquet")
    with pytest.raises(UserError, match="column 'id' occurs twice"):
        parquet(pa.Table.from_arrays([pa.array(["1"]), pa.array(["2"])], names=["id", "id"]))
    with pytest.raises(UserError, match="0 rows"):
        parquet({"id": pa.array([], pa.string())})
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff")]
    )
    with pytest.raises(UserError, match=r"not a readable Parquet file.*UTF8"):
        parquet({"id": broken})


# --- Hugging Face datasets


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    library.disable_progress_bars()
    return library


def photos(folder, count):
    folder.mkdir()
    for number in range(count):
        image = Image.new("RGB", (20, 12), (number * 40, 90, 30))
        (folder / f"{number}.jpg").write_bytes(encode_jpeg(image))
    return [folder / f"{number}.jpg" for number in range(count)]


def test_a_saved_dataset_gives_text_class_names_and_embedded_images_in_order(tmp_path, datasets):
    files = photos(tmp_path / "photos", 3)
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "lid": datasets.ClassLabel(names=["no", "yes"]),
            "image": datasets.Image(),
        }
    )
    content = {"id": [7, 8, 9], "lid": [1, -1, 0], "image": [str(path) for path in files]}
    saved = datasets.Dataset.from_dict(content, features=features).select([2, 0, 1])
    saved.save_to_disk(str(tmp_path / "saved"))
    catalog = read_catalog(str(tmp_path / "saved"))
    assert catalog.table.column_names == ["id", "lid", "image"]
    assert catalog.column("id") == ["9", "7", "8"]
    assert catalog.column("lid") == ["no", "yes", None]
    embedded = [cell["bytes"] for cell in catalog.table.column("image").to_pylist()]
    assert embedded == [files[number].read_bytes() for number in (2, 0, 1)]


def test_a_dataset_of_class_names_alone_is_read(tmp_path, datasets):
    features = datasets.Features({"lid": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"lid": [1, None]}, features=features).save_to_disk(str(tmp_path / "saved"))
    assert read_catalog(str(tmp_path / "saved")).column("lid") == ["yes", None]


def test_of_a_dataset_with_several_splits_one_must_be_named(tmp_path, datasets):
    parts = {name: datasets.Dataset.from_dict({"id": [name]}) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert read_catalog(str(tmp_path / "saved"), split="test").column("id") == ["test"]
    for split in (None, "dev"):
        with pytest.raises(UserError, match="has the splits train, test; name one with --dataset-split"):
            read_catalog(str(tmp_path / "saved"), split=split)


def test_a_folder_of_image_files_gives_paths_under_that_folder(tmp_path, datasets):
    files = photos(tmp_path / "shop", 2)
    lines = [json.dumps({"file_name": path.name, "id": f"A{number}"}) for number, path in enumerate(files)]
    (tmp_path / "shop" / "metadata.jsonl").write_text("\n".join(lines))
    catalog = read_catalog(str(tmp_path / "shop"))
    assert sorted(catalog.column("id"), key=str) == ["A0", "A1"]
    cells = catalog.table.column("image").to_pylist()
    assert sorted(cell["path"] for cell in cells) == ["0.jpg", "1.jpg"]
    assert [cell["bytes"] for cell in cells] == [None, None]


def test_a_folder_that_is_no_dataset_is_refused_in_one_line(tmp_path, datasets):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be read as a dataset") as refusal:
        read_catalog(str(tmp_path / "empty"))
    assert "\n" not in str(refusal.value)


# --- what is no catalog, and what a schema asks of one


@pytest.mark.parametrize("name", ["none.csv", "./none", "/none/at/all", "a/b/c", ""])
def test_a_path_that_is_absent_is_refused(name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if name:
        with pytest.raises(UserError, match=r"no such catalog; expected a \.csv"):
            read_catalog(name)


def test_an_unknown_kind_of_file_is_refused(read):
    with pytest.raises(UserError, match=r"c\.xlsx: unknown kind of catalog '\.xlsx'"):
        read("id\n1\n", "c.xlsx")


def test_every_column_that_the_schema_names_and_the_catalog_lacks_is_told_at_once(read):
    catalog = read("id,prodct,image,kind,Lids\n1,2,3,4,5\n")
    with pytest.raises(UserError) as refusal:
        catalog.require_columns(SCHEMA)
    said = str(refusal.value)
    assert "no column 'product', which the schema names as columns.product; did you mean 'prodct'?" in said
    assert "no column 'lid', which the schema names as attributes.lid.column; did you mean 'Lids'?" in said
    assert "no column 'material'" in said
    assert said.endswith("the columns are: id, prodct, image, kind, Lids")
    with pytest.raises(UserError, match="no column 'lidd'; did you mean 'Lids'"):
        catalog.column("lidd")


@pytest.mark.parametrize(("name", "mark"), [("c.csv", "|"), ("c.tsv", ","), ("c.tsv", ";")])
def test_another_separator_is_named(read, name, mark):
    with pytest.raises(UserError, match=r"row 1: one column, .*these by .*commas"):
        read(f"id{mark}image\n1{mark}a.jpg\n", name)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_csv_whose_header_is_cut_by_semicolons_or_tabs_is_read_by_them(read, mark):
    content = f'{mark}{mark}\n"id"{mark}"width, cm"{mark}note\n1{mark}2,5{mark}"a{mark}b"\n\n2{mark}3,0{mark}x,y\n'
    catalog = read(content)
    assert catalog.table.to_pylist() == [
        {"id": "1", "width, cm": "2,5", "note": f"a{mark}b"},
        {"id": "2", "width, cm": "3,0", "note": "x,y"},
    ]
    assert catalog.where(1) == "c.csv, row 5"


def test_a_csv_is_cut_at_commas_where_its_header_is_and_refused_where_it_could_be_cut_in_two_ways(read):
    assert read("id,a;b,c\td\n1,2,3\n").table.column_names == ["id", "a;b", "c\td"]
    assert read('"say ""id""; please","b,c"\n"1;2",3\n').column('say "id"; please') == ["1;2"]
    for content in ("id;lid\tkind\n1;2\t3\n", '"id;lid"\n1\n'):
        with pytest.raises(UserError, match=r"row 1: one column, .*these by ';'"):
            read(content)


# --- lists


def test_a_list_is_one_cell_of_several_values_and_an_empty_one_is_an_empty_cell(parquet, read):
    lists = {"word": [["red"], ["red", "blue"], [], None, [None], ["red", None]]}
    lists |= {"whole": [[1, 2], [], None, [3], [None], []], "truth": [[True, False], [], [], [], [], None]}
    said = {
        "word": ["red", "red|blue", None, None, None, "red"],
        "whole": ["1|2", None, None, "3", None, None],
        "truth": ["true|false", *[None] * 5],
    }
    lines = "\n".join(json.dumps({name: cells[place] for name, cells in lists.items()}) for place in range(6))
    kinds = {
        "word": pa.large_list(pa.dictionary(pa.int8(), pa.string())),
        "whole": pa.list_(pa.float64()),
        "truth": pa.list_(pa.bool_()),
    }
    table = pa.table({name: pa.array(cells, kinds[name]) for name, cells in lists.items()})
    chunks = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    for catalog in (read(lines, "c.jsonl"), parquet(table), parquet(chunks)):
        assert {name: catalog.column(name) for name in said} == said
    pairs = pa.array([[1, 2], [3, None]], pa.list_(pa.int64(), 2))
    assert parquet({"pair": pairs}).column("pair") == ["1|2", "3"]


@pytest.mark.parametrize("odd", [["a|b"], ["a", {"k": 1}], [["a"]], [[]]])
def test_a_list_that_cannot_be_one_cell_is_refused_by_row_and_column_where_it_is_read(read, parquet, odd):
    values = [["a"], [], odd]
    catalogs = [read("\n".join(["", *(json.dumps({"id": "1", "l": value}) for value in values)]), "c.jsonl")]
    if odd != ["a", {"k": 1}]:
        catalogs.append(parquet({"id": ["1"] * 3, "l": values if odd[0] == "a|b" else [None, [], odd]}))
    schema = Schema.model_validate(
        {
            "columns": dict.fromkeys(("item", "product", "image"), "id"),
            "attributes": {"l": {"column": "l", "values": ["a", "b"], "separator": "|"}},
        }
    )
    for catalog, row in zip(catalogs, (4, 3), strict=False):
        assert catalog.column("id") == ["1"] * 3
        for use in (lambda read: read.column("l"), lambda read: read.require_columns(schema)):
            with pytest.raises(UserError, match=rf"c\..*, row {row}: column 'l': a list with "):
                use(catalog)


def test_a_column_of_images_is_refused_where_text_is_wanted(parquet):
    texts = {name: ["x"] for name in ("id", "product", "kind", "lid")}
    catalog = parquet({**texts, "image": [b"\xff\xd8"], "material": [{"bytes": b"\xff\xd8", "path": None}]})
    with pytest.raises(UserError, match=r"column 'material', which the schema names as attributes.material.column"):
        catalog.require_columns(SCHEMA)


# --- labels


def labels_of(**cells):
    rows = len(next(iter(cells.values())))
    columns = {name: cells.get(name, [None] * rows) for name in ("kind", "lid", "material")}
    return Catalog("c", pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()}), 1)


def test_labels_are_value_places_masks_and_the_three_kinds_of_silence():
    cells = {
        "kind": ["Pan", "POT", "pot", "n/a", None, "", "wok", "pot"],
        "lid": ["yes", "no", None, "no", "no", "yes", "no", "maybe"],
        "material": ["iron", "Steel|iron", "no", "", None, "iron|gold", "-", "no|N/A"],
    }
    labels = encode_labels(labels_of(**cells), SCHEMA)
    assert labels["kind"].tolist() == [0, 1, 1, NOT_APPLICABLE, UNLABELLED, UNLABELLED, UNKNOWN_VALUE, 1]
    off, unsaid, odd = NOT_APPLICABLE, UNLABELLED, UNKNOWN_VALUE
    assert labels["lid"].tolist() == [off, 1, unsaid, off, 1, 0, 1, odd]
    assert labels["material"].tolist() == [1, 3, 4, unsaid, unsaid, odd, unsaid, 4]
    assert (labels["lid"].dtype, labels["material"].dtype) == (np.int16, np.int64)


WORDS = st.sampled_from(["pan", "pot", "yes", "no", "NO", "iron", "steel|no", "n/a", "", None, "odd", " Pot_ "])


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=20), st.integers(0, 20))
def test_labels_of_a_column_are_those_of_its_cells_one_by_one(rows, cut):
    whole = labels_of(**dict(zip(("kind", "lid", "material"), map(list, zip(*rows, strict=True)), strict=True)))
    chunked = pa.concat_tables([whole.table.slice(0, cut), whole.table.slice(cut)])
    labels = encode_labels(Catalog("c", chunked, 1), SCHEMA)
    for place, row in enumerate(whole.table.to_pylist()):
        alone = {name: attribute.encode(row[name]) for name, attribute in SCHEMA.attributes.items()}
        if alone["kind"] in (SCHEMA.attributes["kind"].values.index("pan"), NOT_APPLICABLE):
            alone["lid"] = NOT_APPLICABLE
        assert {name: int(column[place]) for name, column in labels.items()} == alone


@pytest.mark.nightly
def test_embedded_photos_of_more_than_two_gigabytes_are_read_group_by_group(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    photo = {"bytes": bytes(10_000_000), "path": "a.jpg"}
    with pq.ParquetWriter(tmp_path / "large.parquet", pa.schema([("item", pa.string()), ("image", kind)])) as file:
        for number in range(220):
            file.write_table(pa.table({"item": [str(number)], "image": pa.array([photo], kind)}))
    catalog = read_catalog(str(tmp_path / "large.parquet"))
    assert len(catalog) == 220
    assert len(catalog.table.column("image")[219].as_py()["bytes"]) == 10_000_000
