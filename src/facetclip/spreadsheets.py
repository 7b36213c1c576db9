"""Cells of the CSV files that people open in a spreadsheet, which takes some texts for formulas and runs them."""

import csv
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


class _Lines:
    """Takes records one a call, as a `csv.writer` writes them, and ends each with a line feed alone."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, record: str) -> None:
        self.lines.append(record.removesuffix("\r\n") + "\n")


def separated(rows: Iterable[Iterable[object]], separator: str = ",") -> bytes:
    """The rows as a file in UTF-8. Cells with either half of a line end are quoted: left to end lines with a line feed,
    the `csv` of Python 3.11 leaves a carriage return bare, which ends the row for whoever reads it.

    >>> separated([["a\\rb", "c, d"]])
    b'"a\\rb","c, d"\\n'
    """
    out = _Lines()
    csv.writer(out, delimiter=separator, lineterminator="\r\n").writerows(rows)
    return "".join(out.lines).encode("utf-8")


def csv_of(header: Sequence[str], rows: Iterable[Sequence[str | int]]) -> bytes:
    """A CSV file in UTF-8, every text in it inert.

    >>> csv_of(["row", "item"], [[2, "=A1"]])
    b"row,item\\n2,'=A1\\n"
    """
    return separated([header, *([inert(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)])
