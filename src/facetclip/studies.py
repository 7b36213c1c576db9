"""The two studies of the field: how many labelled images it takes, and which captions work best.

A study is many trainings that share the start, the data and what can be computed once. Each is measured on the test
split and written down, its weights are dropped, so a study that was stopped goes on where it was. In MLflow they are
the children of one run.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facetclip.batches import Inputs, PixelReader
from facetclip.calibration import Calibration, probabilities
from facetclip.checkpoint import differences, scientific
from facetclip.collectives import gather_objects
from facetclip.config import Form, RunConfig
from facetclip.errors import UserError
from facetclip.features import feature_reader
from facetclip.feed import training_rows
from facetclip.files import remove, write_whole
from facetclip.index import ShardIndex, open_index
from facetclip.launch import make_accelerator
from facetclip.learning_curve import METRIC_NAMES, Arm, Point, captions_table, curve_json, curve_table, forecast
from facetclip.lease import LEASE, RunLease
from facetclip.metrics import AttributeMetrics, measure_attribute
from facetclip.model import AttributeReader, load_model
from facetclip.runs import fit, leave, start_tracker
from facetclip.schema import spans
from facetclip.scores import reader_digest
from facetclip.start import start_model
from facetclip.store import cache_spec
from facetclip.study_pictures import draw_captions, draw_curve
from facetclip.tables import text_table
from facetclip.tracking import Tracker
from facetclip.trainer import Trainer
from facetclip.tuning import FROZEN_IMAGES
from facetclip.validation import logits_of

SIZES = (10, 20, 40, 60, 100)  # then twice as many each time, up to all
PARENT = "mlflow.parentRunId"  # the tag by which MLflow nests runs
Scores = dict[str, dict[str, float]]  # attribute -> metric -> score on the test split


@dataclass(frozen=True)
class Child:
    """One training of a study: its name, and the settings by which it differs from the study's run."""

    name: str
    changes: Mapping[str, Mapping[str, Any]]


class Study:
    """Trainings that start from one run file, their results in the folder `out`. All processes of a launch make it."""

    def __init__(self, run: RunConfig, out: Path) -> None:
        self.run, self.out = run, out
        self.accelerator = make_accelerator()
        self.index = open_index(run.data.shards, cache_spec(run.data.cache, run.data.cache_bytes))
        self.rows = self.index.rows("test")
        if not (self.index.label_matrix(self.rows) >= 0).any():
            raise UserError(f"{run.data.shards}: no label in the test split; a study has nothing to measure on")
        self._inputs: dict[bool, Inputs] = {}
        self._same_as_before()

    def _same_as_before(self) -> None:
        """UserError where `out` holds a study of another run or other data."""
        now = scientific(self.run) | {"data.digest": self.index.digest}
        now["model.digest"] = reader_digest(start_model(self.run, self.index))
        now["tuning.interpolate"] = self.run.tuning.interpolate  # what is measured is what a training ships
        path = self.out / "study.json"
        then = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else now
        if changed := differences(then, now):
            raise UserError(
                f"{self.out}: holds a study of other settings: {'; '.join(changed.values())}. "
                "Change it back, or take another --out"
            )
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_whole(path, json.dumps(now, indent=1).encode())

    def measure(self, children: Iterable[Child], kind: str) -> dict[str, Scores]:
        """Name -> scores of every child; those that were measured before are read."""
        lease = parent = None
        if self.accelerator.is_main_process:
            lease = RunLease(self.out)
            parent = start_tracker(self.run, self.out, tags={"facetclip.study": kind})
        found, ended = {}, "FAILED"
        try:
            for child in children:
                found[child.name] = self._scores(child, parent)
            ended = "FINISHED"
        finally:
            if parent:
                for path in self._files():
                    parent.artifact(path)
                parent.finish(ended)
            if lease:
                lease.release()
        return found

    def _files(self) -> list[Path]:
        found = [path for path in sorted(self.out.glob("*.*")) if path.suffix in (".png", ".json")]
        return [path for path in found if path.name != LEASE]

    def _scores(self, child: Child, parent: Tracker | None) -> Scores:
        done = self.out / "done" / f"{child.name}.json"
        known, *_ = gather_objects(done.is_file())  # the first process's word
        if not known:
            self._train(child, done, parent)
        scores, *_ = gather_objects(json.loads(done.read_text()) if self.accelerator.is_main_process else None)
        return scores

    def _train(self, child: Child, done: Path, parent: Tracker | None) -> None:
        folder = self.out / "runs" / child.name
        trainer = Trainer(self._run_of(child, folder), self.accelerator)
        trainer.quiet = True
        if parent:
            tags = {PARENT: parent.run_id} if parent.run_id else {}
            trainer.tracker = start_tracker(trainer.run, folder, tags=tags)
        ended = "FAILED"
        try:
            fit(trainer)
            inputs = self._test_inputs(trainer)
            if self.accelerator.is_main_process:
                self._write_down(child, trainer, inputs, done)
            ended = "FINISHED"
        finally:
            if trainer.tracker:
                trainer.tracker.finish(ended)
        if self.accelerator.is_main_process:
            for name in ("checkpoints", "best", "model"):
                remove(folder / name)
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()

    def _write_down(self, child: Child, trainer: Trainer, inputs: Inputs, done: Path) -> None:
        """What the trained model is worth on the test split: into the child's file, MLflow, and a line."""
        reader = load_model(str(trainer.folder / "model")).to(self.accelerator.device)
        scores = scores_of(reader, inputs, self.index, self.rows)
        write_whole(done, json.dumps(scores, indent=1).encode())
        if trainer.tracker:
            flat = {f"test/{name}/{metric}": score for name, of in scores.items() for metric, score in of.items()}
            trainer.tracker.metrics(trainer.state.step, flat)
        told = ", ".join(f"{name} {of['macro_f1']:.3f}" for name, of in scores.items())
        print(f"{child.name}: macro-F1 {told}", flush=True)

    def _run_of(self, child: Child, folder: Path) -> RunConfig:
        changes = {name: dict(keys) for name, keys in child.changes.items()}
        changes["output"] = {"folder": str(folder)}
        changes["data"] = {"features": str(self.out / "features")} | changes.get("data", {})
        changes["checkpoint"] = {"every": 10**9}  # a child is short; the study goes on with the next one
        update = {name: getattr(self.run, name).model_copy(update=keys) for name, keys in changes.items()}
        return self.run.model_copy(update=update)

    def _test_inputs(self, trainer: Trainer) -> Inputs:
        """The test split as the trained model takes it, prepared once for all children of a kind."""
        frozen = trainer.run.tuning.mode in FROZEN_IMAGES and trainer.run.tuning.cache
        if frozen not in self._inputs:
            size, fit_ = trainer.reader.preprocessing.size, trainer.reader.preprocessing.fit
            pixels = PixelReader(self.index, size, fit_, often=len(self.rows))
            features = self.out / "features"
            self._inputs[frozen] = (
                feature_reader(trainer.reader, pixels, self.rows, features, self.accelerator) if frozen else pixels
            )
        return self._inputs[frozen]


def scores_of(reader: AttributeReader, inputs: Inputs, index: ShardIndex, rows: np.ndarray) -> Scores:
    """The scores of `reader` on `rows`, of every attribute that is labelled there."""
    logits = logits_of(reader, inputs, rows).cpu().numpy()
    attributes, scores = index.schema.attributes, {}
    for span, (name, attribute) in zip(
        spans([len(attribute.values) for attribute in attributes.values()]), attributes.items(), strict=True
    ):
        calibration = reader.calibration.get(name, Calibration())
        read = probabilities(logits[:, span], calibration, multi_valued=attribute.multi_valued)
        measured: AttributeMetrics | None = measure_attribute(attribute, index.labels[name][rows], read)
        if measured is not None:
            scores[name] = {metric: float(getattr(measured, metric)) for metric in METRIC_NAMES}
    return scores


def default_sizes(labelled: int) -> tuple[int, ...]:
    """10, 20, 40, 60, 100, then twice as many each time, and all.

    >>> default_sizes(500), default_sizes(60)
    ((10, 20, 40, 60, 100, 200, 400, 500), (10, 20, 40, 60))
    """
    sizes: list[int] = list(SIZES)
    while sizes[-1] * 2 < labelled:
        sizes.append(sizes[-1] * 2)
    return (*(size for size in sizes if size < labelled), labelled)


def run_curve(
    run: RunConfig, out: Path, *, sizes: Sequence[int] = (), seeds: int = 5, targets: Sequence[float] = (0.9,)
) -> list[Point]:
    """Accuracy and F1 against the number of labelled training images: `curve.json`, `curve.png`, and tables printed.

    `sizes`: those numbers, by `default_sizes` where none are given; zero-shot is measured too. A seed decides which
    images are labelled, smaller sets within larger ones, and the order of training. The validation split, which chooses
    the best step, keeps all its labels. UserError where a size is more than is labelled.
    """
    study = Study(run, out)
    labelled = len(training_rows(run, study.index))
    if sizes and not 1 <= min(sizes) <= max(sizes) <= labelled:
        raise UserError(f"--sizes: expected numbers from 1 to {labelled}, the labelled training photos")
    zero_shot = Child("zero-shot", {"tuning": {"mode": "zero_shot"}})
    trained = {
        (items, seed): Child(f"{items:07d} labelled, seed {seed}", _labelled(run, items, seed))
        for seed in range(seeds)
        for items in sizes or default_sizes(labelled)
    }
    found = study.measure([zero_shot, *trained.values()], "learning curve")
    points = [Point(0, 0, name, **of) for name, of in found[zero_shot.name].items()]
    for (items, seed), child in trained.items():
        points += [Point(items, seed, name, **of) for name, of in found[child.name].items()]
    if study.accelerator.is_main_process:
        write_whole(out / "curve.json", json.dumps(curve_json(points, targets), indent=1).encode())
        write_whole(out / "curve.png", draw_curve(points, metric="both", targets=targets))
        _print_curve(points, targets, labelled)
        print(f"figure: {out / 'curve.png'}")
    leave(study.accelerator)
    return points


def _labelled(run: RunConfig, items: int, seed: int) -> dict[str, dict[str, Any]]:
    """The settings of a training on `items` labelled images; the batch is no larger than they can fill."""
    repeats = 1 if run.sampling.strategy == "natural" else run.sampling.max_repeats
    batch = min(run.train.batch, items * repeats)
    return {"data": {"labelled": items}, "train": {"seed": seed, "batch": batch}}


def _print_curve(points: Sequence[Point], targets: Sequence[float], labelled: int) -> None:
    names = list(dict.fromkeys(point.attribute for point in points))
    for metric, title in METRIC_NAMES.items():
        print(f"\n{title} on the test split by labelled training images: mean over seeds and its 95% interval")
        print(text_table(*curve_table(points, metric)))
    print()
    for target in targets:
        for name in names:
            print(forecast(points, name, "macro_f1", target, have=labelled).words)


def run_captions(
    run: RunConfig, out: Path, *, forms: Sequence[Form], modes: Sequence[str], seeds: int = 3
) -> list[Arm]:
    """Caption forms by tuning modes: `captions.json`, `captions.png`, and tables printed.

    Steps and rate of a mode that is not the run's own are those of `facetclip.presets`.
    """
    study = Study(run, out)
    children = {
        (form, mode, seed): Child(f"{form}, {mode}, seed {seed}", _worded(run, form, mode, seed))
        for form in forms
        for mode in modes
        for seed in range(1 if mode == "zero_shot" else seeds)
    }
    found = study.measure(children.values(), "captions")
    arms = [
        Arm(form, mode, seed, name, **of)
        for (form, mode, seed), child in children.items()
        for name, of in found[child.name].items()
    ]
    if study.accelerator.is_main_process:
        write_whole(out / "captions.json", json.dumps([vars(arm) for arm in arms], indent=1).encode())
        write_whole(out / "captions.png", draw_captions(arms, metric="macro_f1"))
        overall, each = captions_table(arms, "macro_f1")
        print("\nmacro-F1 on the test split, mean over attributes\n" + text_table(*overall))
        for name, table in each.items():
            print(f"\n{name}\n{text_table(*table)}")
        print(f"figure: {out / 'captions.png'}")
    leave(study.accelerator)
    return arms


def _worded(run: RunConfig, form: Form, mode: str, seed: int) -> dict[str, dict[str, Any]]:
    changes: dict[str, dict[str, Any]] = {
        "prompts": {"form": form},
        "tuning": {"mode": mode},
        "train": {"seed": seed},
    }
    if mode != run.tuning.mode:
        changes["train"] |= {"steps": None}
        changes["optimizer"] = {"lr": None, "warmup_steps": None}
        changes["validation"] = {"every": None}
    return changes
