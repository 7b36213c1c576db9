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

ITEMS, MISSING, WRONG, PRECISION = 8_000, 0.5, 0.03, 0.95
RESULT = Path(__file__).parent / "results" / "filling.json"


def catalog(work: Path, seed: int) -> tuple[ShardIndex, dict[str, np.ndarray]]:
    """Shards with gaps, and the true label of every cell."""
    folder, gappy = work / f"fill-{seed}", work / f"fill-{seed}-gaps"
    spec = RenderSpec("garments", ITEMS, seed=9_000 + seed, missing=0.0, wrong=WRONG, size=112, evenness=0.0)
    whole = render_catalog(spec, folder, workers=2)
    schema = read_schema(GARMENTS_SCHEMA)
    if not (gappy / "shards" / INDEX_NAME).exists():
        gappy.mkdir(parents=True, exist_ok=True)
        empty_cells(whole, gappy / "catalog.csv", schema, MISSING, seed)
        build = ShardSpec(gappy / "shards", images=folder, shares=SHARES, seed=seed, workers=2)
        build_shards(read_catalog(str(gappy / "catalog.csv")), schema, build)
    index = open_index(gappy / "shards")
    return index, truth_of(folder / "truth.csv", index)


def trained(index: ShardIndex, work: Path, seed: int) -> AttributeReader:
    """The finished model of a run of 200 steps."""
    sections = {
        "data": {"shards": str(index.folder)},
        "model": {"start": "starter"},
        "train": {"steps": 200, "batch": 64, "seed": seed, "average": 0.98, "log_every": 10_000},
        "optimizer": {"lr": 5e-4, "weight_decay": 0.1},
        "sampling": {"strategy": "square_root"},
        "objective": {"noise": 0.1},
        "augment": {"brightness": 0.0},
        "validation": {"every": 50},
        "output": {"folder": str(work / f"fill-run-{seed}")},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        fit(Trainer(validated(RunConfig, sections, "filling"), make_accelerator()))
    return load_model(str(work / f"fill-run-{seed}" / "model"))


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
    """The peer, as its user sets it (95% of all answers on validation), and raised until each attribute keeps it."""
    found = {}
    candidates = np.unique(np.concatenate([sure for sure, _, _ in raw["validation"].values()]))
    pooled = [np.concatenate(column) for column in zip(*raw["validation"].values(), strict=True)]

    def keeps(threshold: float, sure: np.ndarray, right: np.ndarray) -> bool:
        return right[sure >= threshold].mean() >= PRECISION

    def each_keeps(threshold: float) -> bool:
        return all(
            keeps(threshold, sure, right) for sure, right, _ in raw["validation"].values() if (sure >= threshold).any()
        )

    ways = {
        "pooled": next((t for t in candidates if keeps(t, pooled[0], pooled[1])), None),
        "every attribute": next((t for t in candidates if each_keeps(t)), None),
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


def gain(found: dict[str, Any]) -> float:
    """How many times the peer's coverage ours is, in the mean of the attributes, where both keep the promise."""
    peer = found["one threshold"]["every attribute"]
    covered = [(each["coverage"], peer[name]["coverage"]) for name, each in found["ours"].items()]
    return sum(ours for ours, _ in covered) / sum(theirs for _, theirs in covered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/filling"))
    parser.add_argument("--catalogs", nargs="+", type=int, default=[1, 2, 3, 4, 5, 6])
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for seed in args.catalogs:
        index, truth = catalog(args.work, seed)
        found.append({"catalog": seed, **measured(index, truth, trained(index, args.work, seed))})
        print(seed, found[-1], flush=True)
    names = list(found[0]["ours"])

    def mean(of: Any) -> str:
        values = [value for each in found if (value := of(each)) is not None]
        return f"{statistics.mean(values):.3f}" if values else "none"

    rows = [
        [
            name,
            *(
                mean(lambda each, n=name, k=key, w=way: each[w][n][k])
                for way in ("ours", "photos alone")
                for key in ("precision", "coverage")
            ),
            *(
                mean(lambda each, n=name, k=key, w=way: each["one threshold"][w][n][k])
                for way in ("pooled", "every attribute")
                for key in ("precision", "coverage")
            ),
        ]
        for name in names
    ]
    ways = ("", "photos alone: ", "pooled: ", "one for all: ")
    print(text_table(["attribute", *(f"{way}{kind}" for way in ways for kind in ("prec.", "cov."))], rows))
    gains = [gain(each) for each in found]
    print(
        f"coverage against one threshold for all: {statistics.mean(gains):.3f} ({min(gains):.3f} to {max(gains):.3f})"
    )
    versions = environment(("torch", "transformers", "numpy"))
    write_result(RESULT, {"environment": versions, "gain": gains, "found": found})


if __name__ == "__main__":
    main()
