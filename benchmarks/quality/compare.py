"""Learners compared on the same start, shards, splits and budget: `python -m benchmarks.quality.compare garments|luma`.

`garments`: 5 seeds, each a catalog of its own, with 0, 50 and 80% of the cells empty and a tenth of the rest wrong;
every arm at 50%, the main ones at the others. `luma`: the real catalog, 5 folds by product. Needs `open_clip_torch` in
--open-clip. Every arm, seed and share is written down when it is done, so the same command goes on where it stopped.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.measuring import environment, write_result
from benchmarks.quality.arms import ARMS, NOISE, Setting
from benchmarks.quality.catalogs import FOLDS, ITEMS, Material, garments, luma

from facetclip.calibration import ReliabilityBin
from facetclip.learning_curve import spread
from facetclip.metrics import measure_attribute, tail_f1
from facetclip.tables import text_table
from facetclip.workers import each as each_of

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("torch", "transformers", "accelerate", "peft", "scikit-learn", "numpy")
SEEDS = {"garments": (1, 2, 3, 4, 5), "luma": tuple(range(FOLDS))}  # catalog 0 is what the settings were chosen on
BATCH = 64
MAIN = ("zero-shot", "captions + InfoNCE", "a probe for each attribute", "probe", "full")
GAPS = {  # catalog -> share of empty cells -> arms
    "garments": {0.5: tuple(arm for arm in ARMS if arm != "trees on raw pixels"), 0.0: MAIN, 0.8: MAIN},
    "luma": {0.0: ("trees on raw pixels", *MAIN, "lora", "image_tower", "last_blocks", "prompt")},
}
PASSES = {  # catalog -> share of empty cells -> photos through the image tower while training
    "garments": {0.5: 400 * BATCH, 0.0: 200 * BATCH, 0.8: 200 * BATCH},
    "luma": {0.0: 200 * BATCH},
}
RATES = {
    "infonce": 6e-4,
    "full": 5e-4,
    "image_tower": 5e-4,
    "last_blocks": 8e-4,
    "lora": 2e-3,
    "probe": 1e-2,
    "prompt": 5e-3,
}
NUMBERS = ("macro_f1", "accuracy", "balanced_accuracy", "tail_f1", "ece")


def measured(material: Material, reading: dict[str, np.ndarray]) -> dict[str, Any]:
    """Metrics of the test split against the truth, per attribute and in the mean, and the ECE against the table."""
    index = material.index
    rows, train = index.rows("test"), index.rows("train")
    attributes: dict[str, dict[str, float]] = {}
    confusions = {}
    for name, attribute in index.schema.attributes.items():
        true = measure_attribute(attribute, material.truth[name][rows], reading[name])
        listed = measure_attribute(attribute, index.labels[name][rows], reading[name])
        if true is None or listed is None:
            continue
        carried = [int((index.labels[name][train] == value).sum()) for value in range(len(attribute.values))]
        attributes[name] = {
            "macro_f1": true.macro_f1,
            "accuracy": true.accuracy,
            "balanced_accuracy": true.balanced_accuracy,
            "tail_f1": tail_f1(true, carried),
            "ece": listed.ece,
            "ece_of_counting": ece_of_counting(listed.reliability),
            "ece_against_truth": true.ece,
            "macro_f1_of_table": listed.macro_f1,
        }
        confusions[name] = true.confusion
    mean = {key: float(np.mean([each[key] for each in attributes.values()])) for key in next(iter(attributes.values()))}
    return {"mean": mean, "attributes": attributes, "confusions": confusions}


def ece_of_counting(bins: tuple[ReliabilityBin, ...], draws: int = 200) -> float:
    """The calibration error that a perfectly calibrated reader would show on so few items, in the mean of `draws`."""
    counts = np.array([each.items for each in bins])
    sure = np.array([each.confidence for each in bins])
    right = np.random.default_rng(0).binomial(counts, sure, size=(draws, len(counts)))
    return float((np.abs(right - counts * sure).sum(axis=1) / counts.sum()).mean())


def work_on(task: tuple[str, dict[str, Any], str, Path]) -> str:
    """One arm on one catalog, unless it is done."""
    arm, place, name, out = task
    if out.is_file():
        return f"{name}: {arm}: there"
    torch.set_num_threads(1)
    setting = _setting(place)
    started = time.perf_counter()
    found = measured(setting.material, ARMS[arm](setting)) | {"seconds": time.perf_counter() - started}
    write_result(out, found)
    return f"{name}: {arm}: macro-F1 {found['mean']['macro_f1']:.4f}, ECE {found['mean']['ece']:.4f}"


def _setting(place: dict[str, Any]) -> Setting:
    """The catalog is opened in the process that works on it."""
    rest = {key: place[key] for key in ("work", "seed", "passes", "rates", "open_clip")}
    return Setting(material=_material(place), batch=BATCH, **rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalog", choices=("garments", "luma"))
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--open-clip", type=Path, default=Path("runs/open_clip"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--arms", nargs="*", help="train these only")
    parser.add_argument("--missing", nargs="*", type=float, help="at these shares only")
    args = parser.parse_args()
    common = {"work": args.work, "open_clip": args.open_clip, "rates": RATES}
    gaps = GAPS[args.catalog]
    places = {
        (share, arm, seed): args.work / "done" / args.catalog / f"{share:.1f}" / str(seed) / f"{arm}.json"
        for share, arms in gaps.items()
        for seed, arm in itertools.product(SEEDS[args.catalog], arms)
    }
    tasks = [
        (
            arm,
            {**common, "catalog": args.catalog, "seed": seed, "gaps": share, "passes": PASSES[args.catalog][share]},
            f"{share:.0%} missing, seed {seed}",
            out,
        )
        for (share, arm, seed), out in places.items()
        if (not args.arms or arm in args.arms) and (not args.missing or share in args.missing)
    ]
    for _, place, _, _ in tasks:
        _material(place)  # made once, before several work with it
    for line in each_of(work_on, tasks, workers=args.workers):
        print(line, flush=True)
    found = {key: json.loads(path.read_text()) for key, path in places.items() if path.is_file()}
    about = {"items": ITEMS, "passes": PASSES[args.catalog], "batch": BATCH, "rates": RATES, "noise": NOISE}
    record = {"environment": environment(PACKAGES), **about, "missing": summary(found)}
    write_result(RESULTS / f"quality_{args.catalog}.json", record)


def _material(place: dict[str, Any]) -> Material:
    return {"garments": garments, "luma": luma}[place["catalog"]](place["work"], place["seed"], place["gaps"])


def summary(found: dict[tuple[float, str, int], dict[str, Any]]) -> dict[str, Any]:
    """Means with intervals and paired differences from `full`, printed as tables and returned for the record."""
    tables: dict[str, Any] = {}
    for share in dict.fromkeys(key[0] for key in found):
        arms = list(dict.fromkeys(arm for gap, arm, _ in found if gap == share))
        seeds_of = {arm: sorted(seed for gap, other, seed in found if (gap, other) == (share, arm)) for arm in arms}
        numbers = {
            arm: {key: [found[share, arm, seed]["mean"][key] for seed in seeds_of[arm]] for key in NUMBERS}
            for arm in arms
        }
        rows, record = [], {}
        for arm in arms:
            each = {key: spread(numbers[arm][key]) for key in NUMBERS}
            seeds = seeds_of[arm]
            gain = spread(
                [
                    _f1(found[share, "full", seed]) - _f1(found[share, arm, seed])
                    for seed in seeds
                    if seed in seeds_of["full"]
                ]
                if "full" in seeds_of
                else [0.0]
            )
            rows.append(
                [arm, str(len(seeds)), *(str(each[key]) for key in NUMBERS), f"{gain.mean:+.3f} ±{gain.half:.3f}"]
            )
            record[arm] = {
                "seeds": numbers[arm],
                "mean": {key: [round(value.mean, 4), round(value.half, 4)] for key, value in each.items()},
                "full_minus_this": [round(gain.mean, 4), round(gain.half, 4)],
                "attributes": _by_attribute([found[share, arm, seed]["attributes"] for seed in seeds]),
                "pooled_balanced_accuracy": _pooled([found[share, arm, seed]["confusions"] for seed in seeds]),
                "seconds": [round(found[share, arm, seed]["seconds"], 1) for seed in seeds],
            }
        print(f"\n{share:.0%} missing: mean over seeds with its 95% interval")
        print(text_table(["arm", "seeds", *NUMBERS, "full - this, macro-F1"], rows))
        tables[f"{share:.1f}"] = record
    return tables


def _f1(found: dict[str, Any]) -> float:
    return found["mean"]["macro_f1"]


def _by_attribute(seeds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: round(float(np.mean([seed[name][key] for seed in seeds])), 4) for key in seeds[0][name]}
        for name in seeds[0]
    }


def _pooled(seeds: list[dict[str, Any]]) -> dict[str, float]:
    """The mean recall over the values of each attribute, the test splits of all seeds (or folds) put together."""
    pooled = {name: np.sum([seed[name] for seed in seeds], axis=0) for name in seeds[0]}
    return {
        name: round(float(np.mean([row[place] / row.sum() for place, row in enumerate(matrix) if row.sum()])), 4)
        for name, matrix in pooled.items()
    }


if __name__ == "__main__":
    main()
