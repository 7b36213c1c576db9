"""A catalog that changes: `python -m benchmarks.data.updating [--items 3000] [--rows 300000]`.

Rendered garments at 256 pixels are sharded; then one row in a hundred is added, two in a thousand removed, two photos
in a thousand replaced, and one label in a hundred changed. Measured: the bytes that `--update` writes as a share of the
folder's, its processor time against a build from scratch of the same catalog, and that the two indexes have the same
digest and no product another split. Then the same change of labels on a catalog of many rows whose photos are embedded
and tiny, where nothing is packed: what an update costs a row.
"""

import argparse
import csv
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from benchmarks.measuring import cpu_seconds, environment, write_result
from benchmarks.quality.catalogs import GARMENTS_SCHEMA
from PIL import Image

from facetclip.catalog import Catalog, read_catalog
from facetclip.images import encode_jpeg
from facetclip.index import open_index
from facetclip.render import RenderSpec, render_catalog
from facetclip.schema import Schema, read_schema
from facetclip.shards import ShardReport, ShardSpec, build_shards

ADDED, REMOVED, REPLACED, RELABELLED = 0.01, 0.002, 0.002, 0.01
RESULT = Path(__file__).parents[1] / "results" / "updating.json"


def changed(folder: Path, rows: list[dict[str, str]], more: list[dict[str, str]]) -> None:
    """The catalog a while later; some photos are other ones now."""
    draw, count = random.Random(0), len(rows)
    kept = draw.sample(rows, round(count * (1 - REMOVED)))
    for cells in draw.sample(kept, round(count * RELABELLED)):
        cells["sleeve"] = draw.choice(["long", "short"])
    for cells in draw.sample(kept, round(count * REPLACED)):
        shutil.copyfile(folder / draw.choice(more)["image"], folder / cells["image"])
    listed = [*kept, *more]
    with (folder / "catalog.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(listed)


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a shard folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def photos(work: Path, items: int) -> dict[str, Any]:
    """What an update of real files writes and takes."""
    render_catalog(RenderSpec("garments", round(items * (1 + ADDED)), size=256), work / "shop", workers=2)
    folder, schema = work / "shop", read_schema(GARMENTS_SCHEMA)
    with (folder / "catalog.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def build(out: str, **more: Any) -> ShardReport:
        spec = ShardSpec(work / out, images=folder, resize=256, **more)
        return build_shards(read_catalog(str(folder / "catalog.csv")), schema, spec)

    everything = (folder / "catalog.csv").read_text(encoding="utf-8")
    (folder / "catalog.csv").write_text("".join(everything.splitlines(keepends=True)[: items + 1]), encoding="utf-8")
    build("shards")
    before, index = files(work / "shards"), open_index(work / "shards")
    splits = dict(zip(index.product_ids.to_pylist(), index.splits.tolist(), strict=True))
    changed(folder, rows[:items], rows[items:])
    reports: list[ShardReport] = []
    update = cpu_seconds(lambda: reports.append(build("shards", update=True)))
    scratch = cpu_seconds(lambda: reports.append(build("fresh")))
    after, now = files(work / "shards"), open_index(work / "shards")
    written = sum(len(content) for name, content in after.items() if before.get(name) != content)
    pairs = zip(now.product_ids.to_pylist(), now.splits.tolist(), strict=True)
    return {
        "items": items,
        "changes": vars(reports[0].changes),
        "bytes written of all": round(written / sum(map(len, after.values())), 4),
        "of these in new shards": round(sum(len(after[name]) for name in after.keys() - before.keys()) / written, 3),
        "cpu seconds of a build over an update": round(scratch / update, 1),
        "same digest as from scratch": reports[0].digest == reports[1].digest,
        "products that changed their split": sum(splits.get(product, split) != split for product, split in pairs),
    }


def many_rows(work: Path, rows: int) -> dict[str, Any]:
    """What an update costs where only labels change."""
    image, place = encode_jpeg(Image.new("RGB", (32, 32), "grey")), np.arange(rows)
    values = [f"value {number}" for number in range(20)]
    schema = Schema.model_validate(
        {
            "columns": {"item": "item", "product": "product", "image": "image"},
            "attributes": {name: {"column": name, "values": values} for name in ("one", "two", "three")},
        }
    )

    def catalog(seed: int) -> Catalog:
        drawn = np.random.default_rng(seed).integers(0, 20, (3, rows))
        labels = {name: pa.array(values).take(pa.array(cells)) for name, cells in zip(schema.names, drawn, strict=True)}
        ids = {"item": pa.array(place).cast(pa.string()), "product": pa.array(place // 2).cast(pa.string())}
        images = {"image": pa.array([image]).take(pa.array(np.zeros(rows, dtype=np.int64)))}
        return Catalog("rows", pa.table(ids | images | labels), 1)

    build_shards(catalog(0), schema, ShardSpec(work / "rows"))
    listed, began = catalog(1), time.perf_counter()
    cpu = cpu_seconds(lambda: build_shards(listed, schema, ShardSpec(work / "rows", update=True)))
    return {"rows": rows, "seconds": round(time.perf_counter() - began, 1), "cpu seconds": round(cpu, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=args.work))
    try:
        found = {"photos": photos(work, args.items), "rows": many_rows(work, args.rows)}
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(found)
    write_result(RESULT, {"environment": environment(("numpy", "pyarrow", "pillow")), **found})


if __name__ == "__main__":
    main()
