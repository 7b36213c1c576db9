"""The verbs that look for what a person should judge: audit."""

import argparse
from collections import Counter
from pathlib import Path

from facetclip.audit import FLAGS, FOLDS, MOST, audit
from facetclip.report import text_table


def add_audit(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip audit`."""
    parser.add_argument("shards", type=Path, help="the shard folder of the catalog")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the queue")
    parser.add_argument("--model", default="starter", help="whose features are judged by: a model not tuned on these")
    parser.add_argument("--folds", type=int, default=FOLDS, help="into which the products are dealt")
    parser.add_argument("--seed", type=int, default=0, help="of the folds")
    parser.add_argument("--most", type=int, default=MOST, help="suspects in the queue")


def run_audit(args: argparse.Namespace) -> int:
    """Write the queue of suspect cells."""
    found = audit(args.shards, args.out, model=args.model, folds=args.folds, seed=args.seed, most=args.most)
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


COMMANDS = {"audit": (add_audit, run_audit)}
