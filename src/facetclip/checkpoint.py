"""Checkpoints: a folder a step, hashed, whole or absent; only tensors (safetensors) and JSON.

Order, sampling and augmentation are functions of the step, so weights, optimizer and a tiny state are all there is.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from facetclip import faults
from facetclip.config import Checkpoints, RunConfig
from facetclip.errors import UserError
from facetclip.files import replace_folder, write_whole
from facetclip.schedule import due

MANIFEST = "manifest.json"
SAVING = 0.02  # of the time, at most, goes into checkpoints whose interval is ours to choose
SCIENCE = {"model", "prompts", "train", "tuning", "objective", "optimizer", "sampling", "augment", "validation"}
NO_SCIENCE = ("train.log_every", "train.recompute", "train.compile", "tuning.interpolate")


@dataclass
class TrainState:
    """`step`: updates done; `best`: the lowest validation loss so far, and `best_step`: where it was measured;
    `skipped`: updates left out since a loss or gradient was no number; `parts`: how many each process's share was cut
    into where `train.micro_batch` is "auto", on so many `processes`."""

    step: int = 0
    best: float = float("inf")
    best_step: int = 0
    skipped: int = 0
    parts: int = 1
    processes: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """What a step leaves behind. `weights`: what is trained; `average`: its moving average, where there is one;
    `science`: the settings, start and data it depends on, compared when it is resumed."""

    state: TrainState
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    science: dict[str, Any]
    scaler: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write `folder/step-N`, then drop all but it and the `keep` - 1 before it: a run that is at step N has passed over
    later ones as damaged. UserError when the disk is full."""
    from safetensors.torch import save

    target = folder / f"step-{checkpoint.state.step:08d}"
    about = {"state": asdict(checkpoint.state), "science": checkpoint.science, "scaler": checkpoint.scaler}
    contents = {
        "weights.safetensors": save(_plain(checkpoint.weights)),
        "optimizer.safetensors": save(_plain(checkpoint.optimizer)),
        "average.safetensors": save(_plain(checkpoint.average)),
        "state.json": json.dumps(about, indent=1).encode(),
    }
    with replace_folder(target) as beside:
        for name, content in contents.items():
            write_whole(beside / name, content)
            faults.reach(f"checkpoint.{name}")
        write_whole(
            beside / MANIFEST, json.dumps({name: _digest(content) for name, content in contents.items()}).encode()
        )
    faults.reach("checkpoint.committed")
    steps = _steps(folder)
    newest = steps.index(target)
    for other in (*steps[:newest], *steps[newest + keep :]):
        shutil.rmtree(other)
    return target


class SaveClock:
    """When to save by this process's clock. `free`: to save no more often than every `every` steps, and only when that
    takes little of the time."""

    def __init__(self, spec: Checkpoints, last: int, *, free: bool) -> None:
        self.spec, self.last, self.free = spec, last, free
        self._saved, self._took = time.monotonic(), 0.0

    def saved(self, began: float) -> None:
        """A save is done that began at `began`, in seconds of `time.monotonic`."""
        self._saved = time.monotonic()
        self._took = self._saved - began

    def overdue(self, step: int) -> bool:
        """Whether to save after `step`: the last save is `minutes` ago or, where free to choose, far enough back for
        saving to take little of the time."""
        waited = time.monotonic() - self._saved
        if self.spec.minutes is not None and waited >= 60 * self.spec.minutes:
            return True
        return self.free and due(step, self.spec.every or self.last, last=self.last) and waited * SAVING >= self._took


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def load_checkpoint(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint whose every byte is as written; damaged ones are named through `warn` and passed over."""
    from safetensors.torch import load

    for path in _steps(folder):
        contents = _verified(path)
        if contents is None:
            warn(f"{path}: damaged; the checkpoint before it is used")
            continue
        about = json.loads(contents["state.json"])
        return Checkpoint(
            state=TrainState(**about["state"]),
            weights=load(contents["weights.safetensors"]),
            optimizer=load(contents["optimizer.safetensors"]),
            science=about["science"],
            scaler=about["scaler"],
            average=load(contents["average.safetensors"]),
        )
    return None


def _steps(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("step-????????"), reverse=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _verified(path: Path) -> dict[str, bytes] | None:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        contents = {name: (path / name).read_bytes() for name in manifest}
    except (OSError, ValueError):
        return None
    whole = all(_digest(contents[name]) == digest for name, digest in manifest.items())
    return contents if whole and contents else None


def scientific(run: RunConfig) -> dict[str, Any]:
    """Every setting that the numbers of a training depend on, flat."""
    sections = run.model_dump(mode="json", include=SCIENCE)
    flat = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    return {name: value for name, value in flat.items() if name not in NO_SCIENCE} | {
        "data.labelled": run.data.labelled
    }


def check_science(then: Mapping[str, Any], now: Mapping[str, Any], folder: Path, allow: Collection[str] = ()) -> None:
    """UserError naming every setting, but for those of `allow`, in which a run differs from the one it would resume."""
    changed = {name: words for name, words in differences(then, now).items() if name not in allow}
    if changed:
        raise UserError(
            f"{folder}: cannot resume: {'; '.join(changed.values())}. Change it back, take another output.folder, "
            f"let it through with --allow {next(iter(changed))}, or start over with --fresh"
        )


def check_state(
    checkpoint: Checkpoint, now: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], folder: Path
) -> None:
    """UserError where a run cannot go on from what was stored, whatever is let through. `now`: its settings; `shapes`:
    of the weights that it trains."""
    then = {name: list(weight.shape) for name, weight in checkpoint.weights.items()}
    other = sorted(name for name in then if name in shapes and then[name] != list(shapes[name]))
    optimizers = [science["optimizer.name"] for science in (checkpoint.science, now)]
    if then.keys() != shapes.keys():
        found = f"trained other weights than tuning.mode = {now['tuning.mode']!r} does"
    elif other:
        found = f"holds {other[0]} of {then[other[0]]}, where this run's is of {list(shapes[other[0]])}"
    elif optimizers[0] != optimizers[1]:
        found = "holds the state of optimizer.name = {!r}, which {!r} cannot go on from".format(*optimizers)
    else:
        return
    raise UserError(f"{folder}: its checkpoint {found}; take another output.folder, or start over with --fresh")


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Every setting that has changed, with what it was and is, by name.

    >>> differences({"train.seed": 1, "data.digest": "a"}, {"train.seed": 2, "data.digest": "a"})
    {'train.seed': 'train.seed was 1, is 2'}
    """
    return {
        name: f"{name} was {then.get(name)!r}, is {now.get(name)!r}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    }
