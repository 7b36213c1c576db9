"""One run, whole: train under any launcher, track in MLflow, measure the best model, register it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from facetclip.config import RunConfig
from facetclip.evaluate import evaluate
from facetclip.files import write_whole
from facetclip.index import open_index
from facetclip.model import CARD, load_model
from facetclip.registry import register
from facetclip.scores import reader_digest
from facetclip.spool import RECORD
from facetclip.tracking import Tracker
from facetclip.trainer import Trainer, TrainResult, make_accelerator

REGISTERED = "registered.json"  # which model of the run folder is in the registry, so that none is filed twice


@dataclass(frozen=True)
class RunOutcome:
    """What a finished run left. `version`: of the registered model, None where the run names none or MLflow is away."""

    result: TrainResult
    version: str | None


def run_training(run: RunConfig, *, fresh: bool = False) -> RunOutcome:
    """Train as `run` says, going on where the run folder stopped (`fresh`: from the start). All processes call it."""
    accelerator = make_accelerator()
    folder = Path(run.output.folder)
    if fresh and accelerator.is_main_process:
        for name in ("checkpoints", "model", REGISTERED, RECORD):
            remove(folder / name)
    accelerator.wait_for_everyone()
    tracker = start_tracker(run, folder) if accelerator.is_main_process else None
    try:
        trainer = Trainer(run, accelerator, tracker)
        trainer.resume()
        result = trainer.train()
        version = finish(run, result, tracker) if tracker else None
    except BaseException:
        if tracker:
            tracker.finish("FAILED")
        raise
    if tracker:
        tracker.finish("FINISHED")
    leave(accelerator)
    return RunOutcome(result, version)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def leave(accelerator: Accelerator) -> None:
    """Wait for the slowest process and close the process group, if there is one."""
    accelerator.wait_for_everyone()
    accelerator.end_training()


def start_tracker(run: RunConfig, folder: Path) -> Tracker:
    """The MLflow run of a run folder, with every setting as a parameter and the resolved run file beside the model."""
    resolved = run.model_dump(mode="json")
    write_whole(folder / "run.json", json.dumps(resolved, indent=2).encode())
    flat = {f"{section}.{key}": value for section, keys in resolved.items() for key, value in keys.items()}
    return Tracker.start(
        folder,
        experiment=run.tracking.experiment,
        run_name=folder.name,
        params=flat,
        tags={},
    )


def finish(run: RunConfig, result: TrainResult, tracker: Tracker) -> str | None:
    """Measure the best model on the validation split, file report and pictures, register the model once."""
    folder, shards = Path(run.output.folder), Path(run.data.shards)
    if len(open_index(shards).rows("validation")):
        evaluate(str(result.model), shards, "validation", folder / "validation")
        tracker.artifact(folder / "validation")
    for path in (folder / "run.json", result.model / CARD):
        tracker.artifact(path)
    return _register_once(run, result, tracker.run_id) if run.tracking.register_as else None


def _register_once(run: RunConfig, result: TrainResult, run_id: str | None) -> str | None:
    record, digest = Path(run.output.folder) / REGISTERED, reader_digest(load_model(str(result.model)))
    if record.is_file():
        known = json.loads(record.read_text())
        if known == {"digest": digest, "version": known["version"], "name": run.tracking.register_as}:
            return known["version"]
    version = register(result.model, name=str(run.tracking.register_as), run_id=run_id)
    if version is not None:
        known = {"digest": digest, "version": version, "name": run.tracking.register_as}
        write_whole(record, json.dumps(known).encode())
    return version
