"""How the verbs read their command lines: a word that cannot be read is a UserError like any other mistake."""

import argparse
from typing import NoReturn

from facetclip.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse's, but that a mistake is one line and no list of all options."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UserError(f"{message}; {self.prog} --help lists what it takes")


def share(text: str) -> float:
    """A share of a whole, 0 to 1.

    >>> share("0.02")
    0.02
    """
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:  # nan is refused, too
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, such as 0.02 for 2 in 100, found {text!r}")
    return found
