"""The loop: the same items, losses and weights however it is divided, stopped or launched."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_shop import SHAPE, make_shards

from facetclip.checkpoint import load_checkpoint
from facetclip.config import RunConfig, validated
from facetclip.errors import UserError
from facetclip.feed import Feed
from facetclip.launch import make_accelerator
from facetclip.model import load_model
from facetclip.trainer import Trainer

ROOT = Path(__file__).parents[1]


def make_run(folder: Path, *given: dict[str, dict[str, Any]], **changes: dict[str, Any]) -> RunConfig:
    """A run over the shards in folder/shards, changed as it is `given` and then by `changes`: SGD, so that a wrong
    factor in the gradient shows."""
    table: dict[str, dict[str, Any]] = {
        "data": {"shards": str(folder / "shards")},
        "model": {"new": SHAPE.model_dump()},
        "train": {"steps": 20, "batch": 8, "log_every": 1, "seed": 5},
        "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 0.0},
        "validation": {"every": 10},
        "checkpoint": {"every": 5},
        "output": {"folder": str(folder / "run")},
    }
    for sections in (*given, changes):
        for section, values in sections.items():
            table[section] = table.get(section, {}) | values
    return validated(RunConfig, table, "run.toml")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    make_shards(tmp_path / "shards", 60)
    return tmp_path


class Losses:
    """Stands where MLflow does, and keeps what it is told."""

    def __init__(self) -> None:
        self.values: dict[int, float] = {}

    def metrics(self, step: int, values: dict[str, float]) -> None:
        if "train/loss" in values:
            self.values[step] = values["train/loss"]


def trainer_of(run: RunConfig, told: Losses) -> Trainer:
    trainer = Trainer(run, make_accelerator())
    trainer.tracker = told  # type: ignore[assignment]  # as much of a Tracker as is used
    return trainer


def train(run: RunConfig) -> tuple[dict[int, float], Trainer]:
    told = Losses()
    trainer = trainer_of(run, told)
    trainer.resume()
    trainer.train()
    return told.values, trainer


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_checkpoint(folder / "run" / "checkpoints", warn=pytest.fail)
    assert checkpoint is not None
    return checkpoint.weights


def test_stopping_and_going_on_changes_no_loss_and_no_weight(shop: Path, tmp_path: Path) -> None:
    whole, _ = train(make_run(shop, optimizer={"name": "adamw", "lr": 1e-3}))
    other = tmp_path / "other"
    other.mkdir()
    (other / "shards").symlink_to(shop / "shards")
    run = make_run(other, optimizer={"name": "adamw", "lr": 1e-3})

    class Stopped(Exception):
        pass

    told = Losses()
    trainer = trainer_of(run, told)
    save = trainer.save

    def save_and_stop() -> None:
        save()
        if trainer.state.step == 10:
            raise Stopped

    trainer.save = save_and_stop  # type: ignore[method-assign]  # a kill just after a checkpoint
    with pytest.raises(Stopped):
        trainer.train()
    rest, again = train(run)
    assert again.state.step == 20
    assert sorted(rest) == list(range(11, 21))
    assert {**told.values, **rest} == whole
    ours, theirs = weights_of(shop), weights_of(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_micro_batches_give_the_gradient_of_the_batch(shop: Path) -> None:
    whole, _ = train(make_run(shop, train={"steps": 6}))
    parts, _ = train(make_run(shop, train={"steps": 6, "micro_batch": 3}, output={"folder": str(shop / "parts")}))
    assert whole == pytest.approx(parts, rel=1e-5)


def test_the_best_model_is_written_with_its_schema_and_start(shop: Path) -> None:
    _, trainer = train(make_run(shop))
    reader = load_model(str(shop / "run" / "best"))
    assert reader.schema == trainer.index.schema
    assert reader.card.data_digest == trainer.index.digest
    assert reader.card.metrics["step"] == trainer.state.best_step


def test_a_changed_setting_refuses_to_go_on_and_is_named(shop: Path) -> None:
    train(make_run(shop, train={"steps": 5}))
    with pytest.raises(UserError, match=r"train\.steps was 5, is 9"):
        train(make_run(shop, train={"steps": 9}))
    with pytest.raises(UserError, match=r"optimizer\.lr was 0\.05, is 0\.1"):
        train(make_run(shop, train={"steps": 5}, optimizer={"lr": 0.1}))


def test_changed_data_refuses_to_go_on(shop: Path) -> None:
    train(make_run(shop, train={"steps": 5}))
    make_shards(shop / "shards", 62)
    with pytest.raises(UserError, match=r"data\.digest was"):
        train(make_run(shop, train={"steps": 5}))


def test_a_loss_that_is_no_number_stops_with_advice(shop: Path) -> None:
    with pytest.raises(UserError, match=r"step \d+: the loss is no number in process 0 .*: lower optimizer.lr"):
        train(make_run(shop, optimizer={"name": "sgd", "lr": 1e20, "clip_norm": 0.0}, train={"steps": 20}))


LAUNCHED = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_trainer import make_run, train
folder, out = Path(sys.argv[1]), sys.argv[2]
values, trainer = train(make_run(folder, output={{"folder": out}}))
trainer.accelerator.wait_for_everyone()
if trainer.accelerator.is_main_process:
    Path(out, "losses.json").write_text(json.dumps(values))
trainer.accelerator.end_training()
"""


def launch(shop: Path, processes: int, *, fault: str = "") -> dict[int, float]:
    """The losses of the run under accelerate launch; with `fault` it must be killed there."""
    script, out = shop / "launched.py", shop / f"on_{processes}"
    script.write_text(LAUNCHED.format(tests=str(ROOT / "tests")))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    command += ["--num_processes", str(processes), str(script), str(shop), str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FACETCLIP_FAULT": fault}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if fault:
        assert done.returncode != 0
        return {}
    assert done.returncode == 0, done.stderr[-3000:]
    return {int(step): loss for step, loss in json.loads((out / "losses.json").read_text()).items()}


def test_losses_agree_on_one_and_two_processes(shop: Path) -> None:
    alone, _ = train(make_run(shop))
    together = launch(shop, 2)
    assert sorted(alone) == sorted(together) == list(range(1, 21))
    assert [together[step] for step in alone] == pytest.approx(list(alone.values()), rel=1e-5)


def test_a_run_killed_in_a_save_goes_on_with_the_same_losses_and_weights(shop: Path) -> None:
    whole, _ = train(make_run(shop))
    launch(shop, 1, fault="checkpoint.optimizer.safetensors:3")  # inside the save of step 15
    assert (shop / "on_1" / "checkpoints" / "step-00000010").is_dir()
    rest = launch(shop, 1)
    assert sorted(rest) == list(range(11, 21))
    assert [rest[step] for step in rest] == pytest.approx([whole[step] for step in rest], rel=1e-6)
    killed = load_checkpoint(shop / "on_1" / "checkpoints", warn=pytest.fail)
    assert killed is not None
    for name, weight in weights_of(shop).items():
        assert torch.allclose(killed.weights[name], weight, atol=1e-6), name


@pytest.mark.nightly
def test_losses_agree_on_four_processes(shop: Path) -> None:
    alone, _ = train(make_run(shop))
    together = launch(shop, 4)
    assert [together[step] for step in alone] == pytest.approx(list(alone.values()), rel=1e-5)


def test_an_epoch_is_planned_while_the_one_before_is_trained_on(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed, planned = trainer_of(make_run(shop), Losses()).feed, []
    plan_of = feed._plan_of

    def noted(epoch: int) -> np.ndarray:
        planned.append((epoch, threading.current_thread() is threading.main_thread()))
        return plan_of(epoch)

    monkeypatch.setattr(feed, "_plan_of", noted)
    steps = feed.steps_per_epoch
    first, last = steps + 1, 4 * steps  # from within the second epoch to the end of the fourth
    rows = [rows for step, rows in feed.planned(first, last)]
    assert planned == [(1, True), (2, False), (3, False)]
    assert np.array_equal(rows, [feed.rows[plan_of(step // steps)[step % steps]] for step in range(first, last)])


def test_ranks_share_each_global_batch_without_overlap(shop: Path) -> None:
    trainer = Trainer(make_run(shop), make_accelerator())
    for step, rows in trainer.feed.planned(0, 9):
        for world in (2, 3, 4):
            feeds = [Feed(trainer.run, trainer.index, trainer.reader, (rank, world)) for rank in range(world)]
            portions = [feed.portion(trainer.inputs, (step, rows)) for feed in feeds]
            joined = np.concatenate([portion.batch.rows for portion in portions])
            assert np.array_equal(np.sort(joined), np.sort(rows))
            assert {portion.count for portion in portions} == {
                feeds[0].objective.count(trainer.index.label_matrix(rows))
            }
