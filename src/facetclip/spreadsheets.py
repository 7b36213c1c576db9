"""Cells of the CSV files that people open in a spreadsheet, which takes some texts for formulas and runs them."""

import csv
import io
from collections.abc import Iterable, Sequence

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # how these begin; as in review.js


def inert(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula; `live` undoes it.

    >>> inert("=cmd()"), live("'=cmd()"), live("'plain")
    ("'=cmd()", '=cmd()', "'plain")
    """
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def live(cell: str) -> str:
    """What `inert` was given."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def csv_of(header: Sequence[str], rows: Iterable[Sequence[str | int]]) -> bytes:
    """A CSV file in UTF-8, every text in it inert.

    >>> csv_of(["row", "item"], [[2, "=A1"]])
    b"row,item\\n2,'=A1\\n"
    """
    out = io.StringIO(newline="")
    table = csv.writer(out, lineterminator="\n")
    table.writerow(header)
    table.writerows([inert(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return out.getvalue().encode("utf-8")
