import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from facetclip.spreadsheets import separated

CELL = st.text(st.sampled_from(["a", " ", ",", "\t", '"', "\r", "\n", "ü", "'"]), max_size=4)


@given(st.lists(st.lists(CELL, min_size=2, max_size=3), max_size=4), st.sampled_from([",", "\t"]))
def test_whatever_a_cell_holds_is_read_back_cell_for_cell(rows, separator):
    text = separated(rows, separator).decode()
    assert list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)) == rows


def test_a_carriage_return_is_quoted_and_lines_end_with_a_line_feed_alone():
    assert separated([["a\rb", "c"], ["d\r\n", ""]]) == b'"a\rb",c\n"d\r\n",\n'
    assert separated([["a", "b"]], "\t") == b"a\tb\n"
