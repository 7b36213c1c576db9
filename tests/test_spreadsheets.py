"""What a spreadsheet would run is text, here and in what the review page exports."""

import re
from pathlib import Path

import pytest

from facetclip import spreadsheets
from facetclip.spreadsheets import FORMULA, csv_of, inert, live

# Those of OWASP's list (https://owasp.org/www-community/attacks/CSV_Injection).
STARTS = ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"]


@pytest.mark.parametrize("start", STARTS)
def test_what_begins_like_a_formula_is_inert_and_comes_back_as_it_was(start: str) -> None:
    assert inert(f"{start}1+1") == f"'{start}1+1"
    assert live(inert(f"{start}1+1")) == f"{start}1+1"
    assert f"'{start}1+1".encode() in csv_of(["item"], [[f"{start}1+1"]])


def test_the_review_page_guards_against_the_same() -> None:
    script = (Path(spreadsheets.__file__).parent / "review.js").read_text(encoding="utf-8")
    guard = re.search(r"/(\^\[.+\])/\.test\(cell\)", script)
    assert guard is not None
    assert {chr(code) for code in range(0x10000) if re.match(guard[1], chr(code))} == set(FORMULA)
