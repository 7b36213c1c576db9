"""The verbs that train, read and judge: train, evaluate, extract, fill, export, promote, rollback, sync."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from facetclip.arguments import add_dataset_split, add_train, here, share
from facetclip.config import read_run
from facetclip.errors import UserError, redacted
from facetclip.evaluate import Beside, Cut, evaluate, examiner
from facetclip.extract import PART_SIZE, QUARANTINE, extract
from facetclip.filling import FillSpec, fill
from facetclip.model import load_model
from facetclip.onnx_export import INPUT, NAME, export_onnx
from facetclip.policy import Policy
from facetclip.promotion import promote, rollback
from facetclip.registry import file_evaluation, resolve_model
from facetclip.report import comparison_tables, difference_table, summary_table
from facetclip.runs import run_training
from facetclip.schema import read_schema
from facetclip.scores import BATCH, reader_digest
from facetclip.sources import FromCatalog, FromShards
from facetclip.tables import counted
from facetclip.tracking import sync

MODEL = "a model folder, a hub id, starter, or models:/NAME@ALIAS"
TELL_EVERY = 10.0  # seconds, of what takes hours


def run_train(args: argparse.Namespace) -> int:
    """Train; the same command goes on where it was stopped."""
    run_training(read_run(args.run, args.overrides), fresh=args.fresh, allow=args.allow)
    return 0


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip evaluate`."""
    parser.add_argument("model", help=MODEL)
    parser.add_argument("--shards", required=True, help="the shards, a folder or URL")
    parser.add_argument("--split", default="test", help="train, validation or test")
    parser.add_argument("--out", type=here, required=True, help="the folder of the report")
    parser.add_argument("--against", help="the zero-shot model beside it, or none; its own start by default")
    parser.add_argument("--rival", help=f"another model of the same attributes to compare it with: {MODEL}")
    parser.add_argument(
        "--slice", action="append", default=[], metavar="COLUMN", help="of the catalog or index; repeat"
    )
    parser.add_argument("--catalog", help="the catalog that holds the columns to slice by")
    add_dataset_split(parser)


def run_evaluate(args: argparse.Namespace) -> int:
    """Measure a model and print the tables."""
    beside, cut = Beside(args.against, args.rival), Cut(args.slice, args.catalog, args.dataset_split)
    report = evaluate(args.model, args.shards, args.split, args.out, beside=beside, cut=cut)
    print("\n\n".join(filter(None, [summary_table(report), comparison_tables(report)])))
    print(f"report: {args.out / 'index.html'}")
    run_id = file_evaluation(report.model.source, args.split, report.numbers(), args.out)
    if run_id is not None:
        print(f"MLflow: run {run_id}, evaluation/{args.split}")
    return 0


def add_extract(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip extract`."""
    parser.add_argument("model", help=MODEL)
    parser.add_argument("--shards", help="shards to read, a folder or URL")
    parser.add_argument("--split", default="all", help="of the shards: all, train, validation or test")
    parser.add_argument("--catalog", help="a catalog to read with its own images")
    parser.add_argument("--schema", type=Path, help="of the catalog")
    add_dataset_split(parser)
    parser.add_argument("--images", type=Path, help="the folder that the catalog's image paths are under")
    parser.add_argument("--max-bad", type=share, default=0.01, help="largest share of images that may be unusable")
    parser.add_argument("--out", required=True, help="the folder of the scores, also a URL; to go on, the same")
    parser.add_argument("--batch", type=int, default=BATCH, help="images at a time")
    parser.add_argument("--part-size", type=int, default=PART_SIZE, help="items in a Parquet part")


def run_extract(args: argparse.Namespace) -> int:
    """Read every attribute of every item."""
    sizes = {"batch_size": args.batch, "part_size": args.part_size}
    done = extract(resolve_model(args.model), _source(args), args.out, **sizes, progress=_teller())
    if done:
        bad = f"; {done.bad} unreadable, see {done.out.spot(QUARANTINE)}" if done.bad else ""
        print(f"{done.out}: {counted('item', done.items)} in {counted('part', done.parts)}{bad}")
    return 0


def _teller() -> Callable[[int, int], None] | None:
    """Says how many of its parts are done, every TELL_EVERY seconds; of several processes the first one alone."""
    if os.environ.get("RANK", "0") != "0":
        return None
    told = time.monotonic()

    def tell(done: int, parts: int) -> None:
        nonlocal told
        if time.monotonic() - told >= TELL_EVERY:
            told = time.monotonic()
            print(f"facetclip: {done} of {counted('part', parts)}", file=sys.stderr, flush=True)

    return tell


def _source(args: argparse.Namespace) -> FromShards | FromCatalog:
    if (args.shards is None) == (args.catalog is None):
        raise UserError("give either --shards DIR or --catalog FILE with --schema and --images")
    if args.shards is not None:
        return FromShards(args.shards, args.split)
    if args.schema is None:
        raise UserError("--catalog needs --schema, which says what its columns mean")
    return FromCatalog(args.catalog, args.schema, args.images, args.max_bad, args.dataset_split)


def add_fill(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip fill`."""
    parser.add_argument("scores", help="a finished extraction of the catalog, a folder or URL")
    parser.add_argument("catalog", help="the catalog that was read; it is not changed")
    add_dataset_split(parser)
    parser.add_argument("--schema", type=Path, required=True, help="what its columns mean")
    parser.add_argument("--out", required=True, help="the filled catalog to write, .csv or .parquet; also a URL")
    parser.add_argument("--precision", type=share, default=0.95, help="the share of filled cells that shall be right")
    parser.add_argument("--overwrite", action="store_true", help="replace what the table says, too, where it disagrees")


def run_fill(args: argparse.Namespace) -> int:
    """Write the filled catalog."""
    spec = FillSpec(args.precision, args.overwrite)
    told = fill(args.scores, args.catalog, args.schema, args.out, spec, split=args.dataset_split)
    for name, done in told.items():
        cut = "never sure enough" if done.threshold is None else f"where at least {done.threshold:.3f} sure"
        replaced = f", {done.replaced} replaced" if args.overwrite else ""
        replaced += f"; {done.told} of them as other rows of the product say" if done.told else ""
        print(f"{name}: {done.filled} of {counted('gap', done.gaps)} filled, {cut}{replaced}")
    print(f"{redacted(args.out)}: each filled cell says so in COLUMN_source and COLUMN_confidence")
    return 0


def add_export(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip export`."""
    parser.add_argument("model", help=MODEL)
    parser.add_argument("--out", type=here, help=f"the file to write; {NAME} in the model's own folder if not given")
    parser.add_argument("--schema", type=Path, help="to be read, by a model that was never fine-tuned")


def run_export(args: argparse.Namespace) -> int:
    """Write a model as ONNX."""
    folder = resolve_model(args.model)
    if args.out is None and folder != args.model:
        raise UserError(f"{args.model}: give --out, since this is no folder of yours")
    if args.out is None and not Path(folder).is_dir():
        raise UserError(f"{args.model}: is no folder; give --out")
    reader = load_model(folder, read_schema(args.schema) if args.schema else None)
    out = export_onnx(reader, Path(folder) / NAME if args.out is None else args.out)
    size = reader.preprocessing.size
    print(f"{out}: {INPUT} uint8 [n, 3, {size}, {size}] -> probabilities of {', '.join(reader.schema.names)}")
    return 0


def add_promote(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip promote`."""
    parser.add_argument("name", help="of the registered model")
    parser.add_argument("--shards", required=True, help="the shards, a folder or URL, whose test split decides")
    parser.add_argument("--version", help="to be promoted; by default the one with the alias challenger")
    default = Policy()
    parser.add_argument("--margin", type=share, default=default.margin, help="macro-F1 that no attribute may lose")
    parser.add_argument("--gain", type=float, default=default.gain, help="what the mean macro-F1 must gain more than")
    parser.add_argument("--least", type=int, default=default.least, help="labelled products that each attribute needs")
    parser.add_argument("--retain", metavar="SHARDS", help="other shards, which it must still read zero-shot")
    parser.add_argument("--most-lost", type=share, default=default.most_lost, help="accuracy that it may lose on those")


def run_promote(args: argparse.Namespace) -> int:
    """Promote the challenger if it is better; 1 when it is not."""
    policy = Policy(args.margin, args.gain, args.least, args.most_lost)
    decision = promote(args.name, examiner(args.shards, "test", args.retain), policy, version=args.version)
    verdict = "promoted" if decision.promote else "not promoted"
    print(f"{args.name} version {decision.challenger}: {verdict}: {decision.reason}")
    if decision.differences:
        print(difference_table(decision.differences, decision.mean))
    return 0 if decision.promote else 1


def add_rollback(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip rollback`."""
    parser.add_argument("name", help="of the registered model")


def run_rollback(args: argparse.Namespace) -> int:
    """Go back to the champion before; 1 when there was none."""
    version, champion = rollback(args.name, lambda folder: reader_digest(load_model(folder)))
    if version is None:
        stays = f"version {champion} stays champion" if champion else "there is no champion"
        print(f"{args.name}: the log knows no champion before; {stays}")
        return 1
    print(f"{args.name}: version {version} is champion again; version {champion} will not be promoted anew")
    return 0


def add_sync(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip sync`."""
    parser.add_argument("folder", type=Path, help="a run folder")


def run_sync(args: argparse.Namespace) -> int:
    """Send to MLflow what it missed."""
    sent = sync(args.folder)
    print(f"{args.folder}: {counted('point', sent.points)} and {counted('file', sent.artifacts)} sent")
    return 0


COMMANDS = {
    "train": (add_train, run_train),
    "evaluate": (add_evaluate, run_evaluate),
    "extract": (add_extract, run_extract),
    "fill": (add_fill, run_fill),
    "export": (add_export, run_export),
    "promote": (add_promote, run_promote),
    "rollback": (add_rollback, run_rollback),
    "sync": (add_sync, run_sync),
}
