"""The verbs of whoever judges suggestions: review, apply."""

import argparse
from pathlib import Path

from facetclip.arguments import at_least, here
from facetclip.corrections import apply_corrections
from facetclip.review import write_review
from facetclip.schema import read_schema


def add_review(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip review`."""
    parser.add_argument("folder", type=Path, help="what facetclip audit or facetclip next wrote")
    parser.add_argument("--out", type=here, required=True, help="the HTML page to write")
    parser.add_argument("--shards", help="the shards, a folder or URL, where they are elsewhere by now")
    parser.add_argument("--most", type=at_least(1), help="only the first so many suggestions")


def run_review(args: argparse.Namespace) -> int:
    """Write the review page."""
    count = write_review(args.folder, args.out, shards=args.shards, most=args.most)
    print(f"{args.out}: {count} suggestions; open it in a browser, export corrections.csv, then run facetclip apply")
    return 0


def add_apply(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip apply`."""
    parser.add_argument("corrections", type=Path, help="the corrections.csv that the review page exported")
    parser.add_argument("catalog", type=Path, help="the catalog file that was judged; it is not changed")
    parser.add_argument("--schema", type=Path, required=True, help="what its columns mean")
    parser.add_argument("--out", type=here, required=True, help="the corrected catalog to write")
    parser.add_argument(
        "--log", type=here, help="a CSV file of every change; where not given OUT with .changes.csv for its ending"
    )


def run_apply(args: argparse.Namespace) -> int:
    """Write the corrected catalog."""
    log = args.log or args.out.with_suffix(".changes.csv")
    done = apply_corrections(args.corrections, args.catalog, read_schema(args.schema), args.out, log)
    stale = f", {done.stale} left alone: the log says why" if done.stale else ""
    print(f"{args.out}: {done.changed} cells changed, {done.confirmed} confirmed as they are{stale}; see {log}")
    return 0


COMMANDS = {"review": (add_review, run_review), "apply": (add_apply, run_apply)}
