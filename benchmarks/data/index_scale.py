"""Start-up over large catalogs: `python -m benchmarks.data.index_scale [--millions 1 3 10] [--work DIR]`.

Synthetic indexes with ten attributes, 60% of the cells empty, values as skewed as Zipf's law, and products of one to
three photos; the shards are empty files of the right length. Each size is opened in a process of its own, and what a
training asks of it before its first step is timed: opening, the training rows with their labels, the plan of an epoch,
and the labels of one batch. Resident memory is the process's peak, the interpreter and its libraries included.
"""

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.measuring import environment, write_result

from facetclip.index import FORMAT, INDEX_NAME, LABEL, Shard, index_columns, open_index
from facetclip.sampling import SamplingSpec, plan_epoch
from facetclip.schema import Schema

ATTRIBUTES, VALUES, GAPS = 10, 20, 0.6
EACH = 5000  # photos a shard
BYTES = 16_000  # of a photo
PIECE = 1 << 22  # rows written at a time
_SHARES = 1 / np.arange(1, VALUES + 1) ** 1.3
ZIPF = np.minimum(np.cumsum(_SHARES / _SHARES.sum()), 1)[:-1]  # up to each value but the last
SPEC = SamplingSpec(batch=4096)
RESULT = Path(__file__).parents[1] / "results" / "index_scale.json"


def schema() -> Schema:
    """Ten attributes of twenty values."""
    values = [f"value {number}" for number in range(VALUES)]
    names = [f"attribute {number}" for number in range(ATTRIBUTES)]
    columns = {"item": "item", "product": "product", "image": "image"}
    return Schema.model_validate(
        {"columns": columns, "attributes": {name: {"column": name, "values": values} for name in names}}
    )


def write(folder: Path, items: int) -> None:
    """The index, in pieces, and shards without content."""
    folder.mkdir(parents=True)
    shards = [Shard(f"shard-{number:06d}.tar", EACH, EACH * BYTES, "") for number in range(-(-items // EACH))]
    for shard in shards:
        with (folder / shard.name).open("wb") as empty:
            empty.truncate(shard.bytes)  # sparse: it takes no room
    facts = {"format": FORMAT, "schema": schema().to_json(), "size": str(items), "digest": "synthetic"}
    columns = index_columns(schema()).with_metadata(facts | {"shards": json.dumps([asdict(shard) for shard in shards])})
    with pq.ParquetWriter(folder / INDEX_NAME, columns, compression="zstd", write_statistics=False) as out:
        for first in range(0, items, PIECE):
            piece = pa.table(rows(first, min(PIECE, items - first)))
            out.write_table(piece.select(columns.names).cast(columns), row_group_size=1 << 20)


def rows(first: int, count: int) -> dict[str, Any]:
    """The columns of rows `first` and on."""
    random = np.random.default_rng(first)
    place = np.arange(first, first + count)
    product = place // 2 + random.integers(0, 2, len(place))  # of one to three photos
    labels = {}
    for name in schema().names:
        drawn = np.searchsorted(ZIPF, random.random(count, dtype=np.float32))
        labels[LABEL + name] = np.where(random.random(count, dtype=np.float32) < GAPS, -1, drawn).astype(np.int16)
    return {
        "place": place,
        "item": pa.array(place).cast(pa.string()),
        "product_id": pa.array(product).cast(pa.string()),
        "product": product,
        "split": np.where(product % 10 < 7, 0, np.where(product % 10 < 8, 1, 2)),
        **labels,
        "shard": place // EACH,
        "offset": place % EACH * BYTES,
        "length": np.full(count, BYTES),
        "checksum": np.zeros(count),
        "phash": random.integers(1, 1 << 64, count, dtype=np.uint64),
        "tint": random.integers(0, 1 << 64, count, dtype=np.uint64),
    }


def started(folder: str) -> dict[str, Any]:
    """Seconds of each part of a start, on the clock and of the processor, and GiB."""
    seconds: dict[str, float] = {}
    processor: dict[str, float] = {}
    began = time.perf_counter(), time.process_time()

    def lap(name: str) -> None:
        nonlocal began
        now = time.perf_counter(), time.process_time()
        seconds[name], processor[name] = (round(end - start, 3) for start, end in zip(began, now, strict=True))
        began = now

    before = peak_gib()
    index = open_index(Path(folder))
    lap("open")
    rows = index.rows("train")
    labels = {name: column[rows] for name, column in index.labels.items()}
    products = index.products[rows]
    lap("training rows and labels")
    plan = plan_epoch(labels, products, SPEC, seed=0, epoch=0)
    lap("plan")
    index.label_matrix(rows[plan[0]])
    lap("labels of a batch")
    return seconds | {"of the processor": processor, "peak GiB": peak_gib(), "GiB before": before}


def peak_gib() -> float:
    """The most memory that this process has had. (`getrusage` would count what the one that started it had, too.)"""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return round(int(status.split("VmHWM:")[1].split()[0]) / 2**20, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", nargs="+", type=float, default=[1, 3, 10])
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    work = Path(tempfile.mkdtemp(dir=args.work))
    try:
        for millions in args.millions:
            folder = work / f"{millions:g}"
            write(folder, int(millions * 1e6))
            size = (folder / "index.parquet").stat().st_size
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[f"{millions:g} million"] = pool.apply(started, (str(folder),)) | {
                    "index MB": round(size / 1e6, 1)
                }
            print(f"{millions:g} million", found[f"{millions:g} million"], flush=True)
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    record = {"attributes": ATTRIBUTES, "values": VALUES, "gaps": GAPS, "found": found}
    write_result(RESULT, {"environment": environment(("numpy", "pyarrow")), **record})


if __name__ == "__main__":
    main()
