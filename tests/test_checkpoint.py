import json
import os
import signal
from pathlib import Path

import pytest
import torch

from facetclip.checkpoint import (
    Checkpoint,
    TrainState,
    check_science,
    load_checkpoint,
    save_checkpoint,
)
from facetclip.engine import optimizer_tensors, restore_optimizer
from facetclip.errors import UserError

FILES = ["weights.safetensors", "optimizer.safetensors", "average.safetensors", "state.json", "manifest.json"]


def checkpoint(step: int) -> Checkpoint:
    tensors = {"layer.weight": torch.full((3, 2), float(step)), "logit_scale": torch.ones(1)}
    return Checkpoint(TrainState(step, 0.5, step), tensors, {"0.exp_avg": torch.zeros(3, 2)}, {"train.batch": 8})


def loaded_step(folder: Path) -> int:
    found = load_checkpoint(folder, warn=lambda line: None)
    return found.state.step if found else 0


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(5), keep=2)
    found = load_checkpoint(tmp_path, warn=pytest.fail)
    assert found is not None
    assert found.state == TrainState(5, 0.5, 5)
    assert torch.equal(found.weights["layer.weight"], torch.full((3, 2), 5.0))
    assert found.science == {"train.batch": 8}


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save_checkpoint(tmp_path, checkpoint(step), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000015", "step-00000020"]


@pytest.mark.parametrize("keep", [1, 2])
def test_what_was_just_saved_stays_where_a_later_one_was_damaged(tmp_path: Path, keep: int) -> None:
    (save_checkpoint(tmp_path, checkpoint(200), keep=keep) / "state.json").unlink()
    for step in (50, 100, 150):
        save_checkpoint(tmp_path, checkpoint(step), keep=keep)
        assert loaded_step(tmp_path) == step
    assert len(list(tmp_path.iterdir())) == keep


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_file_is_noticed_and_the_checkpoint_before_is_used(tmp_path: Path, name: str, damage: str) -> None:
    save_checkpoint(tmp_path, checkpoint(5), keep=2)
    path = save_checkpoint(tmp_path, checkpoint(10), keep=2) / name
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-3])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    said: list[str] = []
    found = load_checkpoint(tmp_path, warn=said.append)
    assert found is not None
    assert found.state.step == 5
    assert "step-00000010: damaged" in said[0]


@pytest.mark.parametrize("place", [*(f"checkpoint.{name}" for name in FILES[:4]), "checkpoint.committed"])
def test_a_kill_at_any_file_leaves_a_whole_checkpoint(tmp_path: Path, place: str) -> None:
    save_checkpoint(tmp_path, checkpoint(5), keep=1)
    child = os.fork()
    if child == 0:
        os.environ["FACETCLIP_FAULT"] = f"{place}:1"
        save_checkpoint(tmp_path, checkpoint(10), keep=1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert loaded_step(tmp_path) == (10 if place == "checkpoint.committed" else 5)
    save_checkpoint(tmp_path, checkpoint(10), keep=1)
    assert loaded_step(tmp_path) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_a_checkpoint_holds_tensors_and_json_only(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, checkpoint(5), keep=1)
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    assert json.loads((path / "state.json").read_text())["state"]["step"] == 5


def test_every_changed_setting_is_named(tmp_path: Path) -> None:
    then = {"train.batch": 8, "optimizer.lr": 0.1, "data.digest": "a"}
    check_science(then, dict(then), tmp_path)
    with pytest.raises(UserError) as error:
        check_science(then, {"train.batch": 16, "optimizer.lr": 0.1, "data.digest": "b"}, tmp_path)
    assert "data.digest was 'a', is 'b'; train.batch was 8, is 16" in str(error.value)


def test_an_optimizers_state_goes_where_the_weights_are() -> None:
    """Counts of steps, too: ours and torch's fused optimizers count on the device."""
    module = torch.nn.ParameterDict({"weight": torch.nn.Parameter(torch.ones(4, 3, device="meta"))})
    optimizer = torch.optim.AdamW(module.values(), fused=True)
    restore_optimizer(optimizer, module, {"weight.step": torch.tensor(3.0), "weight.exp_avg": torch.ones(4, 3)})
    assert {each.device.type for each in optimizer.state[module["weight"]].values()} == {"meta"}


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_goes_on_as_if_it_had_not_stopped(kind: type[torch.optim.Optimizer]) -> None:
    def stepped(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, seed: int) -> None:
        weight.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.step()

    weight = torch.nn.Parameter(torch.ones(4, 3))
    module = torch.nn.ParameterDict({"weight": weight})
    optimizer = kind([weight], lr=0.1)  # type: ignore[call-arg]  # both take a rate
    stepped(optimizer, weight, 1)
    other = torch.nn.Parameter(weight.detach().clone())
    again = kind([other], lr=0.1)  # type: ignore[call-arg]  # both take a rate
    stored = {name: value.clone() for name, value in optimizer_tensors(optimizer, module).items()}  # as a file would
    restore_optimizer(again, torch.nn.ParameterDict({"weight": other}), stored)
    stepped(optimizer, weight, 2)
    stepped(again, other, 2)
    assert torch.equal(weight, other)
