"""Two processes under accelerate launch against one: the same gradients, whatever labels each one sees."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fleet import launch_fleet
from safetensors.torch import load_file, save_file
from small_shop import make_labels, make_shards
from test_trainer import make_run

from facetclip.collectives import gather_rows, join_processes, join_shares, share_of
from facetclip.launch import make_accelerator
from facetclip.trainer import Trainer

ROOT = Path(__file__).parents[1]
PLAIN: dict[str, Any] = {}
CASES: dict[str, dict[str, Any]] = {
    "uneven labels": PLAIN,
    "one rank without any": PLAIN,
    "weights and adjustment": {"weights": {"sleeve": 2.0}, "logit_adjustment": 1.0, "label_smoothing": 0.1},
    "captions, softmax": {"contrastive": 0.7, "form": "softmax"},
    "captions, sigmoid": {"contrastive": 0.7, "form": "sigmoid", "attributes": 0.0},
}
PROBED = {"tuning": {"mode": "probe"}}
STEPS = 3
pytestmark = pytest.mark.xdist_group("distributed")  # one worker, so that one launch serves all


def batches(case: str, trainer: Trainer) -> Iterator[tuple[int, np.ndarray]]:
    """Global batches of eight, whose second halves are one process's of two."""
    labels = trainer.index.label_matrix(np.arange(len(trainer.index)))
    known = (labels >= 0).sum(axis=1)
    rich, bare = np.flatnonzero(known >= 2), np.flatnonzero(known == 0)
    for step in range(STEPS):
        rows = rich[8 * step : 8 * step + 8].copy()
        if case == "one rank without any":
            rows[4:] = bare[4 * step : 4 * step + 4]
        elif case == "uneven labels":
            rows[4:7] = bare[:3]
        yield step, rows


def gradients(folder: Path, case: str, name: str) -> dict[str, torch.Tensor]:
    """The gradients of `STEPS` steps of SGD on the case's batches."""
    run = make_run(
        folder,
        train={"steps": STEPS, "batch": 8},
        optimizer={"lr": 0.05, "clip_norm": 0.0, "warmup_steps": 0},
        objective=CASES[case],
        sampling={"strategy": "natural"},
        output={"folder": str(folder / f"{name} {case}")},
    )
    trainer = Trainer(run, make_accelerator())
    found = {}
    for portion in (trainer.feed.portion(trainer.inputs, planned) for planned in batches(case, trainer)):
        trainer.gradients.of(portion)
        for name, weight in trainer.reader.named_parameters():
            if weight.grad is not None:
                found[f"{portion.step} {name}"] = weight.grad.clone()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
    return found


def features_and_gathers(folder: Path) -> dict[str, torch.Tensor]:
    """Features that two processes computed together, and what their exchanges give."""
    run = make_run(folder, **PROBED, output={"folder": str(folder / f"probed on {os.environ.get('WORLD_SIZE', '1')}")})
    trainer = Trainer(run, make_accelerator())
    share = share_of(np.arange(7))
    joined = join_shares(torch.from_numpy(share).float()[:, None], 7)
    return {"features": trainer.inputs.features, "joined": joined}  # type: ignore[attr-defined]  # probe: a FeatureReader


def patience() -> timedelta:
    """For how long this process waits for others in a collective."""
    groups: Any = torch.distributed.distributed_c10d
    return groups._get_default_group()._get_backend(torch.device("cpu")).options._timeout


def main(folder: Path) -> None:
    """What each launched process does."""
    for case in CASES:
        found = gradients(folder, case, "both")
        if os.environ["RANK"] == "0":
            save_file(found, folder / f"{case}.safetensors")
    (folder / f"patience {os.environ['RANK']}.json").write_text(json.dumps(patience().total_seconds()))
    gathered = features_and_gathers(folder)
    rows = torch.full((2, 3), float(os.environ["RANK"]) + 1, requires_grad=True)
    (gather_rows(rows) * torch.arange(4.0)[:, None]).sum().backward()
    assert rows.grad is not None
    Path(folder, f"gradient {os.environ['RANK']}.json").write_text(json.dumps(rows.grad[:, 0].tolist()))
    if os.environ["RANK"] == "0":
        save_file(gathered, folder / "gathered.safetensors")
    make_accelerator().end_training()


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launched")
    labels = make_labels(120)
    bare = np.arange(120) % 5 == 0
    make_shards(folder / "shards", 120, labels={name: np.where(bare, -1, column) for name, column in labels.items()})
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    command += ["--num_processes", "2", str(Path(__file__)), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("case", CASES)
def test_the_gradients_are_those_of_one_process(launched: Path, case: str) -> None:
    alone, together = gradients(launched, case, "alone"), load_file(launched / f"{case}.safetensors")
    assert alone.keys() == together.keys()
    largest = max(gradient.abs().max().item() for gradient in alone.values())
    assert largest > 0.05, "gradients so small would hide a wrong factor"
    assert max((alone[name] - together[name]).abs().max().item() for name in alone) <= 1e-6 * max(1.0, largest)


def test_features_computed_together_are_those_of_one_process(launched: Path) -> None:
    together, alone = load_file(launched / "gathered.safetensors"), features_and_gathers(launched)
    assert torch.allclose(together["features"], alone["features"], atol=1e-6)
    assert together["joined"][:, 0].tolist() == list(range(7))


def test_the_gradient_through_the_gather_is_summed_over_processes(launched: Path) -> None:
    """Each process weighs the four gathered rows with 0, 1, 2 and 3; both have the same loss, so all counts twice."""
    assert json.loads((launched / "gradient 0.json").read_text()) == [0.0, 2.0]
    assert json.loads((launched / "gradient 1.json").read_text()) == [4.0, 6.0]


def test_processes_wait_for_hours_while_the_first_measures_and_registers(launched: Path) -> None:
    for rank in (0, 1):
        assert json.loads((launched / f"patience {rank}.json").read_text()) >= 3600 * 3


def test_so_do_those_of_a_launch_that_may_be_restarted(tmp_path: Path) -> None:
    def join_as_a_launcher_has_it() -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        told = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= told | {"TORCHELASTIC_MAX_RESTARTS": "1"}
        torch.distributed.destroy_process_group()
        join_processes("gloo")
        assert patience() >= timedelta(hours=3)

    ended = launch_fleet(tmp_path, 1, join_as_a_launcher_has_it)
    assert ended.codes == [0], ended.errors


if __name__ == "__main__":
    main(Path(sys.argv[1]))
