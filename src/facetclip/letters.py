"""Words in any script, in pictures."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def any_letters() -> Iterator[None]:
    """Within it matplotlib draws letters that its font has not as boxes, without a warning for each; whoever looks has
    the same words as text beside the picture."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
