"""How right filled gaps are, and how many are filled: `python -m benchmarks.filling [--work DIR] [--catalogs 1 2 3]`.

Rendered garments with half the cells empty and 3% of the others wrong; a model is fine-tuned on the train split, its
cut-offs are fitted on validation, and the test split's gaps are filled at 95% precision and held against the truth:
by the photos of each product together with what its other rows list, as `facetclip fill` does, and by photos alone. The
peer is what is done without any of it: one threshold for all attributes on the uncalibrated softmax, set on validation
so that the answers over it, of all attributes together, agree with the table in 95%. Coverage is compared where both
keep their promise for every attribute: the peer's one threshold must be raised until the worst attribute has 95%.
"""

import argparse
import contextlib
import io
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.measuring import environment, write_result
from benchmarks.quality.catalogs import GARMENTS_SCHEMA, SHARES, empty_cells, truth_of

from facetclip.abstention import cutoff, shipped_answers
from facetclip.batches import PixelReader
from facetclip.calibration import Calibration, probabilities
from facetclip.catalog import read_catalog
from facetclip.config import RunConfig, validated
from facetclip.index import INDEX_NAME, ShardIndex, open_index
from facetclip.launch import make_accelerator
from facetclip.metrics import listed_values
from facetclip.model import AttributeReader, load_model
from facetclip.render import RenderSpec, render_catalog
from facetclip.runs import fit
from facetclip.schema import read_schema, spans
from facetclip.shards import ShardSpec, build_shards
from facetclip.tables import text_table
from facetclip.trainer import Trainer
from facetclip.validation import logits_of

ITEMS, WRONG, PRECISION = 8_000, 0.03, 0.95
KEYS = "precision", "coverage"
RESULT = Path(__file__).parent / "results" / "filling.json"


def catalog(work: Path, seed: int, missing: float) -> tuple[ShardIndex, dict[str, np.ndarray]]:
    """Shards with a share `missing` of the cells empty, and the true label of every cell."""
    folder, gappy = work / f"fill-{seed}", work / f"fill-{seed}-gaps-{missing}"
    spec = RenderSpec("garments", ITEMS, seed=9_000 + seed, missing=0.0, wrong=WRONG, size=112, evenness=0.0)
    whole = render_catalog(spec, folder, workers=2)
    schema = read_schema(GARMENTS_SCHEMA)
    if not (gappy / "shards" / INDEX_NAME).exists():
        gappy.mkdir(parents=True, exist_ok=True)
        empty_cells(whole, gappy / "catalog.csv", schema, missing, seed)
        build = ShardSpec(gappy / "shards", images=folder, shares=SHARES, seed=seed, workers=2)
        build_shards(read_catalog(str(gappy / "catalog.csv")), schema, build)
    index = open_index(gappy / "shards")
    return index, truth_of(folder / "truth.csv", index)


def trained(index: ShardIndex, run: Path, seed: int) -> AttributeReader:
    """The finished model of a run of 200 steps in the folder `run`."""
    sections = {
        "data": {"shards": str(index.folder)},
        "model": {"start": "starter"},
        "train": {"steps": 200, "batch": 64, "seed": seed, "average": 0.98, "log_every": 10_000},
        "optimizer": {"lr": 5e-4, "weight_decay": 0.1},
        "sampling": {"strategy": "square_root"},
        "objective": {"noise": 0.1},
        "augment": {"brightness": 0.0},
        "validation": {"every": 50},
        "output": {"folder": str(run)},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        fit(Trainer(validated(RunConfig, sections, "filling"), make_accelerator()))
    return load_model(str(run / "model"))


def measured(index: ShardIndex, truth: dict[str, np.ndarray], reader: AttributeReader) -> dict[str, Any]:
    """Attribute -> precision and coverage of ours over the gaps, and of the peer's one threshold."""
    pixels = PixelReader(index, reader.preprocessing.size, reader.preprocessing.fit)
    logits = {split: logits_of(reader, pixels, index.rows(split)).numpy() for split in ("validation", "test")}
    parts = spans([len(attribute.values) for attribute in index.schema.attributes.values()])
    rows = index.rows("test")
    raw: dict[str, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]] = {"validation": {}, "test": {}}
    ours: dict[str, dict[str, Any]] = {"ours": {}, "photos alone": {}}
    for part, (name, attribute) in zip(parts, index.schema.attributes.items(), strict=True):
        calibration = reader.card.calibration[name]
        labels, products, real = index.labels[name][rows], index.products[rows], truth[name][rows]
        noisy = probabilities(logits["test"][:, part], calibration, multi_valued=False)
        together = products if name in reader.card.by_product else None
        gaps = (labels < 0) & (real >= 0)
        for way, listed in (("ours", labels), ("photos alone", None)):
            shown, sure, _ = shipped_answers(attribute, noisy, calibration, together, listed)
            cut = cutoff(reader.card.cutoffs[name], PRECISION, sure[gaps])
            given = gaps & (sure >= cut) if cut is not None else np.zeros_like(gaps)
            ours[way][name] = {
                "gaps": int(gaps.sum()),
                "coverage": float(given.sum() / gaps.sum()),
                "precision": float((shown.argmax(axis=1) == real)[given].mean()) if given.any() else None,
                "confidence": float(sure[given].mean()) if given.any() else None,
                "threshold": cut,
            }
        for split in raw:
            plain = probabilities(logits[split][:, part], Calibration(), multi_valued=False)
            if split == "validation":
                labels = index.labels[name][index.rows(split)]
                known = listed_values(attribute, labels).any(axis=1)
                raw[split][name] = plain.max(axis=1)[known], (plain.argmax(axis=1) == labels)[known], known[known]
            else:
                raw[split][name] = plain.max(axis=1), plain.argmax(axis=1) == real, gaps
    return {**ours, "one threshold": _one_threshold(raw)}


def _one_threshold(raw: dict[str, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]) -> dict[str, Any]:
    """The peer, as its user sets it (95% of all answers on validation); raised until each attribute keeps that; and
    until each keeps it by a standard error, as ours must."""
    found = {}
    validation = raw["validation"].values()
    candidates = np.unique(np.concatenate([sure for sure, _, _ in validation]))
    pooled = [np.concatenate(column) for column in zip(*validation, strict=True)]

    def keeps(threshold: float, sure: np.ndarray, right: np.ndarray, errors: float = 0.0) -> bool:
        given = sure >= threshold
        margin = errors * np.sqrt(PRECISION * (1 - PRECISION) / max(1, given.sum()))
        return not given.any() or right[given].mean() >= PRECISION + margin

    ways = {
        "pooled": next((t for t in candidates if keeps(t, pooled[0], pooled[1])), None),
        "every attribute": next((t for t in candidates if all(keeps(t, s, r) for s, r, _ in validation)), None),
        "as careful": next((t for t in candidates if all(keeps(t, s, r, 1.0) for s, r, _ in validation)), None),
    }
    for way, threshold in ways.items():
        found[way] = {"threshold": threshold if threshold is None else float(threshold)}
        for name, (sure, right, gaps) in raw["test"].items():
            given = gaps & (sure >= threshold) if threshold is not None else np.zeros_like(gaps)
            found[way][name] = {
                "coverage": float(given.sum() / gaps.sum()),
                "precision": float(right[given].mean()) if given.any() else None,
            }
    return found


def coverages(found: dict[str, Any], way: str) -> tuple[float, float]:
    """The share of the gaps that ours fills and that the peer does, in the mean of the attributes."""
    peer = found["one threshold"][way]
    covered = [(each["coverage"], peer[name]["coverage"]) for name, each in found["ours"].items()]
    ours, theirs = zip(*covered, strict=True)
    return statistics.mean(ours), statistics.mean(theirs)


def show(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Print the mean of catalogs with as many gaps; their gains, each with the mean, the least and the most."""

    def mean(of: Callable[[dict[str, Any]], float | None]) -> str:
        values = [value for each in found if (value := of(each)) is not None]
        return f"{statistics.mean(values):.3f}" if values else "none"

    ours, theirs = ("ours", "photos alone"), ("pooled", "every attribute", "as careful")
    rows = [
        [
            name,
            *(mean(lambda each, n=name, w=way, k=key: each[w][n][k]) for way in ours for key in KEYS),
            *(
                mean(lambda each, n=name, w=way, k=key: each["one threshold"][w][n][k])
                for way in theirs
                for key in KEYS
            ),
        ]
        for name in found[0]["ours"]
    ]
    print(
        text_table(
            ["attribute", *(f"{way}: {key}" for way in ("", *ours[1:], *theirs) for key in ("prec.", "cov."))], rows
        )
    )
    told = {}
    for way in theirs[1:]:
        both = [coverages(each, way) for each in found]
        filled = sum(theirs for _, theirs in both)
        whole = round(sum(ours for ours, _ in both) / filled, 3) if filled else None
        each = [round(ours / theirs, 3) if theirs else None for ours, theirs in both]
        told[way] = {"all": whole, "each": each}
        print(f"coverage against one threshold, {way}: {whole} times (catalogs: {each})", flush=True)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/filling"))
    parser.add_argument("--catalogs", nargs="+", type=int, default=[1, 2, 3, 4, 5, 6])
    parser.add_argument(
        "--missing", nargs="+", type=float, default=[0.5, 0.8], help="shares of the cells that are empty"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"environment": environment(("torch", "transformers", "numpy"))}
    for missing in args.missing:
        found = []
        for seed in args.catalogs:
            index, truth = catalog(args.work, seed, missing)
            reader = trained(index, args.work / f"run-{seed}-{missing}", seed)
            found.append({"catalog": seed, **measured(index, truth, reader)})
        print(f"{missing:.0%} of the cells empty, {len(found)} catalogs")
        result[f"{missing:g} empty"] = {"coverage, times one threshold": show(found), "found": found}
        write_result(args.out, result)


if __name__ == "__main__":
    main()
