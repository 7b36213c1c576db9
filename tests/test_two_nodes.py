"""Two nodes: network namespaces joined by a cable that can be pulled. Needs root and `apt-get install iproute2`."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_shop import make_shards

from facetclip.checkpoint import load_checkpoint
from facetclip.progress import STUCK

ROOT = Path(__file__).parents[1]
NODES = ("facetclip-0", "facetclip-1")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
PATIENCE = 20  # seconds, of the watchdog
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
every = 30
[checkpoint]
every = 10
[watch]
timeout = {patience}
[output]
folder = "{folder}/{name}"
"""


def lacking() -> str:
    if shutil.which("ip") is None or os.geteuid():
        return "needs root and `ip`"
    made = subprocess.run(["ip", "netns", "add", "facetclip-probe"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", "facetclip-probe"], capture_output=True, check=False)
    return "no network namespaces here" if made.returncode else ""


pytestmark = [pytest.mark.nightly, pytest.mark.skipif(bool(lacking()), reason=lacking())]


def ip(*words: str, node: int | None = None) -> None:
    inside = [] if node is None else ["-n", NODES[node]]
    subprocess.run(["ip", *inside, *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def nodes() -> Iterator[None]:
    try:
        for name in NODES:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", NODES[0], "type", "veth", "peer", "name", "cable", "netns", NODES[1])
        for number, address in enumerate(ADDRESSES):
            ip("link", "set", "lo", "up", node=number)
            ip("address", "add", f"{address}/24", "dev", "cable", node=number)
            ip("link", "set", "cable", "up", node=number)
        yield
    finally:
        for name in NODES:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    make_shards(folder / "shards", 60, validation=True)
    return folder


class Launch:
    """A run started on both nodes."""

    def __init__(self, shop: Path, name: str) -> None:
        self.folder = shop / name
        file = shop / f"{name}.toml"
        file.write_text(RUN.format(folder=shop, name=name, steps=STEPS, patience=PATIENCE))
        self.logs = [shop / f"{name}-{time.monotonic_ns()}-{number}.log" for number in range(2)]
        self.nodes = [self._start(shop, file, number) for number in range(2)]

    def _start(self, shop: Path, file: Path, number: int) -> "subprocess.Popen[bytes]":
        environment = os.environ | {
            "ACCELERATE_USE_CPU": "true",
            "GLOO_SOCKET_IFNAME": "cable",
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": f"sqlite:///{shop}/mlflow.db",
        }
        command = [
            *("ip", "netns", "exec", NODES[number], sys.executable, "-m", "accelerate.commands.launch"),
            *("--config_file", str(ROOT / "accelerate_configs" / "multi_node.yaml"), "--mixed_precision", "no"),
            *("--num_machines", "2", "--num_processes", "2", "--machine_rank", str(number)),
            *("--main_process_ip", ADDRESSES[0], str(ROOT / "training" / "train.py"), str(file)),
        ]
        with self.logs[number].open("wb") as log:
            return subprocess.Popen(command, env=environment, cwd=shop, stdout=log, stderr=subprocess.STDOUT)

    @property
    def text(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)

    def reach(self, step: int) -> None:
        limit = time.monotonic() + 180
        while f"step {step}/{STEPS}  loss" not in self.text:
            assert time.monotonic() < limit, self.text[-4000:]
            assert None in [node.poll() for node in self.nodes], self.text[-4000:]
            time.sleep(0.1)

    def end(self, seconds: float) -> list[int]:
        limit = time.monotonic() + seconds
        try:
            return [node.wait(max(0.1, limit - time.monotonic())) for node in self.nodes]
        finally:
            for node in self.nodes:
                node.kill()


@pytest.fixture(scope="module")
def whole(shop: Path, nodes: None) -> Path:
    launch = Launch(shop, "whole")
    assert launch.end(300) == [0, 0], launch.text[-4000:]
    return launch.folder


def check_same(run: Path, whole: Path) -> None:
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (run, whole))
    assert all(one[key].equal(other[key]) for key in one)


def test_two_nodes_train(whole: Path) -> None:
    newest = load_checkpoint(whole / "checkpoints", warn=print)
    assert newest is not None
    assert newest.state.step == STEPS


@pytest.mark.parametrize("cut", ["both ways", "one way"])
def test_a_cut_ends_the_run_within_the_time_out_and_the_same_command_goes_on(shop: Path, whole: Path, cut: str) -> None:
    launch = Launch(shop, cut.replace(" ", "-"))
    launch.reach(13)
    route = ("route", "add", "blackhole", f"{ADDRESSES[0]}/32")
    if cut == "both ways":
        ip("link", "set", "cable", "down", node=1)
    else:
        ip(*route, node=1)
    codes = launch.end(PATIENCE + 60)
    assert all(codes), launch.text[-4000:]
    assert f"exitcode  : {STUCK}" in launch.text or "Connection" in launch.text
    if cut == "both ways":
        ip("link", "set", "cable", "up", node=1)
    else:
        ip("route", "del", *route[2:], node=1)
    kept = load_checkpoint(launch.folder / "checkpoints", warn=pytest.fail)
    assert kept is not None
    assert kept.state.step >= 10
    again = Launch(shop, launch.folder.name)
    assert again.end(300) == [0, 0], again.text[-4000:]
    assert re.search(r"resumed from step \d0", again.text)
    check_same(launch.folder, whole)


def test_a_cut_that_heals_is_not_noticed(shop: Path, whole: Path) -> None:
    launch = Launch(shop, "healed")
    launch.reach(13)
    ip("link", "set", "cable", "down", node=1)
    time.sleep(5)
    ip("link", "set", "cable", "up", node=1)
    assert launch.end(300) == [0, 0], launch.text[-4000:]
    check_same(launch.folder, whole)
