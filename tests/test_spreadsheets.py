"""What is written for a spreadsheet is read back as it was, and what it would run is text."""

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facetclip import spreadsheets
from facetclip.spreadsheets import FORMULA, Form, csv_of, inert, live, separated

# Those of OWASP's list (https://owasp.org/www-community/attacks/CSV_Injection).
STARTS = ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"]
CELL = st.text(st.sampled_from(["a", " ", ",", "\t", '"', "\r", "\n", "ü", "'"]), max_size=4)


@given(st.lists(st.lists(CELL, min_size=2, max_size=3), max_size=4), st.sampled_from([",", "\t"]))
def test_whatever_a_cell_holds_is_read_back_cell_for_cell(rows, separator):
    text = separated(rows, Form(separator)).decode()
    assert list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)) == rows


def test_a_carriage_return_is_quoted_and_lines_end_with_a_line_feed_alone():
    assert separated([["a\rb", "c"], ["d\r\n", ""]]) == b'"a\rb",c\n"d\r\n",\n'
    assert separated([["a", "b"]], Form("\t")) == b"a\tb\n"


@pytest.mark.parametrize("start", STARTS)
def test_what_begins_like_a_formula_is_inert_and_comes_back_as_it_was(start: str) -> None:
    assert inert(f"{start}1+1") == f"'{start}1+1"
    assert live(inert(f"'{start}1")) == f"'{start}1" != inert(f"'{start}1")
    assert live(inert(f"{start}1+1")) == f"{start}1+1"
    assert f"'{start}1+1".encode() in csv_of(["item"], [[f"{start}1+1"]])


def test_the_review_page_guards_against_the_same() -> None:
    script = (Path(spreadsheets.__file__).parent / "review.js").read_text(encoding="utf-8")
    guard = re.search(r"/(\^'\*\[.+\])/\.test\(cell\)", script)
    assert guard is not None
    for quotes in ("", "'", "''"):
        assert {chr(code) for code in range(0x10000) if re.match(guard[1], f"{quotes}{chr(code)}")} == set(FORMULA)
