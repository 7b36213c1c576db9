"""What a served model calls the columns of its answers."""

from collections.abc import Sequence

from facetclip.errors import UserError

PROBABILITY = "_probability"
ERROR = "error"


def answer_columns(attributes: Sequence[str]) -> list[str]:
    """Of each attribute its value and how probable that is, last why a photo could not be read. UserError where an
    attribute has the name of another column.

    >>> answer_columns(["lid"])
    ['lid', 'lid_probability', 'error']
    """
    columns = [*(column for name in attributes for column in (name, name + PROBABILITY)), ERROR]
    if twice := next((name for name in attributes if columns.count(name) > 1), None):
        raise UserError(
            f"an attribute called {twice!r} cannot be served: the answers have a column {twice!r} of another meaning; "
            "rename it in the schema"
        )
    return columns
