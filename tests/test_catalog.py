import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facetclip.catalog import encode_labels, read_catalog
from facetclip.errors import UserError
from facetclip.schema import NOT_APPLICABLE, UNKNOWN_VALUE, UNLABELLED, Schema

SCHEMA = Schema.model_validate(
    {
        "columns": {"item": "id", "product": "style", "image": "image"},
        "attributes": {
            "category": {"column": "category", "values": ["shirt", "pants"]},
            "sleeve": {
                "column": "sleeve",
                "values": ["no", "long"],
                "applies_where": {"category": ["shirt"]},
            },
            "material": {"column": "material", "values": ["wool", "silk"], "separator": "|"},
        },
    }
)
HEADER = "id,style,image,category,sleeve,material\n"


def write(tmp_path: Path, text: str | bytes, name: str = "shop.csv") -> str:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_cells_stay_text_and_rows_keep_the_number_a_person_sees(tmp_path: Path) -> None:
    source = write(tmp_path, HEADER + '1,a,1.jpg,shirt,no,"wool\nblend"\n007,a,2.jpg,shirt,yes,=1+1\n')
    catalog = read_catalog(source)
    assert catalog.column("sleeve") == ["no", "yes"]
    assert catalog.column("id") == ["1", "007"]
    assert catalog.column("material") == ["wool\nblend", "=1+1"]
    assert catalog.where(1) == "shop.csv, row 3"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_usual_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    source = write(tmp_path, "id,name\n1,crème 漢\n".encode(encoding))
    assert read_catalog(source).column("name") == ["crème 漢"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"id,image\n", "0 rows"),
        (b"id,image\n1,a.jpg,red\n", r"shop\.csv, row 2: expected 2 cells as in the header, found 3"),
        (b"id,id\n1,2\n", "column 'id' occurs twice"),
        (b'id,image\n1,"a.jpg\n', r"shop\.csv, row \d: .*is a quote missing"),
        (b"id,image\n1,caf\xe9.jpg\n", "line 2: not UTF-8 text; save the file as UTF-8"),
        (b"id,image\n1,a\x00.jpg\n", "line 2: a NUL character"),
    ],
)
def test_a_broken_table_is_refused_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_catalog(write(tmp_path, content))


def test_tables_of_other_kinds_become_the_same_text(tmp_path: Path) -> None:
    rows = [{"id": 1, "lid": "no", "size": 4.0, "new": True}, {"id": 2, "lid": None, "size": None, "new": False}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "shop.parquet")
    write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "shop.jsonl")
    write(tmp_path, "id\tlid\n1\tno\n2\t\n", "shop.tsv")
    for name in ("shop.parquet", "shop.jsonl"):
        catalog = read_catalog(str(tmp_path / name))
        assert catalog.column("id") == ["1", "2"]
        assert catalog.column("lid") == ["no", None]
        assert catalog.column("new") == ["true", "false"]
        assert catalog.row_number(0) == 1
    assert read_catalog(str(tmp_path / "shop.tsv")).column("lid") == ["no", ""]


def test_a_dataset_folder_is_read_with_its_embedded_images(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict(
        {"id": ["1", "2"], "image": [{"bytes": b"abc", "path": None}] * 2, "lid": [1, 0]},
        features=datasets.Features(
            {"id": datasets.Value("string"), "image": datasets.Image(), "lid": datasets.ClassLabel(names=["no", "yes"])}
        ),
    )
    table.save_to_disk(str(tmp_path / "saved"))
    catalog = read_catalog(str(tmp_path / "saved"))
    assert catalog.column("lid") == ["yes", "no"]
    assert catalog.table.column("image").to_pylist()[0]["bytes"] == b"abc"


def test_missing_columns_are_all_named(tmp_path: Path) -> None:
    catalog = read_catalog(write(tmp_path, "id,style,image,categroy\n1,a,1.jpg,shirt\n"))
    with pytest.raises(UserError) as error:
        catalog.require_columns(SCHEMA)
    assert "no column 'category', which the schema names as attributes.category.column; did you mean" in str(
        error.value
    )
    assert "no column 'sleeve'" in str(error.value)


def test_labels_agree_with_the_schema_cell_by_cell(tmp_path: Path) -> None:
    cells = [
        ("shirt", "no", "wool|silk"),
        ("pants", "long", ""),
        ("", "Long", "silk"),
        ("hat", "", "tin"),
        ("shirt", "x", "N/A"),
    ]
    lines = [f"{n},s,{n}.jpg,{c},{s},{m}" for n, (c, s, m) in enumerate(cells * 3)]
    catalog = read_catalog(write(tmp_path, HEADER + "\n".join(lines) + "\n"))
    labels = encode_labels(catalog, SCHEMA)
    for place, (category, sleeve, material) in enumerate(cells * 3):
        expected = SCHEMA.encode({"category": category, "sleeve": sleeve, "material": material})
        assert {name: int(column[place]) for name, column in labels.items()} == expected
    assert labels["sleeve"].dtype == np.int16
    assert labels["material"].dtype == np.int64
    assert labels["sleeve"][:5].tolist() == [0, NOT_APPLICABLE, 1, UNLABELLED, UNKNOWN_VALUE]
