"""What labelling the photos that `facetclip next` picks is worth: `python -m benchmarks.labelling [--catalogs 1 2 3]`.

Rendered garments with skewed values, of which 300 random photos are labelled. A model is fine-tuned on these and picks
300 more with `facetclip next`; they are labelled by the truth, and the model is fine-tuned anew on all 600. The same
with the 300 most unsure ones (entropy alone), and with 300, 600, 1,200 and 2,400 more random ones: how many of these
are worth as much as those picked is read off by a straight line between their macro-F1s over the logarithm of their
number. All are held against the truth of photos of other products.
"""

import argparse
import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.audit import cells_of
from benchmarks.filling import trained
from benchmarks.measuring import environment, write_result
from benchmarks.quality.catalogs import GARMENTS_SCHEMA, of_each, right, truth_of

from facetclip import label_next as next_module
from facetclip.catalog import read_catalog
from facetclip.index import INDEX_NAME, ShardIndex, open_index
from facetclip.label_next import label_next
from facetclip.learning_curve import spread
from facetclip.render import RenderSpec, render_catalog
from facetclip.schema import read_schema
from facetclip.shards import ShardSpec, build_shards
from facetclip.splits import Shares
from facetclip.suggestions import read_suggestions
from facetclip.tables import text_table

ITEMS, TESTED, SEEDED = 8_000, 3_000, 300
RANDOM = 300, 600, 1_200, 2_400  # more random photos
SHARES = Shares(0.85, 0.15, 0.0)
RESULT = Path(__file__).parent / "results" / "labelling.json"


@dataclass(frozen=True)
class Shop:
    """A rendered catalog whose truth is known, and the folder of what is made of it."""

    photos: Path
    truth: dict[str, dict[str, str]]
    work: Path
    seed: int
    test: ShardIndex
    real: dict[str, np.ndarray]

    def shards(self, name: str, labelled: Iterable[str]) -> ShardIndex:
        """Shards of all photos, of which only those `labelled` have labels."""
        folder, known = self.work / name, set(labelled)
        if not (folder / "shards" / INDEX_NAME).exists():
            folder.mkdir(parents=True, exist_ok=True)
            schema = read_schema(GARMENTS_SCHEMA)
            with (folder / "catalog.csv").open("w", newline="", encoding="utf-8") as file:
                first = next(iter(self.truth.values()))
                table = csv.DictWriter(file, list(first), lineterminator="\n")
                table.writeheader()
                for item, row in self.truth.items():
                    table.writerow(row if item in known else row | dict.fromkeys(schema.names, ""))
            spec = ShardSpec(folder / "shards", images=self.photos, shares=SHARES, seed=self.seed, workers=2)
            build_shards(read_catalog(str(folder / "catalog.csv")), schema, spec)
        return open_index(folder / "shards")

    def worth(self, name: str, labelled: Iterable[str]) -> float:
        """Mean macro-F1 against the truth of other products, of a model fine-tuned on these labels."""
        reader = trained(self.shards(name, labelled), self.work / name / "run", self.seed)
        return right(reader, self.test, self.real, np.arange(len(self.test)))


def shop(work: Path, seed: int) -> Shop:
    """A catalog to label and one to test on; rendered once."""
    schema, folders = read_schema(GARMENTS_SCHEMA), []
    for part, items in enumerate((ITEMS, TESTED)):
        spec = RenderSpec("garments", items, seed=10_000 + 2 * seed + part, missing=0.0, size=112, evenness=0.0)
        folders.append(work / f"{('shop', 'tested')[part]}-{seed}")
        render_catalog(spec, folders[-1], workers=2)
    tested = work / f"tested-{seed}-shards"
    if not (tested / INDEX_NAME).exists():
        spec = ShardSpec(tested, images=folders[1], workers=2)
        build_shards(read_catalog(str(folders[1] / "truth.csv")), schema, spec)
    test = open_index(tested)
    truth = cells_of(folders[0] / "truth.csv")
    return Shop(folders[0], truth, work / f"arms-{seed}", seed, test, truth_of(folders[1] / "truth.csv", test))


def most_unsure(unsure: np.ndarray, features: np.ndarray, count: int) -> np.ndarray:
    """What `pick` is without diversity."""
    return np.argsort(-unsure, kind="stable")[:count]


def picked(found: ShardIndex, model: str, out: Path) -> list[str]:
    """The items that `facetclip next` puts on its page."""
    label_next(str(found.folder), model, out, count=SEEDED)
    return list(dict.fromkeys(cell.item_id for cell in read_suggestions(out).cells))


def measured(work: Path, seed: int) -> dict[str, Any]:
    """Macro-F1 with the first labels, with those picked in two ways, and with more and more random ones."""
    place = shop(work, seed)
    order = np.random.default_rng(seed).permutation(list(place.truth)).tolist()
    first = order[:SEEDED]
    scores = {"first": place.worth("first", first)}
    model, seeded = str(place.work / "first" / "run" / "model"), place.shards("first", first)
    ways = {"picked": picked(seeded, model, place.work / "picked-queue")}
    pick = next_module.pick
    next_module.pick = most_unsure
    try:
        ways["most unsure"] = picked(seeded, model, place.work / "unsure-queue")
    finally:
        next_module.pick = pick
    for name, items in ways.items():
        scores[name] = place.worth(name.replace(" ", "-"), [*first, *items])
    for more in RANDOM:
        scores[f"random {more}"] = place.worth(f"random-{more}", order[: SEEDED + more])
    random = [scores["first"], *(scores[f"random {more}"] for more in RANDOM)]
    return {
        "catalog": seed,
        "macro-F1": scores,
        "random photos worth as much": {
            name: worth_as(scores[name], random, [SEEDED, *(SEEDED + more for more in RANDOM)]) for name in ways
        },
    }


def worth_as(score: float, random: list[float], labelled: list[int]) -> float:
    """How many random photos beyond the first give `score`; at most as many as were tried.

    >>> worth_as(0.8, [0.5, 0.7, 0.9], [300, 600, 1200])
    548.5
    """
    rising = np.maximum.accumulate(random)
    return round(float(np.exp(np.interp(score, rising, np.log(labelled)))) - labelled[0], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/labelling"))
    parser.add_argument("--catalogs", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = of_each(args.work, args.catalogs, measured)
    rows = [[name, str(spread([each["macro-F1"][name] for each in found]))] for name in found[0]["macro-F1"]]
    print(text_table(["labelled beyond the first 300", "macro-F1, 95% interval"], rows))
    write_result(args.out, {"environment": environment(("torch", "numpy")), "found": found})


if __name__ == "__main__":
    main()
