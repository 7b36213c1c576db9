"""A launch of a run: what it refuses, and what it leaves of the launch before."""

import json
import os
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from fleet import launch_fleet
from small_shop import make_reader, make_shards
from test_trainer import make_run

from facetclip import faults, runs
from facetclip.attempts import MOST
from facetclip.cli import main
from facetclip.config import RunConfig
from facetclip.errors import UserError
from facetclip.interruption import MARKER, REQUEUE, Interrupted, listening
from facetclip.model import load_model, save_model
from facetclip.runs import run_training
from facetclip.tracking import connector
from facetclip.trainer import Trainer

OLD = ("best/model.safetensors", "model/model.safetensors", "checkpoints/step-00000004/manifest.json", "goodput.json")


@pytest.fixture
def shop(tmp_path: Path, store: str) -> Path:
    index = make_shards(tmp_path / "shards", 60, validation=True)
    save_model(make_reader(3, index.schema), tmp_path / "start")
    return tmp_path


def run_of(shop: Path, **changes: dict[str, Any]) -> RunConfig:
    sections: dict[str, dict[str, Any]] = {
        "model": {"start": str(shop / "start"), "new": None},
        "train": {"steps": 4},
        "tuning": {"mode": "probe"},
        "validation": {"every": 2},
    }
    return make_run(shop, sections, **changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sampling": {"over": ["nope"]}}, "no attribute 'nope'"),
        ({"data": {"shards": "nowhere"}}, "nowhere"),
        ({"model": {"start": "nothing/here"}}, "nothing/here"),
        ({"train": {"precision": "bf16"}}, "train.precision"),
    ],
    ids=["attribute", "shards", "start", "precision"],
)
def test_starting_over_with_a_mistake_leaves_the_old_run_as_it_was(
    shop: Path, changes: dict[str, dict[str, Any]], complaint: str
) -> None:
    run_training(run_of(shop))
    before = {name: (shop / "run" / name).read_bytes() for name in OLD}
    with pytest.raises(UserError, match=complaint):
        run_training(run_of(shop, **changes), fresh=True)
    assert {name: (shop / "run" / name).read_bytes() for name in OLD} == before


def test_a_run_cannot_start_over_from_what_it_would_delete(shop: Path) -> None:
    outcome = run_training(run_of(shop))
    with pytest.raises(UserError, match=r"model\.start = '.*best'.*--fresh deletes"):
        run_training(run_of(shop, model={"start": str(outcome.result.best)}), fresh=True)
    assert outcome.result.best.is_dir()


def test_a_run_that_starts_over_takes_nothing_from_the_one_before(shop: Path) -> None:
    first = run_training(run_of(shop))
    assert first.result.step
    (shop / "run" / "stacks.txt").touch()
    again = run_training(run_of(shop, train={"steps": 2, "seed": 1}), fresh=True)
    assert [path.name for path in (shop / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert again.result.step <= 2
    assert not (shop / "run" / "stacks.txt").exists()


def stop_in_a_step(monkeypatch: pytest.MonkeyPatch, run: RunConfig, error: type[BaseException]) -> None:
    def stopped(self: Trainer, portion: Any) -> Any:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", stopped)
        with pytest.raises(error):
            run_training(run)


def test_refused_and_interrupted_starts_are_no_deaths(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"steps": 4}
    run_training(run_of(shop, train=steps))
    for seed in (1, 2, 3, 4):
        with pytest.raises(UserError, match=r"cannot resume: train.seed was 5"):
            run_training(run_of(shop, train=steps | {"seed": seed}))
    run_training(run_of(shop, train=steps))
    for _ in range(4):
        stop_in_a_step(monkeypatch, run_of(shop, output={"folder": str(shop / "stopped")}), KeyboardInterrupt)
    run_training(run_of(shop, output={"folder": str(shop / "stopped")}))


def test_errors_in_training_are_deaths(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(shop)
    for _ in range(3):
        stop_in_a_step(monkeypatch, run, RuntimeError)
    with pytest.raises(UserError, match="3 starts in a row died at step 0"):
        run_training(run)


def test_a_refused_start_is_no_run_in_mlflow(shop: Path, store: str) -> None:
    run_training(run_of(shop))
    with pytest.raises(UserError, match="cannot resume"):
        run_training(run_of(shop, train={"seed": 1}))
    client = connector(store)()
    found = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert [each.info.status for each in found] == ["FINISHED"]


@pytest.mark.parametrize("place", ["run.begun", "run.trained"])
def test_a_signal_before_the_first_step_or_after_the_last_ends_the_run_and_loses_nothing(
    shop: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    run, folder = run_of(shop), shop / "run"
    monkeypatch.setenv("FACETCLIP_FAULT", f"{place}:1=usr1")
    for _ in range(MOST + 1):  # however often: it is no death of the run
        monkeypatch.setattr(faults, "_reached", Counter())
        with pytest.raises(Interrupted) as stop:
            run_training(run)
        assert (folder / MARKER).read_text() == f"{stop.value}\n"
        assert not (folder / "model").exists()
    assert sorted((folder / "checkpoints").glob("step-*")) == ([] if place == "run.begun" else [folder / OLD[2][:-14]])
    monkeypatch.setenv("FACETCLIP_FAULT", "")
    interrupted = run_training(run)
    assert not (folder / MARKER).exists()
    weights = load_model(str(interrupted.model)).state_dict()
    plain = load_model(str(run_training(run, fresh=True).model)).state_dict()
    assert all(torch.equal(weight, plain[name]) for name, weight in weights.items())


@pytest.mark.parametrize("place", ["run.begun", "run.trained"])
def test_a_signal_to_one_of_several_there_is_told_to_the_launch(shop: Path, place: str) -> None:
    run = run_of(shop)
    ended = launch_fleet(shop / "fleet", 2, lambda: finished(run), fault=f"{place}:1=usr1@1", asked=True)
    assert ended.codes[1] == REQUEUE, ended.errors
    assert (shop / "run" / MARKER).exists()
    assert launch_fleet(shop / "fleet", 2, lambda: finished(run)).codes == [0, 0]
    assert not (shop / "run" / MARKER).exists()
    alone = load_model(str(run_training(run_of(shop, output={"folder": str(shop / "alone")})).model))
    together = load_model(str(shop / "run" / "model"))
    assert together.card.metrics == pytest.approx(alone.card.metrics, rel=1e-4)  # each reads half of the validation


@pytest.mark.parametrize("place", ["run.begun", "run.trained"])
def test_the_death_of_another_process_is_no_wish_to_go_on(shop: Path, place: str) -> None:
    ended = launch_fleet(shop / "fleet", 2, lambda: finished(run_of(shop)), fault=f"{place}:1=exit@1", asked=True)
    assert all(code not in (0, REQUEUE) for code in ended.codes), ended.errors
    assert not (shop / "run" / MARKER).exists()


def finished(run: RunConfig) -> int:
    run_training(run)
    return 0


def test_a_signal_before_the_run_listens_is_heard_when_it_does(shop: Path) -> None:
    with listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Interrupted):
            run_training(run_of(shop))
    assert (shop / "run" / MARKER).exists()


def test_a_wish_that_somebody_swallowed_is_heard_in_the_end(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def heedless(*_: Any) -> None:
        with suppress(BaseException):
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(runs, "file_results", heedless)
    with pytest.raises(Interrupted):
        run_training(run_of(shop))
    assert (shop / "run" / MARKER).exists()


def test_who_goes_on_sending_a_signal_disturbs_nothing_after_the_first() -> None:
    with listening(at_once=True) as outer:
        with listening() as inner:
            os.kill(os.getpid(), signal.SIGUSR1)
        assert inner.wanted
        os.kill(os.getpid(), signal.SIGTERM)
        assert outer.wanted


def test_the_command_says_after_a_signal_that_it_goes_on(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = run_of(shop).model_dump(mode="json", exclude_none=True)
    lines = [
        f"{section}.{key} = {json.dumps(each)}\n" for section, keys in sections.items() for key, each in keys.items()
    ]
    (shop / "run.toml").write_text("".join(lines))
    monkeypatch.setenv("FACETCLIP_FAULT", "run.begun:1=usr1")
    monkeypatch.setattr(faults, "_reached", Counter())
    assert main(["train", str(shop / "run.toml")]) == REQUEUE
    assert capsys.readouterr().err.endswith("facetclip train: interrupted; the same command goes on from there\n")
