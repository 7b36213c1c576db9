"""Cells of the CSV files that people open in a spreadsheet, which takes some texts for formulas and runs them."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how these begin


def inert(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula; `live` undoes it.

    >>> inert("=cmd()"), live("'=cmd()"), live("'plain")
    ("'=cmd()", '=cmd()', "'plain")
    """
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def live(cell: str) -> str:
    """What `inert` was given."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell
