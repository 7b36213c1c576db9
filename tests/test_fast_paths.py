"""What makes a step fast changes no loss: each path beside the plain one, which is further from itself by its seed."""

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.quality.catalogs import LUMA, luma
from benchmarks.stepping.ours import REMOVED
from small_shop import make_shards
from test_trainer import Losses, make_run

from facetclip import faults
from facetclip.checkpoint import load_checkpoint
from facetclip.config import Checkpoints, RunConfig
from facetclip.launch import make_accelerator
from facetclip.memory import Parts
from facetclip.trainer import Trainer

PLAIN = tuple(name for name in REMOVED if name not in ("text features kept", "photos kept"))  # which are exact
PATHS: dict[str, dict[str, Any]] = {
    "as it is by default": {},
    "recomputed, in parts": {"micro_batch": 3, "recompute": True},
}


def losses(run: RunConfig, removed: Iterable[str] = ()) -> list[float]:
    """Of every step."""
    trainer, told = Trainer(run, make_accelerator()), Losses()
    trainer.tracker, trainer.quiet = told, True  # type: ignore[assignment]  # as much of a Tracker as is used
    for name in removed:
        REMOVED[name](trainer)
    trainer.train()
    return list(told.values.values())


def apart(some: list[float], others: list[float]) -> float:
    """How far two curves are from each other, step by step."""
    return statistics.fmean(abs(one - other) for one, other in zip(some, others, strict=True))


def small(folder: Path, name: str, seed: int = 5, **train: Any) -> RunConfig:
    return make_run(
        folder,
        train={"steps": 6, "seed": seed} | train,
        optimizer={"name": "adamw", "lr": 1e-3},
        validation={"every": 100},
        checkpoint={"every": 100},
        output={"folder": str(folder / name)},
    )


def compared(curves: Mapping[str, list[float]], plain: list[float], other_seed: list[float]) -> None:
    spread = apart(plain, other_seed)
    found = {name: apart(curve, plain) / spread for name, curve in curves.items()}
    assert spread > 0
    assert {name: share for name, share in found.items() if share > 1} == {}


def test_fast_paths_lose_what_the_plain_one_loses(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", 60)
    plain = losses(small(tmp_path, "plain"), PLAIN)
    other = losses(small(tmp_path, "other", seed=6), PLAIN)
    curves = {name: losses(small(tmp_path, name, **train)) for name, train in PATHS.items()}
    compared(curves, plain, other)
    # Of rounding alone, on so few steps: far within what a seed changes.
    assert all(apart(curve, plain) < 1e-3 for curve in curves.values())


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # of torch, while it compiles
def test_compiled_layers_lose_what_plain_ones_lose(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", 60)
    plain = losses(small(tmp_path, "plain"))
    compiled = losses(small(tmp_path, "compiled", compile=True))
    assert apart(compiled, plain) < 1e-3


def on_luma(shards: Path, folder: Path, seed: int = 0, **train: Any) -> RunConfig:
    return make_run(
        folder,
        data={"shards": str(shards)},
        model={"new": None, "start": "starter"},
        train={"steps": 200, "batch": 64, "seed": seed} | train,
        optimizer={"name": "adamw", "lr": 5e-4, "weight_decay": 0.1},
        objective={"noise": 0.2},
        validation={"every": 1000},
        checkpoint={"every": 1000},
        output={"folder": str(folder)},
    )


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not LUMA.is_dir(), reason="the photos of Luma are not here")
def test_200_steps_on_real_photos_lose_the_same_on_every_path(tmp_path: Path) -> None:
    shards = luma(tmp_path, 0, 0.0).index.folder
    plain, other = (losses(on_luma(shards, tmp_path / f"plain-{seed}", seed), PLAIN) for seed in (0, 1))
    paths = {
        "as it is by default": {},
        "parts": {"micro_batch": 24},
        "recomputed": {"recompute": True},
        "compiled": {"compile": True},
    }
    curves = {name: losses(on_luma(shards, tmp_path / name, **train)) for name, train in paths.items()}
    compared(curves, plain, other)
    print(
        {
            name: f"{apart(curve, plain) / apart(plain, other):.3f} of two seeds' spread"
            for name, curve in curves.items()
        }
    )


def test_a_step_that_does_not_fit_is_cut_until_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shards(tmp_path / "shards", 60)
    whole = losses(small(tmp_path, "whole"))
    run = small(tmp_path, "cut", micro_batch="auto")
    trainer, told = Trainer(run, make_accelerator()), Losses()
    trainer.tracker = told  # type: ignore[assignment]
    holding(monkeypatch, trainer, 3)
    monkeypatch.setattr(Trainer, "validate", lambda self: None)
    trainer.train()
    assert trainer.gradients.parts.count == 4  # of eight photos
    assert apart(list(told.values.values()), whole) < 1e-4


def holding(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, photos: int) -> Trainer:
    """The trainer, on a device that has room for so many."""
    embed = trainer.reader.embed_images

    def small_memory(pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > photos:
            raise torch.OutOfMemoryError(f"no room for more than {photos} photos")
        return embed(pixels)

    monkeypatch.setattr(trainer.reader, "embed_images", small_memory)
    return trainer


def test_a_run_that_goes_on_is_cut_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shards(tmp_path / "shards", 60)
    monkeypatch.setattr(Trainer, "validate", lambda self: None)
    saving: dict[str, Any] = {"every": 3}
    whole, parted = (
        small(tmp_path, name, micro_batch="auto").model_copy(update={"checkpoint": Checkpoints(**saving)})
        for name in ("whole", "parted")
    )
    holding(monkeypatch, Trainer(whole, make_accelerator()), 3).train()
    faults._reached.clear()
    monkeypatch.setenv("FACETCLIP_FAULT", "train.step:5=raise")
    with pytest.raises(RuntimeError, match="a fault was asked for"):
        holding(monkeypatch, Trainer(parted, make_accelerator()), 3).train()
    monkeypatch.delenv("FACETCLIP_FAULT")
    roomier = holding(monkeypatch, Trainer(parted, make_accelerator()), 100)
    roomier.resume()
    roomier.train()
    assert roomier.gradients.parts.count == 4
    ends = [load_checkpoint(Path(run.output.folder) / "checkpoints", warn=pytest.fail) for run in (whole, parted)]
    assert ends[0]
    assert ends[1]
    assert ends[0].state == ends[1].state
    assert all(torch.equal(ends[0].weights[name], weight) for name, weight in ends[1].weights.items())
    tighter = holding(monkeypatch, Trainer(parted, make_accelerator()), 1)
    tighter.resume()
    tighter.state.step = 0
    tighter._settle()
    assert tighter.gradients.parts.count == 8


def test_a_part_is_tried_beside_the_gradients_of_the_one_before() -> None:
    tried: list[int] = []

    def gradients_take_room(part: slice) -> None:
        tried.append(part.stop - part.start)
        if len(tried) > 1 and tried[-2] == tried[-1] and tried[-1] > 2:
            raise RuntimeError("CUDA error: out of memory")
        if tried[-1] == 8:
            raise torch.OutOfMemoryError("no room for a whole batch")

    parts = Parts(None)
    parts.fit(gradients_take_room, 8, 8, torch.device("cpu"))
    assert (parts.count, tried) == (4, [8, 4, 4, 2, 2])

    def broken(_: slice) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        Parts(None).fit(broken, 8, 8, torch.device("cpu"))


def test_what_is_found_to_fit_fits_the_processes_with_a_photo_more() -> None:
    def small_memory(part: slice) -> None:
        if part.stop - part.start > 2:
            raise torch.OutOfMemoryError("no room for more than two photos")

    parts = Parts(None)
    parts.fit(small_memory, 4, 5, torch.device("cpu"))
    assert max(part.stop - part.start for part in (*parts.of(4), *parts.of(5))) == 2
    assert len(parts.of(4)) == len(parts.of(5)), "or processes would wait for each other's last part"
