"""What the trainer costs beside the training: `python -m benchmarks.trainer [--steps 210] [--out FILE]`.

Steps of the whole trainer (reading ahead, augmenting, agreeing, log, MLflow, heart-beat, signals) against a bare loop
of forward, backward, clipping and AdamW over the same batches, already augmented: the starter at batch 64, on one
thread, step by step in turn, with a control of bare against bare. And the seconds of writing and of resuming from a
checkpoint, for the starter and for a model of the size of CLIP ViT-B/32, and the share of the time that checkpoints
take in a run with the default interval.
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.measuring import environment, wall_seconds, write_result
from benchmarks.probe import B32, shards_of
from benchmarks.quality.catalogs import GARMENTS_SCHEMA
from benchmarks.stepping.ours import Portioned

from facetclip.augmentation import augment
from facetclip.config import RunConfig, validated
from facetclip.launch import make_accelerator
from facetclip.losses import attribute_losses
from facetclip.model import load_model, save_model
from facetclip.optimizers import build_optimizer
from facetclip.schema import read_schema
from facetclip.scratch import new_model
from facetclip.tracking import Tracker
from facetclip.trainer import Trainer

BATCH = 64
STEPS = 20  # a measurement


class Timed(Portioned):
    """One that keeps when its last step ended and the next began: the time of `between` is not its own."""

    @property
    def patience_is_over(self) -> bool:
        self.ended = time.perf_counter()
        over = super().patience_is_over
        self.begun = time.perf_counter()
        return over


def trainer_of(folder: Path, shards: Path, start: str, **train: Any) -> Timed:
    sections: dict[str, Any] = {
        "data": {"shards": str(shards)},
        "model": {"start": start},
        "train": {"batch": BATCH} | train,
        "output": {"folder": str(folder / f"run-{Path(start).name}-{len(train)}")},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = Timed(validated(RunConfig, sections, "benchmark"), make_accelerator())
    trainer.quiet = True
    return trainer


class Bare:
    """The loop of a tutorial: it has its batches in memory and does nothing else."""

    def __init__(self, trainer: Trainer) -> None:
        run = trainer.run
        self.reader = load_model(str(run.model.start), trainer.index.schema, fit=run.model.fit).train()
        self.optimizer = build_optimizer(self.reader, run.optimizer)
        self.portions = [trainer.feed.portion(trainer.inputs, planned) for planned in trainer.feed.planned(0, STEPS)]
        mean, std = self.reader.mean, self.reader.std
        self.batches = [
            augment(portion.batch.inputs, portion.draws, run.augment, mean, std) for portion in self.portions
        ]
        self.clip = run.optimizer.clip_norm
        self.loss_of = trainer.feed.objective_at(0)

    def step(self, number: int) -> None:
        portion, inputs = self.portions[number % STEPS], self.batches[number % STEPS]
        logits = self.reader(inputs).logits
        loss = attribute_losses(logits, portion.batch.labels, self.loss_of).sum() / portion.count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.reader.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def overhead(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of a step, one of each kind after the other, and what the trainer's takes beyond the bare one."""
    trainer = trainer_of(folder, shards_of(folder, 1400), "starter", steps=100_000)
    trainer.tracker = Tracker.start(folder / "tracked", experiment="benchmark", run_name="one", params={}, tags={})
    trainer.go_on(STEPS)  # all photos are decoded
    bare = Bare(trainer)
    taken: dict[str, list[float]] = {"bare": [], "control": [], "trainer": []}

    def between() -> None:
        number = len(taken["bare"])
        if number:
            taken["trainer"].append(trainer.ended - trainer.begun)
        for name in ("bare", "control") if number % 2 else ("control", "bare"):
            taken[name].append(wall_seconds(partial(bare.step, number)))

    trainer.between = between  # type: ignore[method-assign]
    trainer.go_on(rounds)
    trainer.tracker.finish("FINISHED")
    kept = {name: values[5 : 5 + rounds - 10] for name, values in taken.items()}
    return {
        "batch": BATCH,
        "steps": len(kept["bare"]),
        "seconds of a step": {name: spread(values) for name, values in kept.items()},
        "trainer / bare": quartiles(kept["trainer"], kept["bare"]),
        "control / bare": quartiles(kept["control"], kept["bare"]),
    }


def spread(values: Sequence[float]) -> list[float]:
    """The quartiles."""
    return [round(each, 4) for each in statistics.quantiles(values, n=4)]


def quartiles(some: Sequence[float], others: Sequence[float]) -> list[float]:
    """The quartiles of their ratio, step by step."""
    return spread([one / other for one, other in zip(some, others, strict=True)])


def checkpoints(folder: Path, start: str, rounds: int, **train: Any) -> dict[str, Any]:
    """What a save and a resume take."""
    trainer = trainer_of(folder, shards_of(folder, 1400), start, **train)
    step = wall_seconds(partial(trainer.go_on, 1))
    step = wall_seconds(partial(trainer.go_on, 1))
    saves = [wall_seconds(trainer.save) for _ in range(rounds)]
    resumes = [wall_seconds(trainer.resume) for _ in range(rounds)]
    newest = max((trainer.folder / "checkpoints").glob("step-*"))
    return {
        "megabytes": round(sum(path.stat().st_size for path in newest.iterdir()) / 1e6, 1),
        "save seconds": [round(each, 3) for each in saves],
        "resume seconds": [round(each, 3) for each in resumes],
        "step seconds": round(step, 3),
        "batch": trainer.run.train.batch,
    }


def share_of_checkpoints(folder: Path) -> dict[str, float]:
    """Where the time of a whole run with the default interval goes."""
    trainer = trainer_of(folder, shards_of(folder, 1400), "starter", seed=1, average=0.9)
    trainer.go_on(trainer.steps)
    seconds = {name: trainer.goodput.seconds[name] for name in ("productive", "stall", "validation", "checkpoint")}
    return {
        "steps": trainer.state.step,
        "steps between validations": trainer.run.validation.every or 0,
        "share of the time in checkpoints": round(seconds["checkpoint"] / sum(seconds.values()), 4),
    } | {name: round(value, 2) for name, value in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=210)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trainer.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        results: dict[str, Any] = {"overhead": overhead(folder, args.steps)}
        print(results["overhead"])
        schema = read_schema(GARMENTS_SCHEMA)
        large = save_model(new_model(B32, schema, ["a red top"], seed=0), folder / "b32")
        results["checkpoints"] = {
            "starter": checkpoints(folder, "starter", 9),
            "ViT-B/32": checkpoints(folder, str(large), 3, batch=16),
            "starter, a whole run": share_of_checkpoints(folder),
        }
        print(results["checkpoints"])
    write_result(args.out, {"environment": environment(("torch", "transformers", "numpy")), **results})


if __name__ == "__main__":
    main()
