"""The verbs that study: curve, captions."""

import argparse
from pathlib import Path
from typing import get_args

from facetclip.arguments import here
from facetclip.config import Form, Tuning, read_run
from facetclip.errors import UserError
from facetclip.studies import run_captions, run_curve

FORMS = get_args(Form)
MODES = get_args(Tuning.model_fields["mode"].annotation)


def _add_run(parser: argparse.ArgumentParser, seeds: int) -> None:
    parser.add_argument("run", type=Path, help="the run file that all trainings start from")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's")
    parser.add_argument("--out", type=here, required=True, help="the folder of the study; to go on, the same")
    parser.add_argument(
        "--seeds", type=int, default=seeds, help="trainings of each kind; three or more for an interval"
    )


def add_curve(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip curve`."""
    _add_run(parser, seeds=5)
    parser.add_argument("--sizes", help="numbers of labelled images, as 10,20,40; by default 10 to all")
    parser.add_argument("--targets", default="0.9", help="macro-F1 to tell the needed labels for, as 0.85,0.95")


def curve(args: argparse.Namespace) -> int:
    """Measure and draw the learning curve."""
    sizes = sorted({int(each) for each in _numbers("--sizes", args.sizes, whole=True)})
    targets = _numbers("--targets", args.targets)
    if not all(0 < target < 1 for target in targets):
        raise UserError(f"--targets {args.targets}: expected scores between 0 and 1")
    run_curve(read_run(args.run, args.overrides), args.out, sizes=sizes, seeds=_seeds(args), targets=targets)
    return 0


def add_captions(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip captions`."""
    _add_run(parser, seeds=3)
    parser.add_argument("--forms", default="value,schema,sentence,several", help=f"some of {', '.join(FORMS)}")
    parser.add_argument("--modes", default="zero_shot,probe,full", help=f"some of {', '.join(MODES)}")


def captions(args: argparse.Namespace) -> int:
    """Measure and draw caption forms by tuning modes."""
    forms, modes = _words("--forms", args.forms, FORMS), _words("--modes", args.modes, MODES)
    run_captions(read_run(args.run, args.overrides), args.out, forms=forms, modes=modes, seeds=_seeds(args))
    return 0


def _seeds(args: argparse.Namespace) -> int:
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds}: expected at least 1")
    return args.seeds


def _numbers(option: str, text: str | None, *, whole: bool = False) -> list[float]:
    try:
        return [int(part) if whole else float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise UserError(f"{option} {text!r}: expected numbers with commas between") from None


def _words(option: str, text: str, known: tuple[str, ...]) -> list:
    words = [part.strip() for part in text.split(",")]
    if strange := [word for word in words if word not in known]:
        raise UserError(f"{option}: no {strange[0]!r}; expected some of {', '.join(known)}")
    return words


COMMANDS = {"curve": (add_curve, curve), "captions": (add_captions, captions)}
