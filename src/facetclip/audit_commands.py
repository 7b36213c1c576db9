"""The verbs that look for what a person should judge: audit, next."""

import argparse
from collections import Counter
from pathlib import Path

from facetclip.arguments import at_least, here
from facetclip.audit import FLAGS, FOLDS, MOST, AuditSpec, audit
from facetclip.config import read_run
from facetclip.errors import UserError
from facetclip.label_next import label_next
from facetclip.registry import resolve_model
from facetclip.tables import text_table


def add_audit(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip audit`."""
    parser.add_argument("shards", help="the shards of the catalog, a folder or URL")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that replace those of the run file"
    )
    parser.add_argument("--out", type=here, required=True, help="the folder for the queue")
    parser.add_argument(
        "--model",
        default="starter",
        help="whose features are judged by: a model not tuned on these; with --run its model.start",
    )
    parser.add_argument("--run", type=Path, help="a run file: fine-tune a model for each fold, too")
    parser.add_argument("--folds", type=int, default=FOLDS, help="into which the products are dealt")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the folds")
    parser.add_argument("--most", type=at_least(1), default=MOST, help="suspects in the queue")


def run_audit(args: argparse.Namespace) -> int:
    """Write the queue of suspect cells."""
    if args.overrides and not args.run:
        raise UserError(f"{args.overrides[0]!r} replaces a setting of a run file; name that with --run")
    run = read_run(args.run, args.overrides) if args.run else None
    found = audit(args.shards, args.out, AuditSpec(args.model, run, args.folds, args.seed, args.most))
    if found is None:
        return 0
    rows = [
        [name, f"{found.cells[name]:,}", f"{100 * share:.1f}%", f"{share * found.cells[name]:.0f}"]
        for name, share in found.wrong.items()
    ]
    print(text_table(["attribute", "cells", "wrong by estimate", "cells wrong"], rows))
    for flag, count in sorted(Counter(flag.flag for flag in found.flags).items()):
        print(f"{count} photos {flag.replace('_', ' ')}; see {found.folder / FLAGS}")
    print(f"{found.folder}: {found.suspects} suspect cells; facetclip review {found.folder} --out review.html")
    return 0


def add_next(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip next`."""
    parser.add_argument("shards", help="the shards of the catalog, a folder or URL")
    parser.add_argument("--model", required=True, help="a model folder, a hub id or models:/NAME@ALIAS")
    parser.add_argument("--n", type=int, default=100, help="photos to label")
    parser.add_argument("--out", type=here, required=True, help="the folder for the queue")


def run_next(args: argparse.Namespace) -> int:
    """Write the queue of photos to label."""
    count = label_next(args.shards, resolve_model(args.model), args.out, count=args.n)
    if count is not None:
        print(f"{args.out}: {count} photos to label; facetclip review {args.out} --out label.html")
    return 0


COMMANDS = {"audit": (add_audit, run_audit), "next": (add_next, run_next)}
