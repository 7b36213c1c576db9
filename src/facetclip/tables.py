"""Tables for the terminal."""

import unicodedata
from collections.abc import Sequence


def text_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal: the first column to the left, the others to the right.

    >>> print(text_table(["attribute", "F1"], [["lid", ".97"], ["handle", ".9"]]))
    attribute   F1
    ---------  ---
    lid        .97
    handle      .9
    """
    lines = [list(map(str, line)) for line in (headers, *rows)]
    widths = [max(_width(line[place]) for line in lines) for place in range(len(headers))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(map(_padded, line, widths, range(len(line)))) for line in lines)


def counted(one: str, count: int, several: str | None = None) -> str:
    """A count of what `one` names; `several` where another `s` does not make the plural.

    >>> counted("shard", 1), counted("shard", 1200), counted("item keeps its photo", 2, "items keep their photo")
    ('1 shard', '1,200 shards', '2 items keep their photo')
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def _width(text: str) -> int:
    """Columns of a terminal: wide East Asian letters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _padded(text: str, width: int, place: int) -> str:
    gap = " " * (width - _width(text))
    return text + gap if place == 0 else gap + text
