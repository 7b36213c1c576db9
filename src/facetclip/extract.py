"""`facetclip extract`: every attribute of every item, as Parquet parts and, last, a manifest.

Part i holds items i*size .. (i+1)*size of what is asked for, so any number of processes share the parts without a word,
and a run that was interrupted continues with the parts that are missing. A part names the request that it answers; a
part of another request is never mixed in, and one of photos that were replaced since is read again. The folder of the
parts may be at any URL that fsspec writes to.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from facetclip import faults
from facetclip.catalog import Catalog
from facetclip.collectives import close_at_exit
from facetclip.errors import UserError
from facetclip.images import BadImage, reasons, verdict
from facetclip.index import INDEX_NAME
from facetclip.labels import listed_text
from facetclip.model import ModelCard
from facetclip.outputs import Output, clear, open_output
from facetclip.remote import Absent
from facetclip.schema import Attribute
from facetclip.scores import BATCH, Scores, not_applicable, reader_digest, reader_for, score_rows
from facetclip.sources import FromCatalog, FromShards, Items, open_items
from facetclip.spreadsheets import csv_of

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.csv"
FORMAT = "facetclip-scores-1"
PART_SIZE = 4096
READERS = 8  # files of the output read at a time
FOOT = 64 << 10  # bytes at a part's end in which, nearly always, it says what it answers
PART = re.compile(r"part-\d{6,}\.parquet")
LONGEST_WAIT = timedelta(days=1)  # of one process for the others' parts; a launcher ends all when one dies
COLUMNS = pa.schema(
    [
        ("item_id", pa.string()),
        ("product_id", pa.string()),
        ("attribute", pa.string()),
        ("listed", pa.string()),  # what the catalog says; several values joined by the schema's separator
        ("value", pa.string()),  # the most probable value; null where the attribute does not apply
        ("probability", pa.float32()),  # of `value`
        ("not_applicable", pa.bool_()),
        ("probabilities", pa.list_(pa.float32())),  # in the order of the schema's values
    ]
)


@dataclass(frozen=True)
class Extraction:
    """What an extraction left in `out`. `reused`: parts of this process that an earlier run had finished."""

    out: Output
    items: int
    parts: int
    reused: int
    bad: int


@dataclass(frozen=True)
class _Request:
    """All that the answer depends on; batch size and processes only change how it is computed."""

    format: str
    model: str
    data: str
    split: str
    items: int
    part_size: int


@dataclass(frozen=True)
class _Part:
    """One finished part: `bad` are (row, reason code, message) of the items that it leaves out; `photos`: the files
    that it was read from (`Items.photographs`)."""

    name: str
    items: int
    rows: int
    sha256: str
    bad: list[tuple[int, str, str]]
    photos: str | None


@dataclass(frozen=True)
class _Job:
    """One extraction: pure facts, from which every part follows."""

    items: Items
    request: _Request
    out: Output

    @property
    def count(self) -> int:
        """How many parts there are."""
        return -(-self.request.items // self.request.part_size)

    def name(self, number: int) -> str:
        """The file of a part."""
        return f"part-{number:06d}.parquet"

    def rows(self, number: int) -> np.ndarray:
        """The rows of the source that a part answers."""
        size = self.request.part_size
        return self.items.rows[number * size : (number + 1) * size]


def extract(
    model: str,
    source: FromShards | FromCatalog,
    out: Path | str,
    *,
    batch_size: int = BATCH,
    part_size: int = PART_SIZE,
    progress: Callable[[int, int], None] | None = None,
) -> Extraction | None:
    """Read `source` with `model` (a folder, a hub id, `starter`) into `out`, a folder or URL; all call it.

    The same command continues an interrupted run, reads again where photos were replaced, and ends with the same bytes.
    `progress` is told (parts, parts in all) of this process. None on every process but the first. UserError when `out`
    answers another request.
    """
    if min(batch_size, part_size) < 1:
        raise UserError(f"batch and part size: expected at least 1, found {batch_size} and {part_size}")
    output, items = open_output(out), open_items(source)
    state = _processes()
    reader = reader_for(model, items.schema).to(state.device)
    request = _Request(FORMAT, reader_digest(reader), items.digest, items.split, len(items.rows), part_size)
    job = _Job(items, request, output)
    _refuse_others(job)
    first, after = (rank * job.count // state.num_processes for rank in (state.process_index, state.process_index + 1))
    mine = range(first, after)  # neighbours, whose shards are too
    reused = 0
    for done, number in enumerate(mine, 1):
        rows = job.rows(number)
        photos = items.photographs(rows)  # before they are read: a later touch will show
        if _reusable(job, number, photos):
            reused += 1
        else:
            skip_bad = items.catalog is not None
            scores = score_rows(reader, items.photos, rows, batch_size=batch_size, skip_bad=skip_bad)
            job.out.write(job.name(number), _encoded(job, scores, photos))
            faults.reach("extract.after_part")
        if progress is not None:
            progress(done, len(mine))
    state.wait_for_everyone()
    state.destroy_process_group()
    return _complete(job, model, reader.card, reused) if state.is_main_process else None


def _processes() -> Any:
    """This process among those of the launch, and its device."""
    from accelerate import PartialState
    from accelerate.utils import get_int_from_env, parse_flag_from_env

    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    try:
        state = PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)
    except ValueError as error:
        raise UserError(f"the launcher's settings cannot be used on this machine: {error}") from error
    close_at_exit()
    launched = get_int_from_env(["WORLD_SIZE"], 1)
    if state.num_processes != launched:
        raise UserError(f"{launched} processes were launched, but each believes to be one of {state.num_processes}")
    return state


def _encoded(job: _Job, scores: Scores, photos: str | None) -> bytes:
    """The bytes of a part: one line per item and attribute, items in the order of the request."""
    facts = {
        "format": FORMAT,
        "request": json.dumps(asdict(job.request)),
        "schema": job.items.schema.to_json(),
        "bad": json.dumps([[row, bad.code, bad.message] for row, bad in sorted(scores.bad.items())]),
        **({} if photos is None else {"photos": photos}),
    }
    table = _table(job.items, scores).replace_schema_metadata(facts)
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", write_page_checksum=True)
    return out.getvalue()


def _table(items: Items, scores: Scores) -> pa.Table:
    labels = {name: items.labels[name][scores.rows] for name in items.schema.names}
    excluded = not_applicable(items.schema, labels, scores.predicted())
    products = items.products.take(pa.array(scores.rows)).to_pylist()
    tables = [
        pa.table(
            [
                scores.item_ids,
                products,
                [name] * len(scores.rows),
                listed_text(attribute, labels[name]),
                *_answers(attribute, scores.probabilities[name], excluded[name]),
            ],
            schema=COLUMNS,
        )
        for name, attribute in items.schema.attributes.items()
    ]
    by_item = np.arange(len(tables) * len(scores.rows)).reshape(len(tables), -1).T.ravel()
    return pa.concat_tables(tables).take(pa.array(by_item)).combine_chunks()


def _answers(attribute: Attribute, probabilities: np.ndarray, excluded: np.ndarray) -> list[pa.Array]:
    """The columns value, probability, not_applicable, probabilities."""
    items, values = probabilities.shape
    best = pa.array(probabilities.argmax(axis=1), mask=excluded)
    highest = pa.array(probabilities.max(axis=1, initial=0), mask=excluded)
    ends = pa.array(np.arange(items + 1, dtype=np.int32) * values)
    every = pa.ListArray.from_arrays(ends, pa.array(probabilities.ravel()))
    return [pa.array(attribute.values).take(best), highest, pa.array(excluded), every]


def _refuse_others(job: _Job) -> None:
    """UserError when the folder holds a manifest or part of another request, shards, or files of these names alone that
    no extraction wrote."""
    there, asked = job.out.names(), asdict(job.request)
    names = [name for name in there if name == MANIFEST or PART.fullmatch(name)]
    if INDEX_NAME in there:
        raise UserError(f"{job.out}: holds shards; use another --out")
    with ThreadPoolExecutor(READERS, thread_name_prefix="look") as pool:
        requests = list(pool.map(partial(_request_of, job.out), names))
    for name, answered in zip(names, requests, strict=True):
        if answered and answered != asked:
            differs = ", ".join(fact for fact in asked if answered.get(fact) != asked[fact])
            raise UserError(
                f"{job.out.spot(name)}: answers another request (other {differs}); use another --out, or delete "
                "this one"
            )
    if None in requests and asked not in requests:
        strange = job.out.spot(names[requests.index(None)])
        raise UserError(
            f"{strange}: is nothing that facetclip extract wrote, or is damaged; use another --out, or delete it"
        )


def _request_of(out: Output, name: str) -> dict[str, Any] | None:
    """The request that a part or manifest answers, {} where the file is gone meanwhile; None when it is damaged, or is
    somebody else's."""
    try:
        if name == MANIFEST:
            found = json.loads(out.read(name))["request"]
            return found if isinstance(found, dict) else None
        try:
            facts = pq.read_schema(pa.BufferReader(out.read(name, FOOT))).metadata
        except pa.ArrowException:  # perhaps it says so much
            facts = pq.read_schema(pa.BufferReader(out.read(name))).metadata
        return json.loads((facts or {})[b"request"])
    except Absent:
        return {}
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None


def _finished(job: _Job, number: int) -> _Part | None:
    """A part that is there, whole, of this request, with exactly its items in order; else None."""
    name, rows = job.name(number), job.rows(number)
    try:
        content = job.out.read(name)
        table = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True).read()
        if json.loads(table.schema.metadata[b"request"]) != asdict(job.request):
            return None
    except (Absent, pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None
    bad = [tuple(entry) for entry in json.loads(table.schema.metadata[b"bad"])]
    good = rows[~np.isin(rows, [row for row, *_ in bad])].tolist()
    ids = table.column("item_id").to_pylist()[:: len(job.items.schema.names)]
    if table.num_rows != len(good) * len(job.items.schema.names) or ids != [
        job.items.photos.item_id(row) for row in good
    ]:
        return None
    photos = table.schema.metadata.get(b"photos")
    return _Part(name, len(good), table.num_rows, hashlib.sha256(content).hexdigest(), bad, photos and photos.decode())


def _reusable(job: _Job, number: int, photos: str | None) -> bool:
    """Whether a part is finished, of the `photos` that are there now, and none that it leaves out can be read."""
    part = _finished(job, number)
    return part is not None and part.photos == photos and all(_still_bad(job, row) for row, *_ in part.bad)


def _still_bad(job: _Job, row: int) -> bool:
    try:
        return verdict(job.items.photos.read(row), decode=True) is not None
    except BadImage:
        return True


def _complete(job: _Job, model: str, card: ModelCard, reused: int) -> Extraction:
    """Check that every item is there once, then write quarantine.csv and, last, the manifest."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="look") as pool:
        parts = list(pool.map(partial(_present, job), range(job.count)))
    clear(job.out, "|".join((PART.pattern, re.escape(MANIFEST), re.escape(QUARANTINE))))
    bad = [entry for part in parts for entry in part.bad]
    if job.items.catalog is not None:
        _quarantine(job, job.items.catalog, bad)
    faults.reach("extract.before_manifest")
    job.out.write(MANIFEST, _manifest(job, model, card, parts))
    return Extraction(job.out, sum(part.items for part in parts), len(parts), reused, len(bad))


def _present(job: _Job, number: int) -> _Part:
    part = _finished(job, number)
    if part is None:
        raise UserError(f"{job.out.spot(job.name(number))}: is missing or damaged; run the same command again")
    return part


def _quarantine(job: _Job, catalog: Catalog, bad: list[tuple[int, str, str]]) -> None:
    """Write quarantine.csv; UserError with the top reasons when more than `max_bad` of the images are in it."""
    rows = ((catalog.row_number(row), job.items.photos.item_id(row), code, message) for row, code, message in bad)
    job.out.write(QUARANTINE, csv_of(["row", "item", "code", "message"], rows))
    if len(bad) > job.items.max_bad * job.request.items:
        why = reasons(code for _, code, _ in bad)
        raise UserError(
            f"{catalog.name}: {len(bad)} of {job.request.items} images cannot be read ({why}); --max-bad allows a "
            f"share of {job.items.max_bad:g}; the first is {catalog.where(bad[0][0])}: {bad[0][2]}; all are in "
            f"{job.out.spot(QUARANTINE)}"
        )


def _manifest(job: _Job, model: str, card: ModelCard, parts: list[_Part]) -> bytes:
    listed = [{"name": p.name, "items": p.items, "rows": p.rows, "sha256": p.sha256} for p in parts]
    manifest = {
        "request": asdict(job.request),
        "model": model,
        "source": job.items.source,
        "items": sum(part.items for part in parts),
        "bad": sum(len(part.bad) for part in parts),
        "schema": json.loads(job.items.schema.to_json()),
        "card": json.loads(card.to_json()),
        "parts": listed,
    }
    return json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n"
