"""What an audit is worth: `python -m benchmarks.audit [--work DIR] [--catalogs 1 2 3]`.

Rendered garments with a fifth of the cells empty and 3% of the others wrong. `facetclip audit` orders the suspect
cells; as many as were planted are judged by the truth, as a person would on the review page, and `facetclip apply`
writes the corrected catalog. A model is fine-tuned on the catalog before and after, and read against the truth.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.filling import trained
from benchmarks.measuring import environment, write_result
from benchmarks.quality.catalogs import GARMENTS_SCHEMA, SHARES, of_each, right, truth_of

from facetclip.audit import AuditSpec, audit
from facetclip.catalog import read_catalog
from facetclip.corrections import apply_corrections
from facetclip.index import INDEX_NAME, ShardIndex, open_index
from facetclip.learning_curve import spread
from facetclip.render import RenderSpec, render_catalog
from facetclip.schema import Schema, read_schema
from facetclip.shards import ShardSpec, build_shards
from facetclip.suggestions import Suggestion, read_suggestions
from facetclip.tables import text_table

ITEMS, MISSING, WRONG = 6_000, 0.2, 0.03
RESULT = Path(__file__).parent / "results" / "audit.json"


def cells_of(path: Path) -> dict[str, dict[str, str]]:
    """Item -> its row."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["item_id"]: row for row in csv.DictReader(file)}


def sharded(catalog: Path, images: Path, out: Path, schema: Schema, seed: int) -> ShardIndex:
    """The shards of a catalog."""
    if not (out / INDEX_NAME).exists():
        spec = ShardSpec(out, images=images, shares=SHARES, seed=seed, workers=2)
        build_shards(read_catalog(str(catalog)), schema, spec)
    return open_index(out)


def judged(queue: list[Suggestion], truth: dict[str, dict[str, str]], out: Path) -> None:
    """The corrections of someone who sees what is true."""
    with out.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["item_id", "attribute", "listed", "suggested", "verdict", "value"])
        for cell in queue:
            real = truth[cell.item_id][cell.attribute]
            verdict = "reject" if real == cell.listed else "accept" if real == cell.suggested else "other"
            table.writerow([cell.item_id, cell.attribute, cell.listed, cell.suggested, verdict, real])


def worth(index: ShardIndex, truth: dict[str, np.ndarray], work: Path, seed: int) -> float:
    """Mean macro-F1 against the truth, on the test split, of a model fine-tuned on the shards."""
    return right(trained(index, work / "run", seed), index, truth, index.rows("test"))


def measured(work: Path, seed: int) -> dict[str, Any]:
    """One catalog, from its planted errors to the model that is trained without most of them."""
    folder, place = work / f"shop-{seed}", work / f"audit-{seed}"
    schema = read_schema(GARMENTS_SCHEMA)
    spec = RenderSpec("garments", ITEMS, seed=8_000 + seed, missing=MISSING, wrong=WRONG, size=112, evenness=0.0)
    catalog = render_catalog(spec, folder, workers=2)
    real, listed = cells_of(folder / "truth.csv"), cells_of(catalog)
    planted = {(i, n) for i, row in listed.items() for n in schema.names if row[n] and row[n] != real[i][n]}
    before = sharded(catalog, folder, place / "before", schema, seed)
    found = audit(before.folder, place / "queue", AuditSpec(seed=seed))
    assert found is not None
    queue = list(read_suggestions(place / "queue").cells[: len(planted)])
    hits = [(cell.item_id, cell.attribute) in planted for cell in queue]
    judged(queue, real, place / "corrections.csv")
    for left in ("fixed.csv", "changes.csv"):
        (place / left).unlink(missing_ok=True)
    apply_corrections(place / "corrections.csv", catalog, schema, place / "fixed.csv", place / "changes.csv")
    after = sharded(place / "fixed.csv", folder, place / "after", schema, seed)
    f1 = {
        name: worth(index, truth_of(folder / "truth.csv", index), place / name, seed)
        for name, index in (("before", before), ("after", after))
    }
    return {
        "catalog": seed,
        "planted": len(planted),
        "precision at planted": float(np.mean(hits)),
        "found": sum(hits) / len(planted),
        "estimate": {name: round(share, 4) for name, share in found.wrong.items()},
        "macro-F1": f1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/audit"))
    parser.add_argument("--catalogs", nargs="+", type=int, default=[1, 2, 3])
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = of_each(args.work, args.catalogs, measured)
    gains = [each["macro-F1"]["after"] - each["macro-F1"]["before"] for each in found]
    rows = [
        ["precision among as many as planted", str(spread([each["precision at planted"] for each in found]))],
        ["macro-F1 before", str(spread([each["macro-F1"]["before"] for each in found]))],
        ["macro-F1 after", str(spread([each["macro-F1"]["after"] for each in found]))],
        ["gain, paired", str(spread(gains))],
    ]
    print(text_table(["", "mean, 95% interval"], rows))
    write_result(RESULT, {"environment": environment(("torch", "scikit-learn", "numpy")), "found": found})


if __name__ == "__main__":
    main()
