"""The two catalogs that learners are compared on: rendered garments, whose truth is known, and a real shop's."""

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measuring import write_result

from facetclip.catalog import read_catalog
from facetclip.index import INDEX_NAME, ShardIndex, open_index
from facetclip.labels import encode_labels
from facetclip.metrics import listed_values, macro_f1, read_values
from facetclip.model import AttributeReader
from facetclip.render import RenderSpec, render_catalog
from facetclip.schema import Schema, read_schema
from facetclip.scores import score_rows
from facetclip.shards import ShardSpec, build_shards
from facetclip.splits import Shares

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GARMENTS_SCHEMA = HERE / "garments_schema.toml"
LUMA = ROOT.parent / "shared" / "data" / "luma"
LUMA_SCHEMA = ROOT / "training" / "runs" / "luma_schema.toml"
ITEMS = 16_000
WRONG = 0.1
SHARES = Shares(0.5, 0.1, 0.4)  # many test items, so that an error of calibration is not one of counting
FOLDS = 5


@dataclass(frozen=True)
class Material:
    """Shards, and for each attribute the labels [n] that the test is against: the truth where it is known."""

    index: ShardIndex
    truth: dict[str, np.ndarray]


def garments(work: Path, seed: int, missing: float, items: int = ITEMS) -> Material:
    """A rendered catalog with Zipf-skewed values, a tenth of its cells wrong and `missing` of them empty."""
    folder = work / f"garments-{seed}-{items}"
    spec = RenderSpec("garments", items, seed=7_000 + seed, missing=0.0, wrong=WRONG, size=112, evenness=0.0)
    catalog = render_catalog(spec, folder, workers=2)
    schema = read_schema(GARMENTS_SCHEMA)
    gappy = work / f"garments-{seed}-{items}-{missing:.1f}"
    if not (gappy / "shards" / INDEX_NAME).exists():
        gappy.mkdir(parents=True, exist_ok=True)
        empty_cells(catalog, gappy / "catalog.csv", schema, missing, seed)
        build = ShardSpec(gappy / "shards", images=folder, shares=SHARES, seed=seed, workers=2)
        build_shards(read_catalog(str(gappy / "catalog.csv")), schema, build)
    index = open_index(gappy / "shards")
    return Material(index, truth_of(folder / "truth.csv", index))


def empty_cells(source: Path, target: Path, schema: Schema, missing: float, seed: int) -> None:
    """Copy a catalog with a share `missing` of its attribute cells emptied; a larger share empties more of them."""
    random = np.random.default_rng([seed, 4])
    with source.open(newline="", encoding="utf-8") as read, target.open("w", newline="", encoding="utf-8") as written:
        rows = csv.DictReader(read)
        writer = csv.DictWriter(written, rows.fieldnames or [], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            gone = random.random(len(schema.names)) < missing
            writer.writerow(row | {name: "" for name, lost in zip(schema.names, gone, strict=True) if lost})


def of_each(work: Path, catalogs: Iterable[int], measured: Callable[[Path, int], dict[str, Any]]) -> list[Any]:
    """What was `measured` of each catalog, in `work`, told as it comes; what an earlier run has done is read again."""
    found = []
    for seed in catalogs:
        done = work / f"done-{seed}.json"
        if not done.is_file():
            with contextlib.redirect_stdout(io.StringIO()):
                result = measured(work, seed)
            write_result(done, result)
        found.append(json.loads(done.read_text()))
        print(found[-1], flush=True)
    return found


def right(reader: AttributeReader, index: ShardIndex, truth: dict[str, np.ndarray], rows: np.ndarray) -> float:
    """Mean macro-F1 of what a model reads off `rows` of an index against the true labels of its items."""
    scores = score_rows(reader, index, rows)
    each = []
    for name, attribute in index.schema.attributes.items():
        listed = listed_values(attribute, truth[name][rows])
        told = listed.any(axis=1)
        each.append(macro_f1(listed[told], read_values(attribute, scores.probabilities[name][told])))
    return float(np.mean(each))


def truth_of(path: Path, index: ShardIndex) -> dict[str, np.ndarray]:
    """The true labels of an index's items, in its order."""
    catalog = read_catalog(str(path))
    labels = encode_labels(catalog, index.schema)
    place = {item: row for row, item in enumerate(catalog.table[index.schema.columns.item].to_pylist())}
    order = np.array([place[item] for item in index.item_ids.to_pylist()])
    return {name: column[order] for name, column in labels.items()}


def luma(work: Path, fold: int, missing: float) -> Material:
    """The real catalog with the products of `fold`, of five, as the test split; none where it is absent."""
    folder = work / f"luma-{fold}-{missing:.1f}"
    if not (folder / "shards" / INDEX_NAME).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with (LUMA / "catalog.csv").open(newline="", encoding="utf-8") as read:
            rows = list(csv.DictReader(read))
        products = sorted({row["product_id"] for row in rows}, key=lambda name: hashlib.sha256(name.encode()).digest())
        tested = {name for place, name in enumerate(products) if place % FOLDS == fold}
        checked = {
            name for place, name in enumerate([name for name in products if name not in tested]) if place % 8 == 0
        }
        with (folder / "catalog.csv").open("w", newline="", encoding="utf-8") as written:
            writer = csv.DictWriter(written, [*rows[0], "fold"], lineterminator="\n")
            writer.writeheader()
            for row in rows:
                name = row["product_id"]
                part = "test" if name in tested else "validation" if name in checked else "train"
                writer.writerow(row | {"fold": part})
        text = LUMA_SCHEMA.read_text(encoding="utf-8").replace("[columns]\n", '[columns]\nsplit = "fold"\n', 1)
        (folder / "schema.toml").write_text(text, encoding="utf-8")
        build = ShardSpec(folder / "shards", images=LUMA, resize=256, workers=2)
        build_shards(read_catalog(str(folder / "catalog.csv")), read_schema(folder / "schema.toml"), build)
    index = open_index(folder / "shards")
    return Material(index, dict(index.labels))
