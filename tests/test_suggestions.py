import json
from dataclasses import replace

import pytest
from small_shop import SCHEMA, killed_before

from facetclip import suggestions
from facetclip.errors import UserError
from facetclip.suggestions import (
    Correction,
    Suggestion,
    Suggestions,
    claim,
    read_corrections,
    read_suggestions,
    write_suggestions,
)

CELLS = (
    Suggestion("=item, 1", "P1", "sleeve", "long", "short", 0.9312, 0.0312, "disagrees"),
    Suggestion('ro"t', "P2", "colour", "", "red|blue", 0.5, None, "label"),
)
FOUND = Suggestions("Suspect cells", "shards", "d1", SCHEMA, CELLS, {"sleeve": {"wrong": 0.03}})
HEADER = "item_id,attribute,listed,suggested,verdict,value\n"


def test_suggestions_come_back_as_they_were_written(tmp_path):
    write_suggestions(FOUND, tmp_path / "audit")
    assert read_suggestions(tmp_path / "audit") == FOUND


def test_no_cell_of_the_table_is_a_formula_to_a_spreadsheet(tmp_path):
    write_suggestions(FOUND, tmp_path)
    assert '\n"\'=item, 1",P1,' in (tmp_path / "suggestions.csv").read_text()


def test_what_is_not_a_folder_of_suggestions_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no about.json; expected a folder made by facetclip audit"):
        read_suggestions(tmp_path)
    write_suggestions(FOUND, tmp_path)
    table = tmp_path / "suggestions.csv"
    whole = table.read_text()
    table.write_text(whole.rsplit("\n", 2)[0] + "\n")
    with pytest.raises(UserError, match="expected 2 rows, found 1"):
        read_suggestions(tmp_path)
    table.write_text(whole.replace("0.9312", "much"))
    with pytest.raises(UserError, match=r"suggestions.csv, row 2: a probability is no number"):
        read_suggestions(tmp_path)
    about = json.loads((tmp_path / "about.json").read_text())
    (tmp_path / "about.json").write_text(json.dumps(about | {"format": "x"}))
    with pytest.raises(UserError, match="expected format facetclip-suggestions-1, found 'x'"):
        read_suggestions(tmp_path)


def test_a_reason_that_is_none_is_refused(tmp_path):
    write_suggestions(replace(FOUND, cells=(CELLS[0],)), tmp_path)
    table = tmp_path / "suggestions.csv"
    table.write_text(table.read_text().replace("disagrees", "whim"))
    with pytest.raises(UserError, match="row 2: expected one of disagrees, label, found 'whim'"):
        read_suggestions(tmp_path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_corrections_are_read_with_their_rows_whatever_a_spreadsheet_did_to_the_columns(tmp_path, separator, encoding):
    path = tmp_path / "corrections.csv"
    text = "value,verdict,note,suggested,listed,attribute,item_id\r\nred,accept,,red,,colour,'=1\r\n"
    path.write_text(text.replace(",", separator), encoding)
    assert read_corrections(path) == ([Correction("=1", "colour", "", "red", "accept", "red")], [2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item_id,attribute\n", "row 1: no column 'listed', 'suggested', 'verdict', 'value'"),
        (HEADER + "a,sleeve,long,short,maybe,short\n", "row 2: expected one of accept, reject, other, unclear"),
        (HEADER + "a,sleeve,long\n", "row 2: expected 6 cells as in the header, found 3"),
    ],
)
def test_corrections_that_cannot_be_understood_are_refused_by_row(tmp_path, text, message):
    path = tmp_path / "corrections.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_corrections(path)


def test_corrections_that_are_not_there_or_not_text_are_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_corrections(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-16 text"):
        read_corrections(tmp_path / "binary.csv")


def test_suggestions_take_no_place_of_others_nor_of_shards(tmp_path):
    write_suggestions(FOUND, tmp_path / "audit")
    claim(tmp_path / "audit", FOUND.title)
    with pytest.raises(UserError, match="holds other suggestions"):
        claim(tmp_path / "audit", "Photos to label next")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "shard-000000.tar").write_bytes(b"")
    with pytest.raises(UserError, match="holds shards"):
        claim(tmp_path / "shards", FOUND.title)
    for foreign in ("[1]", '{"a": 1}', "no JSON"):
        (tmp_path / "audit" / "about.json").write_text(foreign)
        with pytest.raises(UserError, match="holds other suggestions"):
            claim(tmp_path / "audit", FOUND.title)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="is a file, not a folder"):
        claim(tmp_path / "file" / "audit", FOUND.title)
    claim(tmp_path / "new" / "audit", FOUND.title)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit", "file", "shards"]


def test_a_kill_between_the_two_files_leaves_no_folder_that_reads(tmp_path):
    write_suggestions(FOUND, tmp_path)
    with killed_before(suggestions, "about.json"):
        write_suggestions(FOUND, tmp_path)
    with pytest.raises(UserError, match=r"no about\.json"):
        read_suggestions(tmp_path)
