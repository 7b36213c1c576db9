"""Points reach MLflow once each, whatever happens to MLflow or to the training."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from facetclip import tracking
from facetclip.errors import UserError, redacted
from facetclip.spool import RECORD, SENT, SPOOL, RunRecord, Spool
from facetclip.tracking import Tracker, connector, metric_name, sync, tracking_uri, unreachable

CANARY = "canary-7f3a"


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://user:{CANARY}@127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "SHORTEST_PAUSE", 0.05)
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 5.0)
    monkeypatch.setattr(tracking, "IDLE_SHARE", 0)


def start(folder: Path, **params: Any) -> Tracker:
    return Tracker.start(folder, experiment="shop", run_name="first", params=params, tags={"kind": "cookware"})


def runs(uri: str) -> list[Any]:
    client = connector(uri)()
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def history(uri: str, run_id: str | None, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in connector(uri)().get_metric_history(run_id, key)]


def test_a_run_brings_its_points_parameters_files_and_end_to_mlflow(store: str, tmp_path: Path) -> None:
    tracker = start(tmp_path / "run", **{"train.steps": 20, "model.start": "starter"})
    for step in range(1, 21):
        tracker.metrics(step, {"train/loss": 1 / step, "train/learning_rate": 1e-3})
    pictures = tmp_path / "run" / "pictures"
    pictures.mkdir()
    (pictures / "lid.png").write_bytes(b"png")
    (tmp_path / "run" / "run.json").write_text("{}")
    tracker.artifact(pictures)
    tracker.artifact(tmp_path / "run" / "run.json")
    tracker.finish("FINISHED")

    (run,) = runs(store)
    assert run.info.run_id == tracker.run_id
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert run.data.params == {"train.steps": "20", "model.start": "starter"}
    assert run.data.tags["kind"] == "cookware"
    assert history(store, tracker.run_id, "train/loss") == [(step, 1 / step) for step in range(1, 21)]
    names = {file.path for file in connector(store)().list_artifacts(tracker.run_id)}
    assert names == {"pictures", "run.json"}


def test_a_restarted_training_goes_on_in_the_same_run_and_repeats_no_step(store: str, tmp_path: Path) -> None:
    first = start(tmp_path / "run", lr=0.1)
    for step in range(1, 31):
        first.metrics(step, {"loss": float(step)})
    first.finish("FAILED")
    second = start(tmp_path / "run", lr=0.1)
    for step in range(21, 41):  # from the checkpoint of step 20
        second.metrics(step, {"loss": float(step)})
    second.finish("FINISHED")

    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert history(store, run.info.run_id, "loss") == [(step, float(step)) for step in range(1, 41)]


def test_a_kill_loses_no_point_and_leaves_one_run(store: str, tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from facetclip.tracking import Tracker
tracker = Tracker.start(Path({str(tmp_path / "run")!r}), experiment="shop", run_name="first", params={{}}, tags={{}})
assert tracker.run_id
for step in range(1, 50):
    tracker.metrics(step, {{"loss": float(step)}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    with (tmp_path / "run" / SPOOL).open("a") as spool:
        spool.write('{"key": "loss", "st')  # a line that the kill cut
    tracker = start(tmp_path / "run")
    for step in range(40, 61):
        tracker.metrics(step, {"loss": float(step)})
    tracker.finish("FINISHED")

    (run,) = runs(store)
    assert history(store, run.info.run_id, "loss") == [(step, float(step)) for step in range(1, 61)]


def test_a_run_made_just_before_a_kill_is_found_by_its_key(store: str, tmp_path: Path) -> None:
    tracker = start(tmp_path / "run", lr=1)
    tracker.finish("FAILED")
    record = RunRecord.read(tmp_path / "run")
    assert record is not None
    record.update(run_id=None)  # as if killed before its name was stored
    again = start(tmp_path / "run", lr=1)
    again.finish("FINISHED")
    assert len(runs(store)) == 1
    assert again.run_id == tracker.run_id


def test_a_fresh_run_folder_forgets_the_points_of_the_one_before(store: str, tmp_path: Path) -> None:
    old = start(tmp_path / "run")
    old.metrics(1, {"loss": 5.0})
    old.finish("FINISHED")
    (tmp_path / "run" / RECORD).unlink()
    tracker = start(tmp_path / "run")
    tracker.metrics(1, {"loss": 7.0})
    tracker.finish("FINISHED")
    assert history(store, tracker.run_id, "loss") == [(1, 7.0)]
    assert tracker.run_id != old.run_id


def test_mlflow_down_costs_little_and_one_line_and_sync_brings_everything(
    closed_port: str, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    began = time.monotonic()
    tracker = start(tmp_path / "run", url=f"https://me:{CANARY}@data.shop/catalog")
    tracker.metrics(1, {"loss": 1.0})
    assert time.monotonic() - began < 5
    for step in range(2, 2501):
        tracker.metrics(step, {"loss": float(step)})
    (tmp_path / "run" / "run.json").write_text("{}")
    tracker.artifact(tmp_path / "run" / "run.json")
    assert tracker.run_id is None
    tracker.finish("FINISHED")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert "the training goes on" in lines[0]
    assert f"facetclip sync {tmp_path / 'run'}" in lines[1]

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    sent = sync(tmp_path / "run")
    assert (sent.points, sent.artifacts) == (2500, 1)
    assert sync(tmp_path / "run").points == 0
    (tmp_path / "run" / SENT).unlink()
    assert sync(tmp_path / "run").points == 2500  # all again: MLflow keeps one of each
    (run,) = runs(uri)
    assert (run.info.run_id, run.info.status) == (sent.run_id, "FINISHED")
    assert [step for step, _ in history(uri, sent.run_id, "loss")] == list(range(1, 2501))
    everything = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(CANARY.encode() in content for content in everything)


def test_another_tracking_uri_gets_the_whole_run(
    store: str, tmp_path: Path, empty_store: Path, monkeypatch: Any
) -> None:
    first = start(tmp_path / "run")
    first.metrics(1, {"loss": 1.0})
    first.finish("FAILED")
    (tmp_path / "other.db").write_bytes(empty_store.read_bytes())
    other = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    second = start(tmp_path / "run")
    second.metrics(2, {"loss": 2.0})
    second.finish("FINISHED")
    assert history(other, second.run_id, "loss") == [(1, 1.0), (2, 2.0)]


def test_what_is_not_a_number_is_left_out_and_said_once(store: str, tmp_path: Path, capsys: Any) -> None:
    tracker = start(tmp_path / "run")
    tracker.metrics(1, {"loss": float("nan"), "rate": 1.0})
    tracker.metrics(2, {"loss": float("inf"), "rate": 1.0})
    tracker.metrics(3, {"loss": 3.0})
    tracker.finish("FINISHED")
    assert history(store, tracker.run_id, "loss") == [(3, 3.0)]
    assert [line for line in capsys.readouterr().err.splitlines() if "loss" in line] == [
        "facetclip: loss is nan at step 1: not sent to MLflow"
    ]


def test_parameters_beyond_mlflows_limits_are_cut_and_names_are_mended(store: str, tmp_path: Path) -> None:
    many = {f"section.key{place}": place for place in range(250)}
    tracker = start(tmp_path / "run", **many, long="x" * 10_000, **{"width (cm)": 3})
    tracker.metrics(1, {"validation/width (cm)/macro_f1": 0.5})
    tracker.finish("FINISHED")
    (run,) = runs(store)
    assert len(run.data.params) == 252
    assert run.data.params["long"] == "x" * 6000
    assert run.data.params["width _cm_"] == "3"
    assert run.data.metrics == {"validation/width _cm_/macro_f1": 0.5}


def test_one_metric_that_mlflow_refuses_keeps_no_other_out(store: str, tmp_path: Path, capsys: Any) -> None:
    tracker = start(tmp_path / "run")
    tracker.metrics(1, {"a//b": 1.0, "loss": 2.0})
    tracker.finish("FINISHED")
    (run,) = runs(store)
    assert run.data.metrics == {"loss": 2.0}
    assert "refuses the metric 'a//b'" in capsys.readouterr().err


def test_two_processes_cannot_track_one_run(store: str, tmp_path: Path) -> None:
    tracker = start(tmp_path / "run")
    with pytest.raises(UserError, match="another process is tracking"):
        start(tmp_path / "run")
    with pytest.raises(UserError, match="another process is tracking"):
        sync(tmp_path / "run")
    tracker.finish("FINISHED")


def test_sync_says_what_is_missing(closed_port: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected the folder of a run"):
        sync(tmp_path)
    RunRecord(tmp_path, redacted(closed_port), "shop", "first", {}, {}).update()
    with pytest.raises(UserError, match="cannot be reached") as caught:
        sync(tmp_path)
    assert CANARY not in str(caught.value)
    os.environ.pop("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI with its credentials"):
        sync(tmp_path)


def test_a_spool_that_lost_its_tail_is_sent_from_the_beginning(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    points = [{"key": "loss", "step": step, "timestamp": 1, "value": 0.5} for step in range(3)]
    spool.append(points)
    ((batch, end),) = spool.unsent()
    assert batch == points
    spool.mark_sent(end)
    assert list(spool.unsent()) == []
    os.truncate(spool.path, end - 10)
    assert spool.recover(pytest.fail) == {"loss": 1}
    ((batch, _),) = spool.unsent()
    assert batch == points[:2]
    spool.close()


class Silent(BaseHTTPRequestHandler):
    """Takes every request and never answers."""

    def do_GET(self) -> None:
        self.server.released.wait(20)  # type: ignore[attr-defined]  # set by the fixture

    do_POST = do_GET


@pytest.fixture
def silent_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Silent)
    server.released = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.released.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def test_a_server_that_hangs_delays_neither_start_nor_step(
    silent_server: HTTPServer, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.5)
    began = time.monotonic()
    tracker = start(tmp_path / "run")
    for step in range(1, 1001):
        tracker.metrics(step, {"loss": 1.0})
    tracker.finish("FINISHED")
    assert time.monotonic() - began < 5
    assert len((tmp_path / "run" / SPOOL).read_text().splitlines()) == 1000
    silent_server.released.set()  # type: ignore[attr-defined]  # set by the fixture
    tracker._thread.join(20)


def test_lines_that_are_no_points_are_left_out_and_said_once(store: str, tmp_path: Path, capsys: Any) -> None:
    garbage = b'{"key": "loss", "st\rep": 1,\n' + bytes(40) + b'\n17\n{"key": "other"}\n\xff\xfe\n'
    first = start(tmp_path / "run")
    first.metrics(1, {"loss": 0.5})
    first.finish("KILLED")
    with (tmp_path / "run" / SPOOL).open("ab") as file:
        file.write(garbage)
    (tmp_path / "run" / SENT).unlink()
    again = start(tmp_path / "run")
    again.metrics(1, {"loss": 9.0})  # done already
    again.metrics(2, {"loss": 0.25})
    again.finish("FINISHED")
    assert history(store, again.run_id, "loss") == [(1, 0.5), (2, 0.25)]
    said = capsys.readouterr().err
    assert said.count("5 lines are no points") == 1
    assert sync(tmp_path / "run").points == 0


@pytest.mark.parametrize("uri", ["http://[bad", "postgresql://me:se/cret@db.lan/mlflow", "http://h:99999"])
def test_an_address_that_is_none_is_no_place_to_reach(uri: str) -> None:
    assert str(unreachable(uri)).startswith("not a well-formed address; ")


def test_the_default_store_is_a_sqlite_file_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert unreachable(tracking_uri()) is None


def test_metric_names_stay_below_the_limit() -> None:
    assert len(metric_name("a" * 400)) == 250


def test_a_real_server_that_is_late_dies_and_returns_ends_with_every_point_once(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", CANARY)
    (tmp_path / "server.db").write_bytes(empty_store.read_bytes())
    early, began = tmp_path / "early", time.monotonic()
    child = os.fork()
    if not child:  # a training that is killed before it could send anything
        tracker = start(early)
        for step in range(1, 51):
            tracker.metrics(step, {"loss": float(step)})
        os._exit(0)
    os.waitpid(child, 0)
    assert time.monotonic() - began < 5
    server = serve(tmp_path, port)
    try:
        sent = sync(early)
        assert sent.points == 50
        assert sync(early).points == 0
        assert history(uri, sent.run_id, "loss") == [(step, float(step)) for step in range(1, 51)]
        tracker = start(tmp_path / "run")
        assert tracker.run_id
        for step in range(1, 301):
            tracker.metrics(step, {"loss": float(step)})
            if step == 100:
                stop(server)
            if step == 200:
                server = serve(tmp_path, port)
        tracker.finish("FINISHED")
        sync(tmp_path / "run")
        assert history(uri, tracker.run_id, "loss") == [(step, float(step)) for step in range(1, 301)]
        assert json.loads((tmp_path / "run" / RECORD).read_text())["run_id"] == tracker.run_id
        everything = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        assert not any(CANARY.encode() in content for content in everything)
    finally:
        stop(server)


def serve(folder: Path, port: int) -> subprocess.Popen:
    words = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    uri = f"http://127.0.0.1:{port}"
    while not unreachable(uri):  # the processes of one killed a moment ago still accept
        time.sleep(0.05)
    server = subprocess.Popen([sys.executable, *words, *stores], start_new_session=True, env={**os.environ})
    while unreachable(uri):
        assert server.poll() is None
        time.sleep(0.3)
    return server


def stop(server: subprocess.Popen) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_points_that_a_full_disk_took_in_part_spoil_no_later_one(tmp_path: Path) -> None:
    spool, point = Spool(tmp_path), {"key": "loss", "timestamp": 0, "value": 0.5}
    spool.append([{**point, "step": 0}])
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (spool.path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            spool.append([{**point, "step": 1}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    spool.append([{**point, "step": 2}])
    assert [each["step"] for points, _ in spool.unsent() for each in points] == [0, 2]
    spool.close()
