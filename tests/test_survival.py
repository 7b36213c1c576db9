"""What a training survives: kills, signals, full disks, numbers that are none, peers that crash or freeze."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from fleet import Ended, launch_fleet
from small_shop import make_shards
from test_trainer import make_run

import facetclip.agreement as agreement_module
import facetclip.checkpoint as checkpoint_module
import facetclip.trainer as trainer_module
import facetclip.validation as validation_module
from facetclip.attempts import attempt
from facetclip.batches import Batch
from facetclip.checkpoint import Checkpoint, load_checkpoint
from facetclip.config import RunConfig
from facetclip.errors import UserError
from facetclip.goodput import RECORD as GOODPUT
from facetclip.goodput import Goodput
from facetclip.interruption import MARKER, REQUEUE, Interrupted
from facetclip.launch import make_accelerator
from facetclip.lease import LEASE, RunLease
from facetclip.progress import STACKS, STUCK, Progress, beats
from facetclip.trainer import Trainer
from facetclip.validation import Judgement

ROOT = Path(__file__).parents[1]
STEPS = 12
LAUNCHED = """
import sys
from pathlib import Path
from facetclip.config import RunConfig
from facetclip.interruption import REQUEUE, Interrupted
from facetclip.runs import run_training
try:
    run_training(RunConfig.model_validate_json(Path(sys.argv[1]).read_text()))
except Interrupted:
    sys.exit(REQUEUE)
"""
pytestmark = pytest.mark.xdist_group("survival")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("survival")
    make_shards(folder / "shards", 60)
    Trainer(run_of(folder, "warm"), make_accelerator())  # imports what the processes would each import anew
    return folder


def run_of(shop: Path, name: str, **changes: dict[str, Any]) -> RunConfig:
    sections: dict[str, dict[str, Any]] = {
        "train": {"steps": STEPS},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "validation": {"every": 6},
        "checkpoint": {"every": 3},
        "output": {"folder": str(shop / name)},
    }
    return make_run(shop, sections, **changes)


def training(run: RunConfig) -> Callable[[], int]:
    """What each process does; a line for each step and photo in `items-RANK`, as the update is done."""

    def work() -> int:
        trainer = Trainer(run, make_accelerator())
        trainer.resume()
        step = trainer.train_step

        def logged(portion: Any) -> Any:
            measured = step(portion)
            path = Path(run.output.folder) / f"items-{trainer.accelerator.process_index}.jsonl"
            with path.open("a") as file:
                file.write(json.dumps([portion.step, portion.batch.rows.tolist()]) + "\n")
            return measured

        trainer.train_step = logged  # type: ignore[method-assign]
        try:
            trainer.train()
        except Interrupted:
            return REQUEUE
        return 0

    return work


def launch(run: RunConfig, world: int, fault: str = "", seconds: float = 120) -> Ended:
    return launch_fleet(Path(run.output.folder) / "fleet", world, training(run), fault=fault, seconds=seconds)


def items(run: RunConfig, world: int) -> dict[int, list[int]]:
    """Step -> the photos of its last time, over all processes."""
    joined: dict[int, list[int]] = {}
    for rank in range(world):
        lines = (Path(run.output.folder) / f"items-{rank}.jsonl").read_text().splitlines()
        for step, rows in dict(json.loads(line) for line in lines).items():
            joined[step] = sorted([*joined.get(step, []), *rows])
    return joined


def end_of(run: RunConfig) -> Checkpoint:
    checkpoint = load_checkpoint(Path(run.output.folder) / "checkpoints", warn=pytest.fail)
    assert checkpoint is not None
    assert checkpoint.state.step == STEPS
    return checkpoint


def assert_same(left: Checkpoint, right: Checkpoint) -> None:
    for one, other in ((left.weights, right.weights), (left.optimizer, right.optimizer)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(shop: Path) -> dict[int, RunConfig]:
    """Uninterrupted runs, by the number of processes."""
    runs = {world: run_of(shop, f"whole on {world}") for world in (1, 2, 4)}
    for world, run in runs.items():
        assert launch(run, world).codes == [0] * world
    return runs


def killed_and_going_on(shop: Path, name: str, world: int, kills: list[str]) -> RunConfig:
    run = run_of(shop, name)
    for kill in kills:
        codes = launch(run, world, kill).codes
        assert any(codes), kill
    ended = launch(run, world)
    assert ended.codes == [0] * world, ended.errors
    return run


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a1_kills_at_random_steps_change_no_bit(shop: Path, whole: dict[int, RunConfig], world: int) -> None:
    draw = random.Random(world)
    kills = [f"train.step:{draw.randint(1, 5)}=kill@{draw.randrange(world)}" for _ in range(3)]
    run = killed_and_going_on(shop, f"killed on {world}", world, kills)
    assert_same(end_of(run), end_of(whole[world]))
    assert items(run, world) == items(whole[world], world)


def test_a3_kills_in_later_epochs(shop: Path, whole: dict[int, RunConfig]) -> None:
    run = killed_and_going_on(shop, "later", 2, ["train.step:8=kill@1", "train.step:3=kill@0", "train.step:4=kill@1"])
    assert_same(end_of(run), end_of(whole[2]))


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize("world", [1, 2, 4])
def test_a1_many_kills(shop: Path, tmp_path: Path, world: int, seed: int) -> None:
    draw = random.Random(1000 * world + seed)
    uninterrupted = run_of(shop, f"whole on {world}")
    if not (Path(uninterrupted.output.folder) / "checkpoints").exists():
        launch(uninterrupted, world)
    kills = [f"train.step:{draw.randint(1, 6)}=kill@{draw.randrange(world)}" for _ in range(draw.randint(1, 2))]
    run = killed_and_going_on(shop, f"many {world} {seed}", world, kills)
    assert_same(end_of(run), end_of(uninterrupted))
    assert items(run, world) == items(uninterrupted, world)


def test_a4_another_number_of_processes_takes_the_same_photos(shop: Path) -> None:
    plain = {"name": "sgd", "lr": 0.05}  # AdamW makes noise of the gradients that are zero but for rounding
    run, reference = run_of(shop, "elastic", optimizer=plain), run_of(shop, "elastic alone", optimizer=plain)
    assert launch(reference, 1).codes == [0]
    assert any(launch(run, 2, "train.step:5=kill@1").codes)
    assert any(launch(run, 1, "train.step:5").codes)
    assert launch(run, 4).codes == [0] * 4
    last, right = end_of(run), end_of(reference)
    for name, weight in right.weights.items():
        assert torch.allclose(last.weights[name], weight, rtol=1e-5, atol=1e-6), name
    assert last.state.best == pytest.approx(right.state.best, rel=1e-5)
    planned = Trainer(run, make_accelerator()).feed.planned(0, STEPS)
    rows = {step: sorted(batch.tolist()) for step, batch in planned}
    assert {step: taken for step, taken in items(run, 4).items() if step >= 6} == {s: rows[s] for s in range(6, STEPS)}


SCIENCE = {
    "train.steps": {"steps": 13},
    "train.batch": {"batch": 4},
    "train.seed": {"seed": 6},
    "train.average": {"average": 0.5},
    "tuning.layer_decay": {"layer_decay": 0.9},
    "objective.noise": {"noise": 0.1},
    "optimizer.lr": {"lr": 2e-3},
    "sampling.strategy": {"strategy": "natural"},
    "augment.flip": {"flip": False},
    "validation.every": {"every": 4},
}


@pytest.mark.parametrize("field", list(SCIENCE))
def test_a5_changed_science_is_refused_by_name_and_can_be_let_through(
    shop: Path, whole: dict[int, RunConfig], field: str
) -> None:
    section, keys = field.partition(".")[0], SCIENCE[field]
    trainer = Trainer(run_of(shop, "whole on 1", **{section: keys}), make_accelerator())
    with pytest.raises(UserError, match=rf"cannot resume: .*{field} was .*--allow"):
        trainer.resume()
    trainer.resume(allow=[field, "model.digest"])  # a new model is drawn by the seed
    assert trainer.state.step == STEPS


def test_a5_processes_that_see_different_checkpoints_are_refused(shop: Path) -> None:
    run, other = run_of(shop, "one machine's"), run_of(shop, "another machine's")
    assert launch(run, 1, "train.step:5").codes == [-signal.SIGKILL]

    def work() -> None:
        here = run if os.environ["RANK"] == "0" else other
        Trainer(here, make_accelerator()).resume()

    ended = launch_fleet(shop / "unshared", 2, work)
    assert ended.codes == [1, 1]
    for error in ended.errors:
        assert "processes see different checkpoints (steps 3, none); all need the same run folder" in error


def test_a5_changed_data_is_refused(shop: Path, whole: dict[int, RunConfig], tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", 61)
    run = run_of(shop, "whole on 1", data={"shards": str(tmp_path / "shards")})
    with pytest.raises(UserError, match=r"data.digest was"):
        Trainer(run, make_accelerator()).resume()


@pytest.mark.parametrize(
    "faults",
    [
        "train.step:4=term@0",
        "train.step:4=usr1@1",
        "train.step:4=term@0,train.step:4=usr1@1",
        "train.step:3=usr1@0,train.step:4=term@0",
        "checkpoint.weights.safetensors:1=term@0",
        "checkpoint.committed:1=usr1@0",
        "train.step:4=term@0,checkpoint.weights.safetensors:2=term@0",
        "train.step:4=usr1@1,checkpoint.optimizer.safetensors:2=term@0",
    ],
)
def test_a6_signals_end_all_processes_at_one_step(shop: Path, whole: dict[int, RunConfig], faults: str) -> None:
    run = run_of(shop, f"signalled {faults}")
    assert launch(run, 2, faults).codes == [REQUEUE, REQUEUE]
    steps = {beat.step for beat in beats(Path(run.output.folder)).values()}
    assert len(steps) == 1
    saved = sorted(path.name for path in (Path(run.output.folder) / "checkpoints").glob("step-*"))
    assert saved[-1] == f"step-{steps.pop():08d}"
    assert launch(run, 2).codes == [0, 0]
    assert_same(end_of(run), end_of(whole[2]))


def test_a6_a_signal_between_two_readings_ends_all_at_the_next(shop: Path, whole: dict[int, RunConfig]) -> None:
    run = run_of(shop, "signalled between", train={"log_every": 5}, checkpoint={"every": 100})
    quick = work_at_any_pace(training(run))
    assert launch_fleet(shop / "between", 2, quick, fault="train.step:7=term@1").codes == [REQUEUE, REQUEUE]
    assert {beat.step for beat in beats(Path(run.output.folder)).values()} == {10}
    saved = load_checkpoint(Path(run.output.folder) / "checkpoints", warn=pytest.fail)
    assert saved is not None
    assert saved.state.step == 10
    assert launch_fleet(shop / "between", 2, quick).codes == [0, 0]
    assert_same(end_of(run), end_of(whole[2]))


def work_at_any_pace(work: Callable[[], int]) -> Callable[[], int]:
    """The same with steps that are read by the log alone, however slow this machine is."""

    def quick() -> int:
        agreement_module.WITHIN = 1e9
        return work()

    return quick


def test_a6_a_process_that_cannot_reach_its_next_step_leaves_by_itself(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACETCLIP_GRACE", "1")
    run = run_of(shop, "grace")
    assert launch(run, 2, "train.step:3=term@0,train.step:3=hang@1").codes == [REQUEUE, -signal.SIGKILL]
    assert (Path(run.output.folder) / MARKER).exists()


def test_a6_under_the_launcher_a_signal_leaves_a_marker_and_the_same_command_goes_on(shop: Path) -> None:
    run = run_of(shop, "launched", train={"steps": 400}, checkpoint={"every": 400}, validation={"every": 400})
    script = shop / "launched.py"
    script.write_text(LAUNCHED)
    (shop / "launched.json").write_text(run.model_dump_json())
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    command += ["--num_processes", "2", str(script), str(shop / "launched.json")]
    tracking = {"MLFLOW_TRACKING_URI": f"sqlite:///{shop / 'mlflow.db'}", "OMP_NUM_THREADS": "1"}
    quiet = f"trap '' USR1; exec {shlex.join(command)}"  # as launch/ does: the launcher ignores the signal
    log = shop / "launched.log"
    with log.open("w") as file:
        launcher = subprocess.Popen(
            ["bash", "-c", quiet], cwd=ROOT, env=os.environ | tracking, stdout=file, stderr=file
        )
    marker = Path(run.output.folder) / "requeue"
    while launcher.poll() is None and "step 20/" not in log.read_text():
        time.sleep(0.1)
    for process in [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]:
        process.send_signal(signal.SIGUSR1)  # as SLURM does: to everything of the job step
    assert launcher.wait(60) != 0
    assert "interrupted and saved at step" in marker.read_text(), log.read_text()[-3000:]
    step = int(marker.read_text().split("step ")[1].split(";")[0])
    saved = load_checkpoint(Path(run.output.folder) / "checkpoints", warn=pytest.fail)
    assert saved is not None
    assert 20 <= saved.state.step == step < 400


def test_a7_a_full_disk_leaves_the_checkpoint_before(shop: Path, whole: dict[int, RunConfig]) -> None:
    run = run_of(shop, "full")
    ended = launch(run, 1, "checkpoint.optimizer.safetensors:2=full")
    assert ended.codes == [1]
    assert "No space left on device" in ended.errors[0]
    checkpoints = sorted((Path(run.output.folder) / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step-00000003"]
    assert launch(run, 1).codes == [0]
    assert_same(end_of(run), end_of(whole[1]))


def test_a9_a_second_launch_of_a_run_is_refused(tmp_path: Path) -> None:
    first = RunLease(tmp_path)
    with pytest.raises(UserError, match=rf"process {os.getpid()} on .* is training this run"):
        RunLease(tmp_path)
    first.release()
    RunLease(tmp_path).release()


def test_a9_another_machine_holds_a_run_until_it_is_silent(tmp_path: Path) -> None:
    held = {"host": "elsewhere", "pid": 7, "renewed": 4e9}
    (tmp_path / LEASE).write_text(json.dumps(held))
    with pytest.raises(UserError, match="process 7 on elsewhere"):
        RunLease(tmp_path)
    (tmp_path / LEASE).write_text(json.dumps(held | {"renewed": 1e9}))
    RunLease(tmp_path).release()


def test_a9_the_third_death_at_one_step_is_the_last(tmp_path: Path) -> None:
    for died_at in (None, 5, 5, 4, 5, 5):
        with attempt(tmp_path, died_at):
            pass
    for refused in (UserError("a mistake"), Interrupted(), UserError("another")):
        with pytest.raises(type(refused)), attempt(tmp_path, 4):  # which is no start, and counts nothing
            raise refused
    with pytest.raises(UserError, match="3 starts in a row died at step 5"), attempt(tmp_path, 5):
        pytest.fail("it starts")
    with attempt(tmp_path, None):
        pass


@pytest.mark.parametrize("kind", ["raise", "kill", "crash", "exit"])
def test_b1_all_processes_end_when_one_does(shop: Path, kind: str) -> None:
    run = run_of(shop, f"ended by {kind}")
    ended = launch(run, 2, f"train.step:3={kind}@1", seconds=60)
    assert all(ended.codes)
    assert ended.codes[0] != -signal.SIGKILL  # by itself, not by the launcher's patience


@pytest.mark.parametrize("kind", ["freeze", "hang"])
def test_b2_a_stuck_process_is_found_and_all_stacks_are_in_one_file(shop: Path, kind: str) -> None:
    run = run_of(shop, f"stuck by {kind}", watch={"timeout": 3.0})
    ended = launch(run, 2, f"train.step:3={kind}@1", seconds=60)
    assert ended.codes[0] == STUCK
    assert "(watch.timeout = 3)" in ended.errors[0]
    assert "furthest behind, at step 2: process" in ended.errors[0]
    stacks = (Path(run.output.folder) / STACKS).read_text()
    assert "process 0, step 2" in stacks
    assert "train_step" in stacks
    assert ("process 1, step 2" in stacks) == (kind == "hang")  # one that is stopped says nothing


def test_b2_measuring_what_fits_and_a_long_validation_are_not_being_stuck(shop: Path, tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", 60, validation=True)
    run = run_of(
        shop,
        "slow",
        data={"shards": str(tmp_path / "shards")},
        train={"steps": 1, "micro_batch": "auto"},
        watch={"timeout": 3.0},
    )
    ended = launch_fleet(tmp_path / "fleet", 1, work_slowly(run))
    assert ended.codes == [0], ended.errors


def work_slowly(run: RunConfig) -> Callable[[], None]:
    """A training that takes over a second to find out what fits, and .4 s for each of fifteen photos it validates."""

    def work() -> None:
        validation_module.PORTION = 1
        trainer = Trainer(run, make_accelerator())
        fit, batch = trainer.gradients.fit, trainer.inputs.batch

        def slow_fit(*given: Any) -> int:
            time.sleep(1.5)
            return fit(*given)

        def slow_batch(rows: np.ndarray, crops: np.ndarray | None = None) -> Batch:
            time.sleep(0.4 if crops is None else 0.0)  # a photo of the validation split
            return batch(rows, crops)

        trainer.gradients.fit, trainer.inputs.batch = slow_fit, slow_batch  # type: ignore[method-assign]
        trainer.train()

    return work


@pytest.mark.parametrize("place", ["train.loss", "train.gradient"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_b3_a_number_that_is_none_stops_all_before_the_weights_change(shop: Path, place: str, value: str) -> None:
    every = 1 if value == "nan" else STEPS
    run = run_of(shop, f"stopped by {place} {value}", train={"log_every": every}, checkpoint={"every": 3})
    ended = launch(run, 2, f"{place}:4={value}@1")
    assert ended.codes == [1, 1]
    assert all("step 4: the " in error and "is no number in process" in error for error in ended.errors)
    saved = load_checkpoint(Path(run.output.folder) / "checkpoints", warn=pytest.fail)
    assert saved is not None
    assert saved.state.step == 3
    assert all(weight.isfinite().all() for weight in saved.weights.values())


def test_b3_bad_updates_are_left_out_as_often_as_allowed(shop: Path) -> None:
    skipping = {"nonfinite": "skip", "most_skipped": 2}
    run = run_of(shop, "skipping", train=skipping)
    assert launch(run, 2, "train.loss:4=nan@1,train.gradient:6=inf@0").codes == [0, 0]
    assert end_of(run).state.skipped == 2
    assert all(weight.isfinite().all() for weight in end_of(run).weights.values())
    run = run_of(shop, "skipping too often", train=skipping)
    assert launch(run, 2, "train.loss:4=nan@1,train.loss:5=nan@0,train.loss:7=nan@0").codes == [1, 1]


def test_which_weights_are_the_best_the_first_process_says_for_all(shop: Path, tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", 60, validation=True)
    run = run_of(shop, "rounding", data={"shards": str(tmp_path / "shards")}, validation={"every": 3})

    def work() -> None:
        trainer = Trainer(run, make_accelerator())
        sign = -1 if os.environ["RANK"] == "0" else 1  # for one process it gets better, for the other worse

        def rounded_otherwise(*given: Any) -> Judgement:
            return Judgement(3.0 + 0.01 * sign * trainer.state.step, {}, {})

        trainer_module.judge = rounded_otherwise  # type: ignore[assignment]
        trainer.train()
        assert trainer.state.best == 3.0 - 0.01 * STEPS
        assert trainer.state.best_step == STEPS

    ended = launch_fleet(tmp_path / "fleet", 2, work, seconds=30)
    assert ended.codes == [0, 0], ended.errors


@pytest.mark.parametrize(("photos", "world"), [(1, 2), (6, 4)])
def test_b4_fewer_photos_than_a_batch_in_fewer_shards_than_processes(
    shop: Path, tmp_path: Path, photos: int, world: int
) -> None:
    make_shards(tmp_path / "shards", photos)  # one shard
    data, sampling = {"shards": str(tmp_path / "shards")}, {"max_repeats": 8}
    run = run_of(shop, f"few {photos}", data=data, sampling=sampling, validation={"every": STEPS})
    ended = launch(run, world)
    assert ended.codes == [0] * world, ended.errors
    assert sorted(items(run, world)) == list(range(end_of(run).state.step))


def test_checkpoints_by_minutes(shop: Path) -> None:
    run = run_of(shop, "minutes", checkpoint={"every": 100, "minutes": 1e-4, "keep": 100})
    assert launch(run, 1).codes == [0]
    assert len(list((Path(run.output.folder) / "checkpoints").glob("step-*"))) > 2


def test_without_an_interval_saving_takes_little_of_the_time(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for share, saves in ((1e9, [3, 6, 9, 12]), (1e-9, [3, 12])):
        monkeypatch.setattr(checkpoint_module, "SAVING", share)
        run = run_of(shop, f"paced {share}", checkpoint={"every": None, "keep": 100}, validation={"every": 3})
        assert launch(run, 2).codes == [0, 0]
        found = sorted((Path(run.output.folder) / "checkpoints").glob("step-*"))
        assert [int(path.name.removeprefix("step-")) for path in found] == saves


def test_goodput_counts_what_a_killed_start_lost(tmp_path: Path) -> None:
    first = Goodput(tmp_path, 0.0)
    first.begin()
    with first.spend("stall"), first.spend("checkpoint"):
        pass
    first.store()
    stored = json.loads((tmp_path / GOODPUT).read_text())
    progress = Progress(tmp_path, 0, 1)
    progress.beat(9)
    assert progress.last.step == 9
    stored["time"] = min(stored["time"], psutil.Process().create_time()) - 10.0
    (tmp_path / GOODPUT).write_text(json.dumps(stored))
    second = Goodput(tmp_path, stored["time"] + 4.0)
    assert second.died
    assert second.seconds["lost"] == pytest.approx(4.0)
    second.store(ended=True)
    assert not Goodput(tmp_path, 1e12).died
    assert np.isclose(
        sum(second.seconds.values()), sum(json.loads((tmp_path / GOODPUT).read_text())["seconds"].values())
    )
