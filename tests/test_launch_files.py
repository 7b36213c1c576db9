"""What starts a training on many machines: the scripts for ssh, and the manifest for Kubernetes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from small_shop import make_shards

from facetclip.interruption import GRACE, MARKER, REQUEUE

ROOT = Path(__file__).parents[1]
GPUS = any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/kfd"))
RUN = """
[data]
shards = "{folder}/shards"
[model]
start = "starter"
[train]
steps = {steps}
batch = 8
log_every = 1
[validation]
every = {steps}
[output]
folder = "{folder}/{name}"
"""

LAUNCHER = """#!{python}
import json, os, signal, subprocess, sys, time
folder = os.environ["FAKE_FOLDER"]
trains = '''
import os, pathlib, signal, sys, time
def save(number, frame):
    pathlib.Path("{folder}/run").mkdir(exist_ok=True)
    pathlib.Path("{folder}/run/requeue").touch()
    sys.exit(75)
time.sleep({late})
signal.signal(signal.SIGUSR1, save)
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep({seconds})
'''
if sys.argv[1:] and sys.argv[-1].endswith("doctor.py"):
    trains = "import time; time.sleep({seconds})"
rank = sys.argv[sys.argv.index("--machine_rank") + 1] if "--machine_rank" in sys.argv else "alone"
open(f"{folder}/arguments-{{rank}}", "w").write("\\n".join(sys.argv[1:]))
json.dump(dict(os.environ), open(f"{folder}/environment-{{rank}}", "w"))
code = subprocess.run([sys.executable, "-c", trains, f"{folder}/ready-{{rank}}"]).returncode
sys.exit(int(os.environ.get(f"FAKE_CODE_{{rank}}", 0)) or (code and 1))
"""

SSH = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
shift
exec env -i PATH="$PATH" PYTHONPATH="$PYTHONPATH" FAKE_FOLDER="$FAKE_FOLDER" HOME="$HOME" bash -c "$*"
"""


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose launcher starts what ends, or saves when it is asked to, at once; `ssh` stays on this machine."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    (tmp_path / "run.toml").write_text(RUN.format(folder=tmp_path, name="run", steps=1))
    executable(tmp_path / ".venv/bin/python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    executable(tmp_path / ".venv/bin/ssh", SSH)
    set_pace(tmp_path, 60)
    return tmp_path


def set_pace(project: Path, seconds: float, late: float = 0) -> None:
    """What trains takes so many seconds, and listens to signals when it is `late`."""
    text = LAUNCHER.format(python=sys.executable, folder=project, seconds=seconds, late=late)
    executable(project / ".venv/bin/accelerate", text)


def start(project: Path, *words: str, **environment: str) -> "subprocess.Popen[bytes]":
    known = os.environ | {"FAKE_FOLDER": str(project), "PYTHONPATH": str(ROOT / "src")}
    known["PATH"] = f"{project}/.venv/bin:{known['PATH']}"
    command = ["bash", f"{project}/launch/{words[0]}", *words[1:]]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a shell cannot heed what it is born to ignore, as by nohup
    try:
        with (project / "errors").open("wb") as errors:
            return subprocess.Popen(command, cwd=project, env=known | environment, stderr=errors)
    finally:
        signal.signal(signal.SIGHUP, before)


def wait_for(*paths: Path, seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not all(path.exists() and path.read_text() for path in paths):
        assert time.monotonic() < limit, paths
        time.sleep(0.02)


def told(project: Path, rank: int | str) -> list[str]:
    return (project / f"arguments-{rank}").read_text().split("\n")


NODE = {"PET_NPROC_PER_NODE": "4", "PET_NNODES": "3", "PET_NODE_RANK": "2", "PET_MASTER_ADDR": "first"}


def test_a_node_tells_the_launcher_its_place(project: Path) -> None:
    set_pace(project, 0)
    process = start(project, "node.sh", "run.toml", "train.steps=9", **NODE, PET_MASTER_PORT="29400")
    assert process.wait(20) == 0
    words = told(project, 2)
    assert words[:3] == ["launch", "--config_file", f"{project}/accelerate_configs/multi_node.yaml"]
    assert words[3:9] == ["--num_machines", "3", "--num_processes", "12", "--machine_rank", "2"]
    assert words[9:13] == ["--main_process_ip", "first", "--main_process_port", "29400"]
    assert words[13:] == [f"{project}/training/train.py", "run.toml", "train.steps=9"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["evicted", "hung up"])
def test_a_node_that_must_go_lets_what_trains_save_and_asks_to_be_queued_again(project: Path, number: int) -> None:
    process = start(project, "node.sh", "run.toml", **NODE)
    wait_for(project / "ready-2")
    process.send_signal(number)
    assert process.wait(20) == REQUEUE
    assert (project / "run" / MARKER).exists()


def test_a_node_that_fails_keeps_the_code_and_forgets_an_old_wish(project: Path) -> None:
    (project / "run").mkdir()
    (project / "run" / MARKER).touch()
    set_pace(project, 0)
    process = start(project, "node.sh", "run.toml", PET_NPROC_PER_NODE="1", FAKE_CODE_0="3")
    assert process.wait(20) == 3
    assert f"{project}/accelerate_configs/ddp.yaml" in told(project, 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("node.sh", "none.toml"), "expected RUN.toml [section.key=value ...] or doctor, found 'none.toml'"),
        (("node.sh", "run.toml"), "PET_NPROC_PER_NODE: expected the processes of a machine, found ''"),
        (("ssh.sh", "a,b", "run.toml"), "expected HOST,HOST,... PROCESSES_OF_EACH RUN.toml"),
        (("ssh.sh", "a,b", "two", "run.toml"), "expected a number of processes, found 'two'"),
        (("ssh.sh", "a,b", "2", "none.toml"), "no run file none.toml"),
        (("ssh.sh", "a,-oProxyCommand=x", "2", "run.toml"), "expected HOST,HOST,..., found '-oProxyCommand=x'"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(project: Path, words: tuple[str, ...], message: str) -> None:
    process = start(project, *words)
    assert process.wait(20) == 2
    (line,) = (project / "errors").read_text().splitlines()
    assert message in line
    assert not list(project.glob("arguments-*"))


SRUN = """#!{python}
import os, pathlib, sys
tries = pathlib.Path("{folder}/tries")
tries.write_text(str(int(tries.read_text()) + 1 if tries.exists() else 1))
if tries.read_text() in os.environ["FAKE_INTERRUPTED"].split(","):
    pathlib.Path("{folder}/run").mkdir(exist_ok=True)
    pathlib.Path("{folder}/run/requeue").touch()
sys.exit(1)
"""
SCONTROL = """#!/bin/sh
[ "$1" = requeue ] && echo "$2" >> {folder}/requeued
echo first
"""


@pytest.fixture
def cluster(project: Path) -> dict[str, str]:
    """The environment of a SLURM job, whose `srun` fails, in the starts that FAKE_INTERRUPTED names after a save."""
    executable(project / ".venv/bin/srun", SRUN.format(python=sys.executable, folder=project))
    executable(project / ".venv/bin/scontrol", SCONTROL.format(folder=project))
    executable(project / "training/train.py", "")
    job = {"SUBMIT_DIR": str(project), "NNODES": "1", "JOB_ID": "7", "JOB_NODELIST": "first"}
    return {f"SLURM_{name}": value for name, value in job.items()}


def test_an_interrupted_job_is_queued_again_and_one_that_then_fails_is_not(
    project: Path, cluster: dict[str, str]
) -> None:
    for _ in range(3):
        assert start(project, "slurm.sbatch", "run.toml", **cluster, FAKE_INTERRUPTED="1").wait(20) == 1
    assert (project / "requeued").read_text().split() == ["7"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train.seps=3",), "launch: run.toml: train: unknown key 'seps'"),
        (("--fresh",), "no --fresh in a job that goes on by itself; delete "),
        (("--frsh",), "unrecognized arguments: --frsh"),
    ],
)
def test_a_job_with_a_mistake_starts_nothing(
    project: Path, cluster: dict[str, str], words: tuple[str, ...], message: str
) -> None:
    assert start(project, "slurm.sbatch", "run.toml", *words, **cluster, FAKE_INTERRUPTED="1").wait(20) == 2
    assert message in (project / "errors").read_text()
    assert start(project, "node.sh", "run.toml", *words, **NODE).wait(20) == 2
    assert message in (project / "errors").read_text()
    assert not (project / "tries").exists()
    assert not list(project.glob("arguments-*"))


def test_what_a_run_is_allowed_is_no_setting_of_its_file(project: Path, cluster: dict[str, str]) -> None:
    words = ("run.toml", "--allow", "train.precision", f"output.folder={project}/run")
    assert start(project, "slurm.sbatch", *words, **cluster, FAKE_INTERRUPTED="1").wait(20) == 1
    assert (project / "requeued").read_text().split() == ["7"]
    (project / "run" / MARKER).unlink()
    process = start(project, "node.sh", *words, **NODE)
    wait_for(project / "ready-2")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == REQUEUE
    assert told(project, 2)[-4:] == list(words)


def test_the_launch_itself_can_be_asked_what_is_wrong_with_it(project: Path) -> None:
    set_pace(project, 0)
    given = {"AWS_PROFILE": "our 'own'", "FACETCLIP_CACHE_BYTES": "9", "MLFLOW_TRACKING_TOKEN": "", "OTHER": "x"}
    process = start(project, "ssh.sh", "one,two", "4", "doctor", **given)
    assert process.wait(30) == 0, (project / "errors").read_text()
    for rank in (0, 1):
        assert told(project, rank)[-1] == f"{project}/training/doctor.py"
        there = json.loads((project / f"environment-{rank}").read_text())
        assert there["AWS_PROFILE"] == "our 'own'"
        assert there["FACETCLIP_CACHE_BYTES"] == "9"
        assert not {"MLFLOW_TRACKING_TOKEN", "OTHER"} & there.keys()


@pytest.mark.skipif(GPUS, reason="local.sh takes the GPUs of this machine")
def test_a_launch_on_this_machine_passes_its_words_on(project: Path) -> None:
    set_pace(project, 0)
    assert start(project, "local.sh", "doctor", "--processes", "3").wait(20) == 0
    words = told(project, "alone")
    assert words[words.index("--num_processes") + 1] == "3"
    assert words[-1] == f"{project}/training/doctor.py"
    assert start(project, "local.sh", "run.toml", "--fresh", "--allow", "a b").wait(20) == 0
    assert told(project, "alone")[-4:] == ["run.toml", "--fresh", "--allow", "a b"]


def test_a_signal_before_what_trains_listens_is_said_again(project: Path) -> None:
    set_pace(project, 60, late=2.5)
    process = start(project, "node.sh", "run.toml", **NODE)
    wait_for(project / "arguments-2")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == REQUEUE
    assert (project / "run" / MARKER).exists()


def test_a_signal_before_anything_trains_ends_the_launch(project: Path) -> None:
    executable(project / ".venv/bin/accelerate", "#!/bin/sh\ntouch $FAKE_FOLDER/launching\nexec sleep 60\n")
    process = start(project, "node.sh", "run.toml", **NODE)
    while not (project / "launching").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == REQUEUE


def test_a_launch_that_is_asked_what_is_wrong_with_it_can_be_stopped(project: Path) -> None:
    process = start(project, "node.sh", "doctor", **NODE)
    wait_for(project / "arguments-2")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM


def test_every_machine_is_started_by_ssh_with_its_number(project: Path) -> None:
    set_pace(project, 0)
    process = start(project, "ssh.sh", "me@one,two", "4", "run.toml", "data.shards=a b;c", MLFLOW_TRACKING_URI="u:'p")
    assert process.wait(30) == 0, (project / "errors").read_text()
    for rank in (0, 1):
        words = told(project, rank)
        assert words[words.index("--machine_rank") + 1] == str(rank)
        assert words[words.index("--num_processes") + 1] == "8"
        assert words[words.index("--main_process_ip") + 1] == "one"
        assert words[-1] == "data.shards=a b;c"


def test_interrupted_all_machines_save_and_the_command_says_so(project: Path) -> None:
    process = start(project, "ssh.sh", "one,two", "2", "run.toml")
    wait_for(project / "ready-0", project / "ready-1")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == REQUEUE


def test_where_one_machine_fails_the_others_are_stopped(project: Path) -> None:
    process = start(project, "ssh.sh", "one,two", "2", "run.toml")
    wait_for(project / "ready-0", project / "ready-1")
    os.kill(int((project / "ready-1").read_text()), signal.SIGKILL)
    assert process.wait(30) != 0


@pytest.mark.nightly
def test_two_machines_by_ssh_stop_and_go_on_to_the_same_weights(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", 60, validation=True)
    executable(tmp_path / "bin/ssh", SSH)
    environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "FACETCLIP_CONFIG": "cpu.yaml"}
    environment |= {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}

    def launched(name: str, log: Path) -> "subprocess.Popen[bytes]":
        (tmp_path / f"{name}.toml").write_text(RUN.format(folder=tmp_path, name=name, steps=60))
        command = ["bash", "launch/ssh.sh", "127.0.0.1,localhost", "1", f"{tmp_path}/{name}.toml"]
        with log.open("wb") as out:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)

    whole, parted = tmp_path / "whole.log", tmp_path / "parted.log"
    assert launched("whole", whole).wait(300) == 0, whole.read_text()[-3000:]
    process = launched("parted", parted)
    limit = time.monotonic() + 200
    while "step 9/60" not in parted.read_text():
        assert time.monotonic() < limit, parted.read_text()[-3000:]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == REQUEUE, parted.read_text()[-3000:]
    again = tmp_path / "again.log"
    assert launched("parted", again).wait(300) == 0, again.read_text()[-3000:]
    assert re.search(r"resumed from step \d+", again.read_text())
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parted"))
    assert all(one[key].equal(other[key]) for key in one)


# What the manifest uses of trainer.kubeflow.org/v1alpha1 (Kubeflow Trainer v2.3.0, with JobSet v0.12.0) and of Pods:
# key -> type, a list's element in a list, a free mapping as {}.
ENVIRONMENT = [{"name": str, "value": str, "valueFrom": {"secretKeyRef": {"name": str, "key": str}}}]
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "workingDir": str,
    "env": ENVIRONMENT,
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
}
POD = {
    "restartPolicy": str,
    "terminationGracePeriodSeconds": int,
    "containers": [CONTAINER],
    "volumes": [
        {"name": str, "persistentVolumeClaim": {"claimName": str}, "emptyDir": {"medium": str, "sizeLimit": str}}
    ],
}
POD_RULE = {
    "action": str,
    "onPodConditions": [{"type": str, "status": str}],
    "onExitCodes": {"containerName": str, "operator": str, "values": [int]},
}
JOB = {"backoffLimit": int, "podFailurePolicy": {"rules": [POD_RULE]}, "template": {"spec": POD}}
SET_RULE = {"name": str, "action": str, "onJobFailureReasons": [str], "targetReplicatedJobs": [str]}
JOB_SET = {
    "failurePolicy": {"maxRestarts": int, "restartStrategy": str, "rules": [SET_RULE]},
    "replicatedJobs": [{"name": str, "replicas": int, "template": {"metadata": {"labels": {}}, "spec": JOB}}],
}
OBJECT = {"apiVersion": str, "kind": str, "metadata": {"name": str, "namespace": str}}
TYPES = {
    "TrainingRuntime": {
        **OBJECT,
        "spec": {"mlPolicy": {"numNodes": int, "torch": {}}, "template": {"spec": JOB_SET}},
    },
    "TrainJob": {
        **OBJECT,
        "spec": {
            "runtimeRef": {"apiGroup": str, "kind": str, "name": str},
            "suspend": bool,
            "trainer": {
                "image": str,
                "command": [str],
                "args": [str],
                "env": ENVIRONMENT,
                "numNodes": int,
                "numProcPerNode": int,
                "resourcesPerNode": {"requests": {}, "limits": {}},
            },
        },
    },
}


def strange(value: Any, kind: Any, place: str) -> Iterator[str]:
    """Every place of `value` that the type does not know or that is of another one."""
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            yield f"{place}: expected a mapping"
            return
        for key, each in value.items() if kind else ():
            if key in kind:
                yield from strange(each, kind[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}: unknown"
    elif isinstance(kind, list):
        if not isinstance(value, list):
            yield f"{place}: expected a list"
            return
        for number, each in enumerate(value):
            yield from strange(each, kind[0], f"{place}[{number}]")
    elif type(value) is not kind:
        yield f"{place}: expected {kind.__name__}, found {value!r}"


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    documents = yaml.safe_load_all((ROOT / "launch" / "kubernetes.yaml").read_text())
    return {each["kind"]: each for each in documents}


def test_the_manifest_says_only_what_the_published_types_know(manifest: dict[str, Any]) -> None:
    assert manifest.keys() == TYPES.keys()
    for kind, each in manifest.items():
        assert list(strange(each, TYPES[kind], kind)) == []
        assert each["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert list(strange({"spec": {"trainer": {"numNode": 2}}}, TYPES["TrainJob"], "a")) == [
        "a.spec.trainer.numNode: unknown"
    ]


def test_the_job_runs_in_the_runtime_beside_it(manifest: dict[str, Any]) -> None:
    runtime, job = manifest["TrainingRuntime"], manifest["TrainJob"]["spec"]
    assert job["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert job["runtimeRef"]["kind"] == "TrainingRuntime"  # of the namespace; the default is one of the cluster
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    # What Trainer looks for: exactly one job with this label, whose container is called node.
    assert replicated["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert replicated["replicas"] == 1
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert [each["name"] for each in pod["containers"]] == ["node"]
    assert {each["name"] for each in pod["containers"][0]["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    assert (ROOT / job["trainer"]["command"][-1]).is_file()
    given = job["trainer"]["resourcesPerNode"]
    assert given["limits"]["nvidia.com/gpu"] == given["requests"]["nvidia.com/gpu"] == job["trainer"]["numProcPerNode"]


def test_a_pod_that_must_go_has_time_to_save_and_the_job_goes_on(manifest: dict[str, Any]) -> None:
    spec = manifest["TrainingRuntime"]["spec"]["template"]["spec"]
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] > GRACE
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # which a podFailurePolicy needs
    disrupted, wished = job["podFailurePolicy"]["rules"]
    assert disrupted["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert wished["onExitCodes"]["values"] == [REQUEUE]
    assert wished["onExitCodes"]["containerName"] == "node"
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_where_metrics_go_comes_from_a_secret(manifest: dict[str, Any]) -> None:
    (replicated,) = manifest["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    (uri,) = [each for each in container["env"] if each["name"] == "MLFLOW_TRACKING_URI"]
    assert "value" not in uri
    assert uri["valueFrom"]["secretKeyRef"]["key"] == "MLFLOW_TRACKING_URI"
