"""MLflow at arm's length: a training writes to a spool in its run folder, and a thread sends that on.

A point sent twice is stored once, since MLflow keeps one of each (key, step, timestamp, value), so whatever is in doubt
is sent again. No trouble with MLflow ever reaches the training.
"""

import math
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from facetclip import __version__
from facetclip.errors import UserError, first_line, redacted
from facetclip.spool import RECORD, RunRecord, Spool

KEY_TAG = "facetclip.key"  # finds a run that was made just before a kill, so that it is not made twice
MOST_PARAMS = 100  # what MLflow takes in one batch
LONGEST_KEY, LONGEST_PARAM, LONGEST_TAG = 250, 6000, 5000
PROBE_SECONDS = 2.0
START_SECONDS = 2.5  # the longest that the start waits for MLflow; importing it takes about 2 s more
RUN_ID_SECONDS = 15.0
FINISH_SECONDS = 15.0  # the longest wait at the end without progress
SHORTEST_PAUSE, LONGEST_PAUSE = 5.0, 60.0  # between two sendings
IDLE_SHARE = 100  # sending takes at most one part in so many of the time
DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's own 7 block a first call for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",
}


def connector(uri: str) -> Callable[[], Any]:
    """A function that connects an `MlflowClient` to `uri`. MLflow is imported here and now, with our settings.

    Settings that the user made in the environment stay.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    return lambda: MlflowClient(uri, registry_uri=uri)


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or else a SQLite file in the working directory."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    return uri or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def unreachable(uri: str) -> str | None:
    """Why nobody answers at `uri`, within PROBE_SECONDS or so; None where somebody does, or only MLflow can tell."""
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:  # whose words may be a piece of a password
        return "not a well-formed address; in a password / is written %2F and @ %40"
    scheme = parts.scheme.partition("+")[0]
    if scheme == "sqlite":
        folder = Path(uri.partition(":///")[2] or ".").parent
        return None if os.access(folder, os.W_OK) else f"{folder} cannot be written"
    if scheme not in DEFAULT_PORTS or (scheme in getproxies() and not proxy_bypass(parts.hostname or "")):
        return None
    try:
        socket.create_connection((parts.hostname or "", port or DEFAULT_PORTS[scheme]), timeout=PROBE_SECONDS).close()
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)
    return None


def say(line: str) -> None:
    """One line on standard error, where a training's own lines are not."""
    print(f"facetclip: {redacted(line)}", file=sys.stderr, flush=True)


def metric_name(name: str) -> str:
    """The nearest name that MLflow accepts.

    >>> metric_name("validation/width (cm)/macro_f1")
    'validation/width _cm_/macro_f1'
    """
    return re.sub(r"[^\w/. :-]", "_", name)[:LONGEST_KEY].strip("/")


@dataclass
class Sent:
    """What one sending brought to MLflow."""

    run_id: str | None = None
    points: int = 0
    artifacts: int = 0


class Sender:
    """Brings what a run folder holds to MLflow. Every method may raise whatever MLflow raises."""

    def __init__(self, record: RunRecord, spool: Spool, connect: Callable[[], Any]) -> None:
        self.record, self.spool, self.connect = record, spool, connect
        self.client: Any = None
        self.found = False
        self.total = Sent()

    def send(self) -> None:
        """Send all there is: the run itself, its points, its files, its end."""
        self.client = self.client or self.connect()
        if not self.found:
            self._find_or_create()
            self.found = True
        for points, end in self.spool.unsent():
            if points:
                self._send_points(points)
            self.spool.mark_sent(end)
            self.total.points += len(points)
        for relative in list(self.record.artifacts):
            self._send_artifact((self.record.folder / relative).resolve())
            self.record.artifact_sent(relative)
            self.total.artifacts += 1
        if self.record.status:
            self.client.set_terminated(self.record.run_id, self.record.status, self.record.ended_ms)

    def _find_or_create(self) -> None:
        if self.record.run_id and self._alive(self.record.run_id):
            self.client.update_run(self.record.run_id, status="RUNNING")
        else:
            run_id = self._by_key() or self._create()
            self._send_params(run_id)
            self.spool.sent_path.unlink(missing_ok=True)  # a run that MLflow has lost is sent anew from the beginning
            self.record.update(run_id=run_id)
        self.total.run_id = self.record.run_id

    def _alive(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _experiment(self) -> str:
        name = self.record.experiment
        found = self.client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage != "active":
            say(f"the experiment {name!r} was deleted in MLflow; it is restored for this run")
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id if found is not None else self.client.create_experiment(name)

    def _by_key(self) -> str | None:
        wanted = f"tags.`{KEY_TAG}` = '{self.record.key}'"
        runs = self.client.search_runs([self._experiment()], filter_string=wanted, max_results=1)
        return runs[0].info.run_id if runs else None

    def _create(self) -> str:
        record = self.record
        tags = record.tags | {KEY_TAG: record.key, "facetclip.version": __version__}
        run = self.client.create_run(self._experiment(), start_time=record.started_ms, tags=tags, run_name=record.name)
        return run.info.run_id

    def _send_params(self, run_id: str) -> None:
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in self.record.params.items()]
        for first in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(run_id, params=params[first : first + MOST_PARAMS])

    def _send_points(self, points: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        metrics = [Metric(point["key"], point["value"], point["timestamp"], point["step"]) for point in points]
        try:
            self.client.log_batch(self.record.run_id, metrics=metrics)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE" or len(points) == 1:
                raise
            self._send_singly(points)

    def _send_singly(self, points: list[dict[str, Any]]) -> None:
        """One bad name must not keep all others out."""
        from mlflow.exceptions import MlflowException

        for point in points:
            try:
                self._send_points([point])
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                say(f"MLflow refuses the metric {point['key']!r}: {first_line(error)}")

    def _send_artifact(self, path: Path) -> None:
        if path.is_dir():
            self.client.log_artifacts(self.record.run_id, str(path), artifact_path=path.name)
        elif path.is_file():
            self.client.log_artifact(self.record.run_id, str(path))
        else:
            say(f"{path} is gone; it is not sent to MLflow")


class Tracker:
    """The MLflow run of one training, on one process of it. Its methods return at once and raise nothing."""

    def __init__(self, record: RunRecord, spool: Spool, sender: Sender) -> None:
        self._record, self._spool, self._sender = record, spool, sender
        self._last = spool.recover(say)
        self._noted: set[str] = set()
        self._failures = 0
        self._probed, self._tried = threading.Event(), threading.Event()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    @classmethod
    def start(
        cls, folder: Path, *, experiment: str, run_name: str, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> "Tracker":
        """Track the training of a run folder: the MLflow run that the folder names goes on, or one is made.

        An MLflow that does not answer costs a line of warning and at most START_SECONDS; `sync` sends all of it later.
        """
        uri = tracking_uri()
        connect = connector(uri)
        folder.mkdir(parents=True, exist_ok=True)
        spool = Spool(folder)
        record = RunRecord.read(folder)
        if record is None:
            spool.clear()
            described = {metric_name(name): redacted(str(value))[:LONGEST_PARAM] for name, value in params.items()}
            labels = {metric_name(name): redacted(str(value))[:LONGEST_TAG] for name, value in tags.items()}
            record = RunRecord(folder, redacted(uri), experiment, run_name, described, labels)
        elsewhere = record.uri != redacted(uri)
        run_id = None if elsewhere else record.run_id
        record.update(uri=redacted(uri), run_id=run_id, status=None, ended_ms=None)
        tracker = cls(record, spool, Sender(record, spool, connect))
        tracker._thread.start()
        if not tracker._probed.wait(START_SECONDS):
            tracker._unreached("no answer")
        return tracker

    @property
    def run_id(self) -> str | None:
        """MLflow's name for the run, None where it cannot be reached; waits up to RUN_ID_SECONDS for the first try."""
        self._tried.wait(RUN_ID_SECONDS)
        return self._record.run_id

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Store one point of each metric; a step that is stored already, by a process that was killed, is left out."""
        now = int(time.time() * 1000)
        points = []
        for name, value in values.items():
            key = metric_name(name)
            if not math.isfinite(value):
                self._note(f"{name} is {value} at step {step}: not sent to MLflow", about=name)
            elif step > self._last.get(key, -1):
                self._last[key] = step
                points.append({"key": key, "step": int(step), "timestamp": now, "value": float(value)})
        try:
            self._spool.append(points)
        except (OSError, ValueError) as error:  # ValueError: after `finish`
            self._note(f"{self._spool.path} cannot be written ({error}): metrics are lost", about="spool")

    def artifact(self, path: Path) -> None:
        """Send a file, or a folder under its own name."""
        try:
            self._record.add_artifact(path)
        except UserError as error:
            self._note(f"{path} is not sent to MLflow: {error}", about=str(path))

    def finish(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED and send what is left, as long as that makes progress."""
        try:
            self._record.update(status=status, ended_ms=int(time.time() * 1000))
        except UserError as error:
            self._note(f"the end of the run is not stored: {error}", about="end")
        self._stop.set()
        self._wake.set()
        seen, deadline = asdict(self._sender.total), time.monotonic() + FINISH_SECONDS
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.1)
            if seen != (seen := asdict(self._sender.total)):
                deadline = time.monotonic() + FINISH_SECONDS
        if self._thread.is_alive() or self._failures:
            say(f"MLflow does not have all of this run yet; `facetclip sync {self._record.folder}` sends the rest")

    def _work(self) -> None:
        reason = unreachable(tracking_uri())
        if reason:
            self._unreached(reason)
        self._probed.set()
        connected = False
        while True:
            stopping = self._stop.is_set()
            started = time.monotonic()
            self._attempt()
            self._tried.set()
            if stopping:
                self._spool.close()
                return
            spent = time.monotonic() - started if connected else 0.0  # connecting is done once
            connected = True
            least = SHORTEST_PAUSE * 2 ** min(self._failures, 4)
            self._wake.wait(min(max(least, spent * IDLE_SHARE), LONGEST_PAUSE))
            self._wake.clear()

    def _attempt(self) -> None:
        try:
            self._sender.send()
        except Exception as error:  # whatever it is, the training goes on
            self._failures += 1
            self._unreached(unreachable(tracking_uri()) or first_line(error))
            return
        if self._failures:
            say("MLflow is back; everything up to here is sent")
            self._noted.discard("unreached")
        self._failures = 0

    def _unreached(self, reason: str) -> None:
        folder, uri = self._record.folder, self._record.uri
        self._note(
            f"MLflow at {uri} cannot be used now ({reason}); the training goes on, "
            f"and what is missing there is sent later, at the latest by `facetclip sync {folder}`",
            about="unreached",
        )

    def _note(self, line: str, *, about: str) -> None:
        if about not in self._noted:
            self._noted.add(about)
            say(line)


def sync(folder: Path) -> Sent:
    """Send what MLflow misses of a run that has ended; UserError where there is no run or no MLflow."""
    record = RunRecord.read(folder)
    if record is None:
        raise UserError(f"{folder}: no {RECORD} here; expected the folder of a run that was trained")
    uri = tracking_uri() if os.environ.get("MLFLOW_TRACKING_URI") else record.uri
    if "***" in uri:
        raise UserError(f"{folder}: the run was tracked at {uri}; set MLFLOW_TRACKING_URI with its credentials")
    if reason := unreachable(uri):
        raise UserError(f"MLflow at {redacted(uri)} cannot be reached ({reason}); {folder} keeps what is to be sent")
    connect = connector(uri)
    spool = Spool(folder)
    spool.recover(say)
    if record.uri != redacted(uri):
        record.update(uri=redacted(uri), run_id=None)
    if record.status is None:
        record.update(status="KILLED", ended_ms=int(time.time() * 1000))  # nobody holds the spool: its process is gone
    sender = Sender(record, spool, connect)
    try:
        sender.send()
    except Exception as error:
        raise UserError(f"MLflow at {redacted(uri)}: {first_line(error)}; {folder} keeps what is to be sent") from error
    finally:
        spool.close()
    return sender.total
