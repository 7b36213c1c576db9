"""What reading an empty cell as "no" costs, by how its answers are read: `python -m benchmarks.quality.missing_as_no`.

Garments with half the cells empty, as in `compare`. The same trained models are read twice: by the most probable value
of each attribute, which lowering all probabilities alike cannot change, and by their own yes or no, value by value: yes
where the probability is at least a half. A catalog that is done is written down; the same command goes on.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.measuring import environment, write_result
from benchmarks.quality.arms import (
    OURS,
    MaskedQuestions,
    MissingIsNo,
    Setting,
    model_of,
    read,
    run_of,
    shift_of_questions,
)
from benchmarks.quality.catalogs import garments
from benchmarks.quality.compare import BATCH, PACKAGES, PASSES, RATES, RESULTS

from facetclip.learning_curve import spread
from facetclip.metrics import listed_values, macro_f1, read_values
from facetclip.schema import spans
from facetclip.tables import text_table
from facetclip.trainer import Trainer

MISSING = 0.5
QUESTIONS = {"missing counts as no": MissingIsNo, "masked yes or no": MaskedQuestions}


def scores_of(arm: str, setting: Setting) -> dict[str, float]:
    """Macro-F1 against the truth, in the mean of the attributes, by each way of reading."""
    kind = QUESTIONS.get(arm, Trainer)
    changes = {"sampling": OURS["sampling"]} if arm in QUESTIONS else OURS
    reader, logits = model_of(run_of(setting, "full", changes), kind, setting)
    index, best, own = setting.material.index, [], []
    rows = index.rows("test")
    calibrated = read(setting, logits, reader.calibration)
    parts = spans([len(attribute.values) for attribute in index.schema.attributes.values()])
    for part, (name, attribute) in zip(parts, index.schema.attributes.items(), strict=True):
        every = listed_values(attribute, setting.material.truth[name][rows])
        told = every.any(axis=1)  # where it applies
        listed = every[told]
        shift = shift_of_questions(len(attribute.values), reader.scale.detach()).item()
        yes = logits[:, part] >= shift if arm in QUESTIONS else calibrated[name] >= 0.5
        best.append(macro_f1(listed, read_values(attribute, calibrated[name][told])))
        own.append(macro_f1(listed, yes[told]))
    return {"most_probable": float(np.mean(best)), "own_yes_or_no": float(np.mean(own))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--catalogs", nargs="+", type=int, default=[1, 2, 3])
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ("full", *QUESTIONS)}
    for seed in args.catalogs:
        for arm in found:
            done = args.work / "done" / "missing_as_no" / str(seed) / f"{arm}.json"
            if not done.is_file():
                material = garments(args.work, seed, MISSING)
                setting = Setting(material, args.work, seed, PASSES["garments"][MISSING], BATCH, RATES, Path())
                write_result(done, scores_of(arm, setting))
            found[arm].append(json.loads(done.read_text()))
            print(seed, arm, found[arm][-1], flush=True)
    record: dict[str, Any] = {"environment": environment(PACKAGES), "catalogs": args.catalogs, "missing": MISSING}
    ways = ("most_probable", "own_yes_or_no")
    summary = {arm: {way: spread([each[way] for each in every]) for way in ways} for arm, every in found.items()}
    print(text_table(["arm", *ways], [[arm, *(str(each[way]) for way in ways)] for arm, each in summary.items()]))
    write_result(RESULTS / "quality_missing_as_no.json", record | {"macro_f1": found})


if __name__ == "__main__":
    main()
