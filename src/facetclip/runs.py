"""One run, whole: train under any launcher, track in MLflow, measure the best model, register it."""

import json
import os
import sys
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from facetclip import faults
from facetclip.attempts import RECORD as ATTEMPTS
from facetclip.attempts import attempt
from facetclip.config import RunConfig
from facetclip.errors import UserError, redacted
from facetclip.evaluate import evaluate
from facetclip.files import remove, write_whole
from facetclip.finishing import finish_model
from facetclip.goodput import RECORD as GOODPUT
from facetclip.interruption import ANYTIME, MARKER, REQUEUE, Interrupted, listening, mark
from facetclip.launch import make_accelerator
from facetclip.lease import RunLease
from facetclip.model import CARD, load_model
from facetclip.progress import STACKS
from facetclip.registry import register
from facetclip.scores import reader_digest
from facetclip.spool import RECORD
from facetclip.start import start_model
from facetclip.tracking import Tracker
from facetclip.trainer import Trainer, TrainResult
from facetclip.validation import Judgement

REGISTERED = "registered.json"  # which model of the run folder is in the registry, so that none is filed twice
# What earlier launches made of a run, which a fresh one does without.
MADE = ("checkpoints", "best", "model", REGISTERED, RECORD, GOODPUT, ATTEMPTS, "progress", STACKS)


@dataclass(frozen=True)
class RunOutcome:
    """What a finished run left: the model that ships, and the best weights as trained.

    `version`: of the registered model, None where the run names none or MLflow is away.
    """

    model: Path
    result: TrainResult
    version: str | None


def run_training(run: RunConfig, *, fresh: bool = False, allow: Collection[str] = ()) -> RunOutcome:
    """Train as `run` says, going on where the run folder stopped. All processes call it.

    `fresh`: from the start; `allow`: settings that may have changed since, and `crashes` to start once more after the
    third death at one step. UserError where another launch trains this run. Interrupted when a signal asked for an
    end: everything is saved, and the file `requeue` in the run folder says so.
    """
    accelerator = make_accelerator()
    folder = Path(run.output.folder)
    lease = RunLease(folder) if accelerator.is_main_process else None
    try:
        if lease:
            remove(folder / MARKER)
        with listening(folder / MARKER, ANYTIME, at_once=True) as interruption:
            outcome = _train(run, accelerator, folder, fresh=fresh, allow=allow)
            if interruption.wanted:  # in a moment in which no exception can be raised
                raise Interrupted
    except Interrupted as stop:
        mark(folder / MARKER, stop)
        if stop.step is None and accelerator.num_processes > 1:
            _part(stop, lease)
        raise
    finally:
        if lease:
            lease.release()
    leave(accelerator)
    return outcome


def _part(stop: Interrupted, lease: RunLease | None) -> None:
    """Leave at once, while other processes are elsewhere: whatever waits for them may wait for ever."""
    if lease:
        lease.release()
        print(f"facetclip train: {stop}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(REQUEUE)


def _train(
    run: RunConfig, accelerator: Accelerator, folder: Path, *, fresh: bool, allow: Collection[str]
) -> RunOutcome:
    trainer = _begun(run, accelerator, folder, fresh=fresh, allow=allow)
    main, tracker, status = accelerator.is_main_process, trainer.tracker, "FAILED"
    try:
        result, judgement = _to_the_end(trainer)
        version = file_results(trainer, judgement, tracker) if tracker else None
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        if main:
            trainer.goodput.store(ended=status != "FAILED")
            trainer.say(str(trainer.goodput))
        if tracker:
            tracker.metrics(trainer.state.step, trainer.goodput.values)
            tracker.finish(status)
    return RunOutcome(folder / "model", result, version)


def _begun(run: RunConfig, accelerator: Accelerator, folder: Path, *, fresh: bool, allow: Collection[str]) -> Trainer:
    """The trainer where the run folder stopped, tracked by the first process."""
    if fresh:
        _check_start(run, folder)
    trainer = Trainer(run, accelerator, forget=MADE if fresh else ())
    main = accelerator.is_main_process
    died_at = trainer.died_at if "crashes" not in allow else None
    with attempt(folder, died_at) if main else nullcontext():
        faults.reach("run.begun")
        trainer.resume(allow)
        if main:
            trainer.tracker = start_tracker(trainer.run, folder)
    return trainer


def _check_start(run: RunConfig, folder: Path) -> None:
    """UserError where what the run starts from would go with what it starts over from."""
    start = run.model.start
    if start and any(Path(start).resolve().is_relative_to((folder / name).resolve()) for name in MADE):
        raise UserError(
            f"model.start = {start!r} is part of what --fresh deletes; copy it to another folder, or take "
            "another output.folder"
        )


def fit(trainer: Trainer, allow: Collection[str] = ()) -> tuple[TrainResult, Judgement]:
    """Train to the end from where the run folder stopped, then write the blended and calibrated model to its `model`.

    All processes call it; the judgement is that of the finished model on the validation split.
    """
    trainer.resume(allow)
    return _to_the_end(trainer)


def _to_the_end(trainer: Trainer) -> tuple[TrainResult, Judgement]:
    result = trainer.train()
    faults.reach("run.trained")
    model, run, index = trainer.folder / "model", trainer.run, trainer.index
    start = start_model(run, index) if run.tuning.interpolate and not run.model.new else None
    device = trainer.accelerator.device
    return result, finish_model(result.best, model, index, trainer.inputs, start=start, device=device)


def leave(accelerator: Accelerator) -> None:
    """Wait for the slowest process and close the process group, if there is one."""
    accelerator.wait_for_everyone()
    accelerator.end_training()


def start_tracker(run: RunConfig, folder: Path, *, tags: Mapping[str, str] | None = None) -> Tracker:
    """The MLflow run of a run folder, with every setting as a parameter and the resolved run file beside the model."""
    resolved = run.model_dump(mode="json")
    resolved["data"]["shards"] = redacted(run.data.shards)
    write_whole(folder / "run.json", json.dumps(resolved, indent=2).encode())
    flat = {f"{section}.{key}": value for section, keys in resolved.items() for key, value in keys.items()}
    return Tracker.start(
        folder,
        experiment=run.tracking.experiment,
        run_name=folder.name,
        params=flat,
        tags=tags or {},
    )


def file_results(trainer: Trainer, judgement: Judgement, tracker: Tracker) -> str | None:
    """What the finished model is worth on the validation split, into MLflow; and the model into the registry, once."""
    run, folder = trainer.run, trainer.folder
    model = folder / "model"
    tracker.metrics(trainer.state.step, {f"final/{name}": value for name, value in judgement.values.items()})
    if judgement.loss is not None:
        report = evaluate(str(model), trainer.index, "validation", folder / "validation")
        tracker.metrics(trainer.state.step, {f"report/{name}": value for name, value in report.numbers().items()})
        tracker.artifact(folder / "validation")
    for path in (folder / "run.json", model / CARD):
        tracker.artifact(path)
    return _register_once(run, model, tracker.run_id) if run.tracking.register_as else None


def _register_once(run: RunConfig, model: Path, run_id: str | None) -> str | None:
    record, digest = Path(run.output.folder) / REGISTERED, reader_digest(load_model(str(model)))
    if record.is_file():
        known = json.loads(record.read_text())
        if known == {"digest": digest, "version": known["version"], "name": run.tracking.register_as}:
            return known["version"]
    version = register(model, name=str(run.tracking.register_as), run_id=run_id)
    if version is not None:
        known = {"digest": digest, "version": version, "name": run.tracking.register_as}
        write_whole(record, json.dumps(known).encode())
    return version
