"""How the verbs read their command lines: a word that cannot be read is a UserError like any other mistake."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from facetclip.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse's, but that a mistake is one line and no list of all options."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UserError(f"{message}; {self.prog} --help lists what it takes")


def add_train(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip train`, which the scripts of `launch/` read, too."""
    parser.add_argument("run", type=Path, help="the run file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's")
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="start over, deleting the checkpoints, models and records of the run before",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="FIELD",
        help="go on although this setting has changed; crashes: although the run died three times at one step",
    )


def add_dataset_split(parser: argparse.ArgumentParser) -> None:
    """What every verb takes that reads a catalog."""
    parser.add_argument("--dataset-split", help="which split of the catalog, where that is a dataset of several")


def here(text: str) -> Path:
    """The type of an argument that is a path of this machine.

    >>> here("runs/shop").name
    'shop'
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(f"expected a path of this machine, found {text!r}")
    return Path(text)


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from `least` on.

    >>> at_least(1)("5")
    5
    """

    def whole(text: str) -> int:
        found = int(text) if text.strip().lstrip("+-").isdecimal() else least - 1
        if found < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, found {text!r}")
        return found

    return whole


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
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, such as 0.9 for 9 in 10, found {text!r}")
    return found
