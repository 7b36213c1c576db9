"""Every engine takes the same steps and leaves the same model; a run may go from one to another."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from fleet import FSDP2, launch_fleet
from small_shop import make_shards
from test_trainer import Losses, make_run

from facetclip.batches import PixelReader
from facetclip.config import RunConfig
from facetclip.engine import make_accelerator
from facetclip.index import open_index
from facetclip.interruption import REQUEUE, Interrupted
from facetclip.model import load_model
from facetclip.runs import fit
from facetclip.trainer import Trainer
from facetclip.validation import logits_of

ROOT = Path(__file__).parents[1]
ENGINES = {"alone": ("ddp", 1), "ddp": ("ddp", 2), "fsdp2": ("fsdp2", 2)}
pytestmark = pytest.mark.xdist_group("engines")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    make_shards(folder / "shards", 60, validation=True)
    Trainer(make_run(folder, output={"folder": str(folder / "warm")}), make_accelerator())
    return folder


def work_of(run: RunConfig) -> Callable[[], int]:
    def work() -> int:
        trainer = Trainer(run, make_accelerator())
        told = Losses()
        trainer.tracker = told  # type: ignore[assignment]  # as much of a Tracker as is used
        try:
            fit(trainer)
        except Interrupted:
            return REQUEUE
        finally:
            if trainer.accelerator.is_main_process:
                path = Path(run.output.folder) / "losses.json"
                known = json.loads(path.read_text()) if path.exists() else {}
                path.write_text(json.dumps(known | told.values))
        return 0

    return work


def launch(run: RunConfig, engine: str, fault: str = "") -> list[int]:
    kind, world = ENGINES[engine]
    folder = Path(run.output.folder) / "fleet"
    ended = launch_fleet(folder, world, work_of(run), engine=kind, fault=fault)
    assert fault or ended.codes == [0] * world, ended.errors
    return ended.codes


@pytest.mark.parametrize("name", ["cpu", "ddp", "multi_node", "fsdp2"])
def test_the_launcher_reads_the_configurations(name: str) -> None:
    arguments = ["--config_file", str(ROOT / "accelerate_configs" / f"{name}.yaml"), "--num_processes", "2", "train.py"]
    asked, *_ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    environment = prepare_multi_gpu_env(asked)
    assert environment["ACCELERATE_MIXED_PRECISION"] == ("no" if name == "cpu" else "bf16")
    assert FSDP2.items() <= environment.items() if name == "fsdp2" else "ACCELERATE_USE_FSDP" not in environment


def losses(run: RunConfig) -> list[float]:
    stored = json.loads((Path(run.output.folder) / "losses.json").read_text())
    assert list(map(int, stored)) == list(range(1, len(stored) + 1))
    return list(stored.values())


def scores(run: RunConfig, shop: Path) -> np.ndarray:
    index = open_index(shop / "shards")
    reader = load_model(str(Path(run.output.folder) / "model"))
    pixels = PixelReader(index, reader.preprocessing.size, reader.preprocessing.fit)
    return logits_of(reader, pixels, index.rows("test")).numpy()


def run_of(shop: Path, name: str, **changes: dict[str, Any]) -> RunConfig:
    return make_run(shop, output={"folder": str(shop / name)}, **changes)


@pytest.fixture(scope="module")
def alone(shop: Path) -> RunConfig:
    run = run_of(shop, "alone")
    launch(run, "alone")
    return run


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "alone"])
def test_an_engine_takes_the_steps_and_leaves_the_model_of_one_process(
    shop: Path, alone: RunConfig, engine: str
) -> None:
    run = run_of(shop, engine)
    launch(run, engine)
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    assert np.allclose(scores(run, shop), scores(alone, shop), atol=1e-5)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "alone"])
def test_stopped_and_resumed_an_engine_changes_no_bit(shop: Path, engine: str) -> None:
    adam = {"optimizer": {"name": "adamw", "lr": 1e-3}, "train": {"average": 0.5}}
    whole, parted = run_of(shop, f"{engine} whole", **adam), run_of(shop, f"{engine} parted", **adam)
    launch(whole, engine)
    assert launch(parted, engine, fault="train.step:7=usr1@1") == [REQUEUE, REQUEUE]
    launch(parted, engine)
    assert losses(parted) == losses(whole)
    assert np.array_equal(scores(parted, shop), scores(whole, shop))


@pytest.mark.parametrize(("first", "then"), [("fsdp2", "alone"), ("alone", "fsdp2"), ("ddp", "fsdp2")])
def test_a_run_may_go_on_under_another_engine(shop: Path, alone: RunConfig, first: str, then: str) -> None:
    run = run_of(shop, f"{first} to {then}")
    assert launch(run, first, fault="train.step:9=term@0") == [REQUEUE] * ENGINES[first][1]
    launch(run, then)
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    assert np.allclose(scores(run, shop), scores(alone, shop), atol=1e-5)


@pytest.mark.parametrize("mode", ["last_blocks", "image_tower", "lora"])
def test_sharded_modes_learn_as_one_process_does(shop: Path, mode: str) -> None:
    found = []
    for engine in ("alone", "fsdp2"):
        run = run_of(shop, f"{mode} {engine}", tuning={"mode": mode, "blocks": 1}, train={"steps": 6})
        launch(run, engine)
        found.append((losses(run), scores(run, shop)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert np.allclose(found[0][1], found[1][1], atol=1e-5)
    assert torch.tensor(found[0][1]).isfinite().all()
