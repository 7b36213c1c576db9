"""The verbs that need no model: render, schema, check, shard, inspect, doctor."""

import argparse
import importlib
import os
import sys
from pathlib import Path

from facetclip.addresses import Refused, allowed_hosts
from facetclip.arguments import add_dataset_split, here, share
from facetclip.catalog import read_catalog
from facetclip.checks import CheckSpec, check_catalog, write_problems
from facetclip.checks import render_text as checks_text
from facetclip.doctor import examine, healthy
from facetclip.doctor import render_text as doctor_text
from facetclip.downloads import FetchSpec
from facetclip.errors import UserError
from facetclip.files import write_whole
from facetclip.index import open_index
from facetclip.indexing import DUPLICATES, Changes
from facetclip.infer import infer_schema
from facetclip.inspection import describe, draw_sheets, verify
from facetclip.near_duplicates import MOST_BITS, MOST_JOINED
from facetclip.portions import WHOLE, launched_portion, parse_portion
from facetclip.render import ATTRIBUTES, RenderSpec, render_catalog
from facetclip.schema import read_schema
from facetclip.shards import ShardReport, ShardSpec, build_portion, build_shards
from facetclip.splits import parse_shares
from facetclip.tables import counted

CORES = os.cpu_count() or 1


def add_render(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip render`."""
    default = RenderSpec("cookware", 600)
    parser.add_argument("--kind", required=True, help=f"one of {', '.join(ATTRIBUTES)}")
    parser.add_argument("--items", type=int, required=True, help="rows of the catalog, one an image")
    parser.add_argument("--out", type=here, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=default.seed, help="another seed draws other products")
    parser.add_argument("--missing", type=share, default=default.missing, help="share of cells left empty")
    parser.add_argument("--wrong", type=share, default=default.wrong, help="share of cells that say something else")
    parser.add_argument("--evenness", type=float, default=default.evenness, help="0: values as skewed as Zipf's law")
    parser.add_argument("--size", type=int, default=default.size, help="pixels of each edge")
    parser.add_argument("--workers", type=int, default=CORES, help="processes")


def run_render(args: argparse.Namespace) -> int:
    """Draw a catalog."""
    spec = RenderSpec(args.kind, args.items, args.seed, args.missing, args.wrong, args.size, args.evenness)
    print(render_catalog(spec, args.out, workers=args.workers))
    return 0


def add_schema(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip schema`."""
    parser.add_argument("catalog", help="a file, a dataset folder or a hub id")
    parser.add_argument("--out", type=here, required=True, help="the schema file to write; none is overwritten")
    add_dataset_split(parser)


def run_schema(args: argparse.Namespace) -> int:
    """Propose a schema."""
    if args.out.exists():
        raise UserError(f"{args.out} exists already, perhaps with your changes; name another --out")
    write_whole(args.out, infer_schema(read_catalog(args.catalog, split=args.dataset_split)).encode())
    print(f"{args.out}: read it, correct it, then run facetclip check")
    return 0


def _add_catalog(parser: argparse.ArgumentParser) -> None:
    """What check and shard share."""
    parser.add_argument("catalog", help="a file, a dataset folder or a hub id")
    parser.add_argument("--schema", type=Path, required=True, help="what its columns mean")
    parser.add_argument("--images", type=Path, help="the folder that its image paths are under")
    parser.add_argument("--max-bad", type=share, default=0.01, help="largest share of images that may be unusable")
    parser.add_argument("--seed", type=int, default=0, help="of the split by product")
    parser.add_argument("--shares", default="0.7,0.1,0.2", help="of products in train, validation, test")
    add_dataset_split(parser)

    fetch = parser.add_argument_group("images by URL")
    fetch.add_argument(
        "--fetch-urls", action="store_true", help="fetch the images that the catalog names by http(s) URL"
    )
    fetch.add_argument("--downloads", type=Path, help="a folder to keep them in, for check and shard alike")
    fetch.add_argument("--contact", help="an address or page that the servers are told beside the name facetclip")
    fetch.add_argument("--per-host", type=int, help=f"requests to one host at a time; {FetchSpec.per_host}")
    fetch.add_argument("--spacing", type=float, help=f"seconds between two requests to a host; {FetchSpec.spacing:g}")
    fetch.add_argument("--most-download", type=float, help="GB to fetch at most; no limit where not given")
    fetch.add_argument(
        "--allow-host", action="append", metavar="HOST[:PORT]", help="may be private, or on another port; repeatable"
    )


def _fetch_spec(args: argparse.Namespace) -> FetchSpec | None:
    """How images are fetched; None where that was not asked for. UserError when an option makes no sense."""
    names = ("downloads", "contact", "per_host", "spacing", "most_download", "allow_host")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if not args.fetch_urls:
        if given:
            raise UserError(f"--{next(iter(given)).replace('_', '-')} needs --fetch-urls")
        return None
    contact = given.get("contact", "")
    if not contact.isprintable() or not contact.isascii() or set(contact) & set("()\\"):
        raise UserError("--contact: expected plain ASCII without brackets, such as photos@shop.example")
    for name, least in (("per_host", 1), ("spacing", 0), ("most_download", 0)):
        if not least <= given.get(name, least) < float("inf"):
            raise UserError(f"--{name.replace('_', '-')}: expected at least {least}, found {given[name]}")
    try:
        allowed = allowed_hosts(given.get("allow_host", []))
    except Refused as error:
        raise UserError(f"--allow-host: {error}") from error
    most = given.get("most_download")
    return FetchSpec(
        folder=given.get("downloads"),
        contact=contact,
        allowed=allowed,
        per_host=given.get("per_host", FetchSpec.per_host),
        spacing=given.get("spacing", FetchSpec.spacing),
        most_bytes=None if most is None else int(most * 1e9),
    )


def add_check(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip check`."""
    _add_catalog(parser)
    parser.add_argument("--decode", action="store_true", help="read every pixel, not the headers alone")
    parser.add_argument("--out", type=here, help="a CSV file for every problem")


def run_check(args: argparse.Namespace) -> int:
    """List what is wrong; 1 when the catalog must not be sharded."""
    spec = CheckSpec(
        images=args.images,
        decode=args.decode,
        max_bad=args.max_bad,
        seed=args.seed,
        shares=parse_shares(args.shares),
        fetch=_fetch_spec(args),
    )
    if spec.fetch is not None and spec.fetch.folder is None:
        raise UserError("--fetch-urls: check needs --downloads, a folder to keep the images in for shard")
    if args.out and args.out.resolve() in (Path(args.catalog).resolve(), args.schema.resolve()):
        raise UserError(f"--out {args.out}: is what is checked; name another file for the problems")
    report = check_catalog(read_catalog(args.catalog, split=args.dataset_split), read_schema(args.schema), spec)
    if args.out:
        write_problems(report, args.out)
    print(checks_text(report))
    return 0 if report.sound else 1


def add_shard(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip shard`."""
    _add_catalog(parser)
    parser.add_argument("--out", type=here, required=True, help="the shard folder; the same command goes on in it")
    parser.add_argument("--resize", type=int, help="pixels of the shorter edge; the original bytes where not given")
    parser.add_argument("--workers", type=int, help="processes; all cores, shared among a launcher's ranks")
    parser.add_argument(
        "--update",
        action="store_true",
        help="have a finished folder follow its catalog: pack new and changed photos, write a new index",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="read every byte of a finished folder, and pack again what is damaged or missing",
    )
    parser.add_argument("--max-removed", type=share, help="largest share of its items that an update may drop; 0.1")
    parser.add_argument(
        "--join-duplicates",
        metavar="BITS",
        type=int,
        nargs="?",
        const=MOST_BITS,
        help="give products with a photo in common one split. BITS of 64 in which two photos that count as one may "
        f"differ; {MOST_BITS} where none is given",
    )
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="pack every N-th shard from I = 0 to N - 1 on; the last part to end writes the index. Without it as the "
        "launcher (RANK, WORLD_SIZE) or a SLURM array says, else all",
    )


def run_shard(args: argparse.Namespace) -> int:
    """Shard a catalog."""
    if args.max_removed is not None and not args.update:
        raise UserError("--max-removed needs --update")
    spec = ShardSpec(
        out=args.out,
        images=args.images,
        resize=args.resize,
        seed=args.seed,
        shares=parse_shares(args.shares),
        workers=max(1, CORES // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if args.workers is None else args.workers,
        max_bad=args.max_bad,
        fetch=_fetch_spec(args),
        join=args.join_duplicates,
        update=args.update,
        repair=args.repair,
        max_removed=ShardSpec.max_removed if args.max_removed is None else args.max_removed,
    )
    catalog, schema = read_catalog(args.catalog, split=args.dataset_split), read_schema(args.schema)
    portion = parse_portion(args.part) if args.part else launched_portion(os.environ)
    progress = _progress if sys.stderr.isatty() else None
    if portion == WHOLE:
        report = build_shards(catalog, schema, spec, progress=progress)
    else:
        report = build_portion(catalog, schema, spec, portion, progress=progress)
    if report is None:
        print(f"{args.out}: part {portion} is packed; the part that ends last writes the index")
        return 0
    _print_shards(report)
    return 0


def _print_shards(report: ShardReport) -> None:
    splits = ", ".join(f"{name} {count}" for name, count in report.splits.items())
    print(f"{report.folder}: {counted('item', report.samples)} in {counted('shard', report.shards)} ({splits})")
    _tell(report.repaired, "damaged shard was", "damaged shards were", "packed again, byte for byte as before")
    if report.changes is not None:
        _print_changes(report.changes)
    lapsed = "no longer; when they are many, build in a new folder"
    _tell(report.superseded, "sample in the tars counts", "samples in the tars count", lapsed)
    _print_shared(report)
    for name, count in report.unknown_cells.items():
        cells = counted("cell", count)
        counts = "counts" if count == 1 else "count"
        print(f"{name}: {cells} that the schema does not explain {counts} as unlabelled; facetclip check lists them")
    for code, count in report.bad.items():
        print(f"{counted('row', count)} left out: {code}; see {report.folder / 'quarantine.csv'}")


def _print_changes(done: Changes) -> None:
    print(
        f"updated: {counted('item', done.added)} added, {done.changed} with another photo, {done.removed} removed; "
        f"{done.bytes / 1e6:,.1f} MB of new shards"
    )
    where = "photo, which is no longer where the catalog says"
    _tell(done.gone, "item keeps its", "items keep their", where)
    moved = "in another split than before, as the catalog's split column says"
    _tell(done.moved, "product is", "products are", moved)


def _tell(count: int, one: str, several: str, rest: str) -> None:
    """A line about so many of what `one` and `several` name, if there are any."""
    if count:
        print(f"{counted(one, count, several)} {rest}")


def _print_shared(report: ShardReport) -> None:
    shared = report.duplicates
    if shared.pairs:
        hint = "" if shared.joined else "; --join-duplicates gives such products one split"
        alike = counted("pair of photos looks", shared.pairs, "pairs of photos look")
        print(
            f"{alike} the same under two products, {shared.apart} of them in two splits"
            f"{hint if shared.apart else ''}; see {report.folder / DUPLICATES}"
        )
    common = "split with others that have a photo in common"
    _tell(shared.joined, "product shares its", "products share their", common)
    apart = f"not joined for a photo that more than {MOST_JOINED} have in common"
    _tell(shared.left_out, "product was", "products were", apart)
    torn = f"put in two splits by an earlier build and {'stays' if shared.torn == 1 else 'stay'} there"
    _tell(shared.torn, "group of such products was", "groups of such products were", torn)
    crowded = "like so many others that not every pair of theirs was compared"
    _tell(shared.crowded, "photo looks", "photos look", crowded)


def _progress(done: int, whole: int) -> None:
    print(f"\r{done}/{counted('shard', whole)}", end="\n" if done == whole else "", file=sys.stderr, flush=True)


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip inspect`."""
    parser.add_argument("shards", help="the shards, a folder or URL")
    parser.add_argument("--verify", action="store_true", help="read every byte and say what is not as it was written")
    parser.add_argument(
        "--sheets", type=here, help="a folder for contact sheets: for each attribute one or more, a row a value"
    )


def run_inspect(args: argparse.Namespace) -> int:
    """Say what shards hold; 1 where they are damaged."""
    index = open_index(args.shards, lengths=not args.verify)  # --verify lists what is wrong, all of it
    print(describe(index))
    damaged = list(verify(index)) if args.verify else []
    for damage in damaged:
        print(damage)
    if args.verify:
        print(
            f"{len(damaged)} of {len(index.shards) + 1} files damaged" if damaged else "every byte is as it was written"
        )
    for path in draw_sheets(index, args.sheets) if args.sheets else ():  # last: a damaged photo ends it
        print(f"{path}: photos by value")
    return 1 if damaged else 0


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip doctor`."""
    parser.add_argument(
        "--dist", action="store_true", help="under a launcher: compare its processes, time an all-reduce"
    )


def run_doctor(args: argparse.Namespace) -> int:
    """Examine the machine, or all processes of a launch; 1 when something is wrong."""
    if args.dist:
        dist = importlib.import_module("facetclip.dist_doctor")  # needs torch, which may be what is wrong
        everyone, findings = dist.examine_launch()
        if os.environ.get("RANK", "0") == "0":
            print(f"{dist.launch_text(everyone)}\n\n{doctor_text(findings)}")
        return 0 if healthy(findings) else 1
    findings = examine()
    print(doctor_text(findings))
    return 0 if healthy(findings) else 1


COMMANDS = {
    "render": (add_render, run_render),
    "schema": (add_schema, run_schema),
    "check": (add_check, run_check),
    "shard": (add_shard, run_shard),
    "inspect": (add_inspect, run_inspect),
    "doctor": (add_doctor, run_doctor),
}
