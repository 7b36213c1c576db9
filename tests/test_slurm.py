"""The SLURM script, under a real SLURM: what is requeued half-way ends in the same weights."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from slurm_cluster import missing, slurm
from small_shop import make_shards

ROOT = Path(__file__).parents[1]
STEPS = 60
RUN = """
[data]
shards = "{folder}/shards"
[model]
start = "starter"
[train]
steps = {steps}
batch = 16
log_every = 1
[validation]
every = 20
[checkpoint]
every = 20
[output]
folder = "{folder}/{name}"
"""
pytestmark = [pytest.mark.nightly, pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slurm")
    make_shards(folder / "shards", 60, validation=True)
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("cluster")
    with slurm(folder) as environment:
        yield environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}


def told(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert not done.returncode, done.stderr
    return done.stdout


def submit(environment: dict[str, str], shop: Path, name: str) -> tuple[str, Path]:
    (shop / f"{name}.toml").write_text(RUN.format(folder=shop, name=name, steps=STEPS))
    options = ["--gpus-per-node=0", "--cpus-per-task=2", "--time=20", f"--output={shop}/{name}.log"]
    said = told(environment, "sbatch", *options, "launch/slurm.sbatch", f"{shop}/{name}.toml")
    return re.findall(r"\d+", said)[0], shop / f"{name}.log"


def wait(what: Callable[[], bool], log: Path, seconds: float = 400) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit, log.read_text()[-3000:] if log.exists() else "no log"
        time.sleep(0.2)


def state(environment: dict[str, str], job: str) -> str:
    return re.findall(r"JobState=(\w+)", told(environment, "scontrol", "show", "job", job))[0]


def steps_logged(log: Path) -> list[int]:
    found = re.findall(rf"^step (\d+)/{STEPS}  loss", log.read_text() if log.exists() else "", re.MULTILINE)
    return [int(step) for step in found]


@pytest.fixture(scope="module")
def whole(shop: Path, cluster: dict[str, str]) -> Path:
    job, log = submit(cluster, shop, "whole")
    wait(lambda: state(cluster, job) in ("COMPLETED", "FAILED"), log)
    assert state(cluster, job) == "COMPLETED", log.read_text()
    return shop / "whole"


@pytest.mark.parametrize(
    "interrupt", [["scontrol", "requeue"], ["scancel", "--signal=USR1"]], ids=["requeue", "before the time is over"]
)
def test_a_job_that_is_requeued_half_way_ends_in_the_same_weights(
    shop: Path, whole: Path, cluster: dict[str, str], interrupt: list[str]
) -> None:
    name = interrupt[0]
    job, log = submit(cluster, shop, name)
    wait(lambda: 25 in steps_logged(log), log)
    told(cluster, *interrupt, job)
    wait(lambda: state(cluster, job) in ("COMPLETED", "FAILED"), log)
    text = log.read_text()
    assert state(cluster, job) == "COMPLETED", text
    resumed = re.findall(r"resumed from step (\d+)", text)
    assert len(resumed) == 1, text
    assert 25 <= int(resumed[0]) < STEPS  # saved on the signal, not at the last interval
    assert steps_logged(log) == list(range(1, STEPS + 1))
    for file in ("best/model.safetensors", "model/model.safetensors"):
        one, other = load_file(whole / file), load_file(shop / name / file)
        assert one.keys() == other.keys()
        assert all(one[key].equal(other[key]) for key in one), file
