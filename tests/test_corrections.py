import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_shop import SCHEMA, killed_before

from facetclip import corrections
from facetclip.catalog import read_catalog
from facetclip.corrections import Applied, apply_corrections
from facetclip.errors import UserError
from facetclip.labels import encode_labels
from facetclip.schema import Schema

HEADER = "item_id,attribute,listed,suggested,verdict,value\n"
CATALOG = (
    "id,product,image,category,sleeve,colour,note\n"
    'a,P1,a.jpg,Shirt,LONG,red|blue,"two\nlines"\n'
    "\n"
    "b,P1,b.jpg,shirt,,red,=1+1\n"
    "c,P2,c.jpg,pants,,Violet,\n"
)


def shop(folder: Path, text: str = CATALOG, name: str = "shop.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def answers(folder: Path, *lines: str) -> Path:
    path = folder / "corrections.csv"
    path.write_text(HEADER + "".join(line + "\n" for line in lines))
    return path


def apply(folder: Path, source: Path, *lines: str) -> Applied:
    out = folder / f"fixed{source.suffix}"
    return apply_corrections(answers(folder, *lines), source, SCHEMA, out, folder / "changes.csv")


def test_accepted_values_go_in_and_everything_else_stays_cell_for_cell(tmp_path):
    source = shop(tmp_path)
    done = apply(
        tmp_path,
        source,
        "a,sleeve,long,short,accept,short",
        "b,sleeve,,none,other,long",
        "b,colour,red,blue,reject,red",
        "a,colour,red|blue,red,unclear,red|blue",
    )
    assert done == Applied(changed=2, confirmed=1, stale=0)
    expected = CATALOG.replace("LONG", "short").replace("shirt,,red", "shirt,LONG,red")  # as the table spells it
    assert (tmp_path / "fixed.csv").read_text() == expected
    assert source.read_text() == CATALOG


def test_a_carriage_return_in_a_cell_does_not_break_the_corrected_file(tmp_path):
    source = shop(tmp_path, CATALOG.replace("two\nlines", "two\rlines"))
    apply(tmp_path, source, "a,sleeve,long,short,accept,short")
    before, after = (read_catalog(str(path)).column("note") for path in (source, tmp_path / "fixed.csv"))
    assert after == before
    assert after[0] == "two\rlines"


def test_every_change_is_logged_by_the_row_that_a_person_sees(tmp_path):
    apply(tmp_path, shop(tmp_path), "a,sleeve,long,short,accept,short", "b,sleeve,,none,accept,none")
    assert list(csv.reader((tmp_path / "changes.csv").read_text().splitlines())) == [
        ["row", "item_id", "column", "before", "after", "what"],
        ["2", "a", "sleeve", "LONG", "short", "changed"],
        ["4", "b", "sleeve", "", "none", "changed"],
    ]


def test_a_cell_that_says_something_else_by_now_is_left_alone_and_told(tmp_path):
    done = apply(tmp_path, shop(tmp_path), "a,sleeve,short,none,accept,none")
    assert done == Applied(changed=0, confirmed=0, stale=1)
    assert (tmp_path / "fixed.csv").read_text() == CATALOG
    assert "left alone: was judged as 'short'" in (tmp_path / "changes.csv").read_text()


def test_what_was_written_into_a_gap_since_it_was_judged_is_left_alone(tmp_path):
    """A word that the schema does not explain, one that says "cannot apply", and a row that is pants by now."""
    facts = SCHEMA.model_dump()
    facts["attributes"]["sleeve"]["not_applicable"] = ["does not apply"]
    text = CATALOG.replace("LONG", "does not apply").replace("b.jpg,shirt", "b.jpg,pants")
    told = answers(tmp_path, "a,sleeve,,long,accept,long", "b,sleeve,,long,accept,long", "c,colour,,blue,accept,blue")
    out, log = tmp_path / "fixed.csv", tmp_path / "changes.csv"
    done = apply_corrections(told, shop(tmp_path, text), Schema.model_validate(facts), out, log)
    assert done == Applied(changed=0, confirmed=0, stale=3)
    assert out.read_text() == text
    assert [line[-2:] for line in csv.reader(log.read_text().splitlines())][1:] == [
        ["long", "left alone: was judged as ''"],
        ["long", "left alone: cannot apply, by the schema's rules"],
        ["blue", "left alone: the schema does not explain 'Violet'; add it as a value or an alias"],
    ]


@pytest.mark.parametrize("turned", [False, True])
def test_whether_a_cell_applies_is_asked_of_the_catalog_as_it_will_be(tmp_path, turned):
    lines = ["b,sleeve,,long,accept,long", "b,category,pants,shirt,accept,shirt"]
    source = shop(tmp_path, CATALOG.replace("b.jpg,shirt", "b.jpg,pants"))
    assert apply(tmp_path, source, *lines[:: -1 if turned else 1]) == Applied(2, 0, 0)
    assert "b.jpg,Shirt,LONG" in (tmp_path / "fixed.csv").read_text()


@pytest.mark.parametrize("cell", ["", "short"])
def test_a_cell_that_a_rule_filled_was_judged_by_that(tmp_path, cell):
    """Pants whose sleeve is `none` by the rule turn out to be a shirt with long ones."""
    facts = SCHEMA.model_dump()
    facts["attributes"]["sleeve"]["not_applicable_value"] = "none"
    source = shop(tmp_path, CATALOG.replace("b.jpg,shirt,,", f"b.jpg,pants,{cell},"))
    told = answers(tmp_path, "b,sleeve,none,long,accept,long", "b,category,pants,shirt,accept,shirt")
    out = tmp_path / "fixed.csv"
    done = apply_corrections(told, source, Schema.model_validate(facts), out, tmp_path / "changes.csv")
    assert done == Applied(2, 0, 0)
    assert "b.jpg,Shirt,LONG" in out.read_text()


def test_what_left_the_catalog_meanwhile_holds_up_nothing(tmp_path):
    lines = ("gone,sleeve,long,short,accept,short", "a,sleeve,long,short,accept,short", "gone,colour,,red,reject,")
    assert apply(tmp_path, shop(tmp_path), *lines) == Applied(1, 0, 1)
    assert ",gone,sleeve,,short,left alone: is in the catalog no more\n" in (tmp_path / "changes.csv").read_text()


def test_values_are_written_as_the_table_spells_them(tmp_path):
    source = shop(tmp_path, CATALOG.replace("red|blue", "Red|BLUE").replace(",red,", ",Red,"))
    lines = ("b,colour,red,red|blue,accept,red|blue", "b,sleeve,,short,accept,short")
    assert apply(tmp_path, source, *lines).changed == 2
    fixed = (tmp_path / "fixed.csv").read_text()
    assert "b.jpg,shirt,short,Red|BLUE," in fixed
    assert "4,b,colour,Red,Red|BLUE,changed" in (tmp_path / "changes.csv").read_text()


def test_an_answer_may_stand_there_twice_but_not_contradict_itself(tmp_path):
    line = "a,sleeve,long,short,accept,short"
    assert apply(tmp_path, shop(tmp_path), line, line).changed == 1
    for left in ("fixed.csv", "changes.csv"):
        (tmp_path / left).unlink()
    with pytest.raises(UserError, match="row 3: sleeve of item 'a' is decided otherwise in row 2"):
        apply(tmp_path, shop(tmp_path), line, "a,sleeve,long,short,reject,long")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("z,sleeve,long,short,accept,short", "row 2: the catalog has no item 'z', nor any other"),
        ("a,sleve,long,short,accept,short", "no attribute 'sleve'; did you mean 'sleeve'"),
        ("a,sleeve,long,short,other,tiny", "'tiny' is no value of sleeve; expected one of long, short, none"),
        ("a,colour,red,red|pink,accept,red|pink", "'pink' is no value of colour"),
    ],
)
def test_what_the_catalog_or_its_schema_does_not_have_is_refused_and_nothing_is_written(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        apply(tmp_path, shop(tmp_path), line)
    assert not (tmp_path / "fixed.csv").exists()
    assert not (tmp_path / "changes.csv").exists()


def test_attributes_that_share_a_column_would_undo_each_others_corrections_and_are_refused(tmp_path):
    facts = SCHEMA.model_dump()
    neck = {"column": "sleeve", "values": ["crew", "vneck"]}
    schema = Schema.model_validate(facts | {"attributes": facts["attributes"] | {"neck": neck}})
    told = answers(tmp_path, "a,sleeve,long,short,accept,short", "a,neck,,crew,accept,crew")
    with pytest.raises(UserError, match="two attributes are read from column 'sleeve'"):
        apply_corrections(told, shop(tmp_path), schema, tmp_path / "fixed.csv", tmp_path / "changes.csv")
    assert not (tmp_path / "fixed.csv").exists()


def test_the_catalog_itself_is_never_overwritten(tmp_path):
    source = shop(tmp_path)
    line = answers(tmp_path, "a,sleeve,long,short,accept,short")
    with pytest.raises(UserError, match="is there already"):
        apply_corrections(line, source, SCHEMA, source, tmp_path / "changes.csv")
    with pytest.raises(UserError, match=r"expected a \.csv file"):
        apply_corrections(line, source, SCHEMA, tmp_path / "x.parquet", tmp_path / "changes.csv")


def test_catalog_and_log_cannot_be_one_file(tmp_path):
    source, path = shop(tmp_path), answers(tmp_path)
    with pytest.raises(UserError, match="is named for the catalog and for its log"):
        apply_corrections(path, source, SCHEMA, tmp_path / "out.csv", tmp_path / "x" / ".." / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_what_a_kill_left_in_part_is_ended_by_the_same_command(tmp_path):
    source, line = shop(tmp_path), "a,sleeve,long,short,accept,short"
    with killed_before(corrections, "changes.csv"):
        apply(tmp_path, source, line)
    with pytest.raises(UserError, match=r"fixed\.csv is there already"):
        apply(tmp_path, source, "a,sleeve,long,short,other,none")
    assert apply(tmp_path, source, line) == Applied(1, 0, 0)
    assert (tmp_path / "changes.csv").exists()


def test_an_unchanged_copy_is_not_written_over_the_catalog(tmp_path):
    source = shop(tmp_path)
    for out, log in ((source, tmp_path / "log.csv"), (tmp_path / "out.csv", source)):
        with pytest.raises(UserError, match="is there already"):
            apply_corrections(answers(tmp_path), source, SCHEMA, out, log)
    assert source.read_text() == CATALOG


def test_a_header_with_commas_and_line_ends_is_read_back(tmp_path):
    header = 'id;"product, of many";image;category;sleeve;"colour\n(main)"'
    source = shop(tmp_path, header.replace("\n", "\n") + "\r\na;P1;a.jpg;shirt;long;red\r\nb;P2;b.jpg;pants;;blue\r\n")
    facts = SCHEMA.model_dump()
    facts["columns"]["product"], facts["attributes"]["colour"]["column"] = "product, of many", "colour\n(main)"
    schema, out = Schema.model_validate(facts), tmp_path / "fixed.csv"
    path = answers(tmp_path, "a,sleeve,long,short,accept,short")
    assert apply_corrections(path, source, schema, out, tmp_path / "log.csv") == Applied(1, 0, 0)
    assert out.read_bytes().endswith(b"\r\na;P1;a.jpg;shirt;short;red\r\nb;P2;b.jpg;pants;;blue\r\n")
    assert read_catalog(str(out)).column("sleeve") == ["short", ""]


def test_blank_rows_above_the_header_stay(tmp_path):
    source = shop(tmp_path, "\n;;;;;\n" + CATALOG.split("\n")[0].replace(",", ";") + "\na;P1;a.jpg;shirt;long;red;\n")
    apply(tmp_path, source, "a,sleeve,long,short,accept,short")
    assert (tmp_path / "fixed.csv").read_bytes() == source.read_bytes().replace(b"long", b"short")


@pytest.mark.parametrize(
    ("verdict", "value"), [("reject", "short"), ("unclear", "short"), ("accept", ""), ("accept", "long")]
)
def test_a_verdict_that_says_otherwise_than_its_value_is_refused(tmp_path, verdict, value):
    with pytest.raises(UserError, match=f"corrections.csv, row 2: {verdict} means '.*', but the value is '{value}'"):
        apply(tmp_path, shop(tmp_path), f"a,sleeve,long,short,{verdict},{value}")
    assert not (tmp_path / "fixed.csv").exists()


def test_the_same_corrections_again_change_nothing_and_say_so(tmp_path):
    source = shop(tmp_path)
    assert apply(tmp_path, source, "a,sleeve,long,short,accept,short") == Applied(1, 0, 0)
    again = tmp_path / "again.csv"
    told = apply_corrections(tmp_path / "corrections.csv", tmp_path / "fixed.csv", SCHEMA, again, tmp_path / "log.csv")
    assert told == Applied(0, 1, 0)
    assert again.read_bytes() == (tmp_path / "fixed.csv").read_bytes()


def test_an_item_that_is_there_twice_is_refused(tmp_path):
    source = shop(tmp_path, CATALOG + "a,P9,z.jpg,pants,,red,\n")
    with pytest.raises(UserError, match=r"shop\.csv, row 6: item id 'a' is already in row 2"):
        apply(tmp_path, source, "a,sleeve,long,short,accept,short")


@pytest.mark.parametrize(("encoding", "line_end"), [("utf-8-sig", "\r\n"), ("utf-16", "\r\n"), ("utf-8", "\n")])
def test_a_spreadsheets_file_stays_one_that_it_reads(tmp_path, encoding, line_end):
    lines = [
        "id;product;image;category;sleeve;colour",
        "a;P1;größe.jpg;shirt;long;red",
        "b;P2;b.jpg;pants;;red|blue",
        "",
    ]
    source = tmp_path / "shop.csv"
    source.write_bytes(line_end.join(lines).encode(encoding))
    apply(tmp_path, source, "a,sleeve,long,short,accept,short")
    assert (tmp_path / "fixed.csv").read_bytes() == line_end.join(lines).replace("long", "short").encode(encoding)


def test_tabs_json_lines_and_parquet_keep_their_kind(tmp_path):
    line = "a,sleeve,long,short,accept,short"
    tabs = shop(tmp_path, "id\tproduct\timage\tcategory\tsleeve\tcolour\na\tP\ta.jpg\tshirt\tlong\tred\n", "s.tsv")
    apply(tmp_path, tabs, line)
    assert (tmp_path / "fixed.tsv").read_text() == tabs.read_text().replace("long", "short")
    (tmp_path / "changes.csv").unlink()

    row = '{"id": "a", "product": "P", "image": "i", "category": "shirt", "sleeve": "long", "colour": "red", "n": 1.50}'
    lines = shop(tmp_path, row.replace('"a"', '"b"', 1) + "\n\n" + row + "\n", "s.jsonl")
    apply(tmp_path, lines, line)
    first, blank, second, _ = (tmp_path / "fixed.jsonl").read_text().split("\n")
    assert (first, blank) == (row.replace('"a"', '"b"', 1), "")
    assert '"sleeve": "short"' in second
    (tmp_path / "changes.csv").unlink()

    cells = {"id": ["a"], "product": ["P"], "image": ["a.jpg"], "category": ["shirt"], "sleeve": ["long"]}
    table = pa.table(cells | {"colour": ["red"], "price": [1.5]})
    pq.write_table(table, tmp_path / "s.parquet")
    apply(tmp_path, tmp_path / "s.parquet", line)
    fixed = pq.read_table(tmp_path / "fixed.parquet")
    assert fixed.column("price").to_pylist() == [1.5]
    assert fixed.column("sleeve").to_pylist() == ["short"]


def test_a_corrected_column_of_a_parquet_catalog_keeps_its_type_where_it_can(tmp_path):
    attributes = {
        "lid": {"column": "lid", "values": ["true", "false"]},
        "litres": {"column": "litres", "values": ["1", "2", "large"]},
        "kind": {"column": "kind", "values": ["pot", "pan"]},
    }
    schema = Schema.model_validate({"columns": SCHEMA.columns.model_dump(), "attributes": attributes})
    cells = {"id": ["a", "b"], "product": ["P", "P"], "image": ["a.jpg", "b.jpg"]}
    typed = {"lid": [True, None], "litres": [1.0, 2.0], "kind": pa.array(["pot", "pot"]).dictionary_encode()}
    source = tmp_path / "s.parquet"
    pq.write_table(pa.table(cells | typed), source)
    lines = ("b,lid,,false,accept,false", "a,litres,1,2,accept,2", "b,kind,pot,pan,accept,pan")
    for name, told, kind in (("one", lines, pa.float64()), ("two", ("a,litres,1,large,accept,large",), pa.string())):
        out = tmp_path / f"{name}.parquet"
        apply_corrections(answers(tmp_path, *told), source, schema, out, tmp_path / f"{name}.csv")
        assert pq.read_schema(out).field("litres").type == kind
    fixed = pq.read_table(tmp_path / "one.parquet")
    assert [fixed.column(name).to_pylist() for name in typed] == [[True, False], [2.0, 2.0], ["pot", "pan"]]
    assert pq.read_table(tmp_path / "two.parquet").column("litres").to_pylist() == ["large", "2"]


def test_lists_are_corrected_as_lists_and_those_that_stay_keep_their_type(tmp_path):
    cells = {"id": ["a", "b", "c"], "product": ["P"] * 3, "image": ["a.jpg"] * 3, "category": ["shirt"] * 3}
    lists = {"sleeve": ["long"] * 3, "colour": [["red"], [], None], "sizes": [[1, 2], [], None]}
    pq.write_table(pa.table(cells | lists), tmp_path / "s.parquet")
    lines = ("a,colour,red,red|blue,accept,red|blue", "c,sleeve,long,short,accept,short")
    apply(tmp_path, tmp_path / "s.parquet", *lines)
    fixed, before = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("fixed", "s"))
    assert fixed.schema == before.schema
    assert fixed.column("colour").to_pylist() == [["red", "blue"], [], None]
    assert fixed.column("sizes").to_pylist() == lists["sizes"]
    (tmp_path / "changes.csv").unlink()

    rows = [{name: column[place] for name, column in (cells | lists).items()} for place in range(3)]
    source = shop(tmp_path, "\n".join(map(json.dumps, rows)), "s.jsonl")
    apply(tmp_path, source, *lines, "c,colour,,green,accept,green")
    fixed = [json.loads(line) for line in (tmp_path / "fixed.jsonl").read_text().split("\n")]
    assert [row["colour"] for row in fixed] == [["red", "blue"], [], ["green"]]
    assert [row["sizes"] for row in fixed] == lists["sizes"]
    assert fixed[2]["sleeve"] == "short"


def test_numbers_and_truths_of_json_lines_stay_what_they_are(tmp_path):
    attributes = {
        "lid": {"column": "lid", "values": ["true", "false"]},
        "handles": {"column": "handles", "values": ["1", "2"]},
        "size": {"column": "size", "values": ["1", "XL"]},
        "litres": {"column": "litres", "values": ["1.50", "2.50"]},
    }
    schema = Schema.model_validate({"columns": SCHEMA.columns.model_dump(), "attributes": attributes})
    plain = {"product": "P", "image": "a.jpg"}
    rows = [
        {"id": "a", **plain, "lid": True, "handles": 2, "size": "XL", "litres": 1.5},
        {"id": "b", **plain, "lid": None, "handles": 1, "size": "1", "litres": None},
    ]
    source, out = shop(tmp_path, "\n".join(map(json.dumps, rows)), "s.jsonl"), tmp_path / "fixed.jsonl"
    lines = (
        "a,lid,true,false,accept,false",
        "a,handles,2,1,accept,1",
        "a,size,XL,1,accept,1",
        "b,litres,,2.50,accept,2.50",
    )
    apply_corrections(answers(tmp_path, *lines, "b,handles,1,,other,"), source, schema, out, tmp_path / "log.csv")
    assert [json.loads(line) for line in out.read_text().split("\n")] == [
        rows[0] | {"lid": False, "handles": 1, "size": "1"},
        rows[1] | {"handles": None, "litres": "2.50"},
    ]


def test_numbers_beside_a_corrected_cell_stay_as_they_were_written(tmp_path):
    row = '{"id": "a", "product": 1.10, "image": "i", "category": "shirt", "sleeve": "long", "colour": ["red"]'
    row += ', "n": [1e3, 2.50]}'
    source = shop(tmp_path, row, "s.jsonl")
    apply(tmp_path, source, "a,sleeve,long,short,accept,short")
    assert (tmp_path / "fixed.jsonl").read_text() == row.replace("long", "short")


def test_semicolons_stay_semicolons(tmp_path):
    source = shop(tmp_path, CATALOG.replace(",", ";"))
    apply(tmp_path, source, "a,sleeve,long,short,accept,short")
    assert (tmp_path / "fixed.csv").read_text() == source.read_text().replace("LONG", "short")


def test_column_names_with_outer_blanks_keep_them(tmp_path):
    line = "a,sleeve,long,short,accept,short"
    cells = {" id": "a", "product": "P", "image": "i", "category": "shirt", "sleeve ": "long", "colour": "red"}
    apply(tmp_path, shop(tmp_path, json.dumps(cells), "s.jsonl"), line)
    assert json.loads((tmp_path / "fixed.jsonl").read_text()) == cells | {"sleeve ": "short"}
    (tmp_path / "changes.csv").unlink()
    pq.write_table(pa.Table.from_pylist([cells]), tmp_path / "s.parquet")
    apply(tmp_path, tmp_path / "s.parquet", line)
    assert pq.read_table(tmp_path / "fixed.parquet").to_pylist() == [cells | {"sleeve ": "short"}]


def test_the_corrected_catalog_reads_as_it_was_decided(tmp_path):
    apply(tmp_path, shop(tmp_path), "a,colour,red|blue,green,accept,green", "b,sleeve,,none,accept,none")
    labels = encode_labels(read_catalog(str(tmp_path / "fixed.csv")), SCHEMA)
    assert labels["colour"].tolist() == [0b010, 0b001, -3]
    assert labels["sleeve"].tolist()[:2] == [0, 2]
