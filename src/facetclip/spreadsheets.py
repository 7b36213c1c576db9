"""Cells of the CSV files that people open in a spreadsheet, which takes some texts for formulas and runs them."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # how these begin; as in review.js


def inert(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula; `live` undoes it.

    >>> inert("=cmd()"), live("'=cmd()"), live("'plain"), live(inert("'=1"))
    ("'=cmd()", '=cmd()', "'plain", "'=1")
    """
    return f"'{cell}" if cell.lstrip("'").startswith(FORMULA) else cell


def live(cell: str) -> str:
    """What `inert` was given."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell


class _Lines:
    """Takes records one a call, as a `csv.writer` writes them, and ends each with `end`."""

    def __init__(self, end: str) -> None:
        self.end = end
        self.lines: list[str] = []

    def write(self, record: str) -> None:
        self.lines.append(record.removesuffix("\r\n") + self.end)


@dataclass(frozen=True)
class Form:
    """How a file of separated cells is written: the `separator` of cells, its encoding (`utf-8-sig` and `utf-16` begin
    with a mark) and what ends a line."""

    separator: str = ","
    encoding: str = "utf-8"
    line_end: str = "\n"


def separated(rows: Iterable[Iterable[object]], form: Form = Form()) -> bytes:
    """The rows as a file. Cells with either half of a line end are quoted: left to end lines with a line feed, the
    `csv` of Python 3.11 leaves a carriage return bare, which ends the row for whoever reads it.

    >>> separated([["a\\rb", "c, d"]])
    b'"a\\rb","c, d"\\n'
    """
    out, rest = _Lines(form.line_end), iter(rows)
    writer = partial(csv.writer, out, delimiter=form.separator, lineterminator="\r\n")
    for row in rest:  # blank ones up to the header, and that
        cells = [str(cell) for cell in row]
        # A bare comma in a header would be taken for what separates.
        bare = form.separator != "," and any("," in cell for cell in cells)
        writer(quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL).writerow(cells)
        if any(cell.strip() for cell in cells):
            break
    writer().writerows(rest)
    return "".join(out.lines).encode(form.encoding)


def csv_of(header: Sequence[str], rows: Iterable[Sequence[str | int]]) -> bytes:
    """A CSV file in UTF-8, every text in it inert.

    >>> csv_of(["row", "item"], [[2, "=A1"]])
    b"row,item\\n2,'=A1\\n"
    """
    return separated([header, *([inert(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)])
