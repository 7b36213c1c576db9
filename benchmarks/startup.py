"""From the command to the first step: `python -m benchmarks.startup [--rounds 3] [--out FILE]`.

The starter on 60 rendered photos, `training/train.py RUN` as a process of its own, up to the moment when its first
batch is there and `Trainer.train_step` begins. Processor seconds, since the machine may be shared, and seconds on the
clock: imports by package (what a module takes by itself, without those that it imports), and the rest, which is ours.
Then the same with `accelerate launch` before it, on the clock.
"""

import argparse
import importlib.machinery
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHOWN = 0.05  # seconds of a package's imports, at least
BEGUN = "FIRST STEP "
RUN = """
[data]
shards = "{folder}/shards"
[model]
start = "starter"
[train]
steps = 1000
batch = 32
[output]
folder = "{folder}/run"
"""


class ImportClock:
    """The processor seconds of every import from now on, by top-level package, without those of others inside it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inside = ["facetclip"]
        self._since = time.process_time()
        for loader in (importlib.machinery.SourceFileLoader, importlib.machinery.ExtensionFileLoader):
            loader.create_module = self._clocked(loader.create_module, lambda spec: spec.name)
            loader.exec_module = self._clocked(loader.exec_module, lambda module: module.__name__)

    def _clocked(self, work: Callable[..., Any], name_of: Callable[[Any], str]) -> Callable[..., Any]:
        def clocked(loader: Any, about: Any) -> Any:
            name = name_of(about)
            self._turn()
            self._inside.append(name.partition(".")[0])
            try:
                return work(loader, about)
            finally:
                self._turn()
                self._inside.pop()

        return clocked

    def _turn(self) -> None:
        now = time.process_time()
        self.seconds[self._inside[-1] if len(self._inside) > 1 else "outside"] += now - self._since
        self._since = now


def child(run: str) -> None:
    """Train up to the first step, say what that took, and end."""
    clock = ImportClock()
    from facetclip.cli import main as command
    from facetclip.trainer import Trainer

    def begins(*_: Any) -> None:
        clock._turn()
        told = {"processor": time.process_time(), "imports": dict(clock.seconds)}
        print(BEGUN + json.dumps(told), flush=True)
        os._exit(0)

    Trainer.train_step = begins  # type: ignore[method-assign]
    sys.exit(command(["train", run, "--fresh"]))


def started(before: list[str], run: Path) -> dict[str, Any]:
    """What one start says, with its seconds on the clock."""
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{run.parent / 'mlflow.db'}"
    command = [*before, "-m", "benchmarks.startup", "--child", str(run)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith(BEGUN):
                told = json.loads(line.removeprefix(BEGUN)) | {"clock": time.perf_counter() - began}
                process.communicate()  # the rest, so that it can end
                return told
    raise RuntimeError(f"{command} ended with {process.returncode}, and no step began")


def summary(starts: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians over starts, by package."""

    def middle(values: list[float]) -> float:
        return round(statistics.median(values), 2)

    packages = {name for start in starts for name in start["imports"]} - {"outside"}
    imports = {name: middle([start["imports"].get(name, 0.0) for start in starts]) for name in packages}
    others = sum(seconds for name, seconds in imports.items() if name not in ("facetclip", "benchmarks"))
    whole = middle([start["processor"] for start in starts])
    return {
        "processor seconds to the first step": whole,
        "of these imports of other packages": round(others, 2),
        "ours": round(whole - others, 2),
        "seconds on the clock": [round(start["clock"], 2) for start in starts],
        "imports": {name: each for name, each in sorted(imports.items(), key=lambda of: -of[1]) if each >= SHOWN},
    }


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Starts as a plain process, and below the launcher; after one that fills the caches."""
    from benchmarks.probe import shards_of

    shards_of(folder, 60).rename(folder / "shards")
    run = folder / "run.toml"
    run.write_text(RUN.format(folder=folder))
    plain = [sys.executable]
    launched = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file"]
    launched.append(str(ROOT / "accelerate_configs" / "cpu.yaml"))
    started(plain, run)
    return {
        "training/train.py": summary([started(plain, run) for _ in range(rounds)]),
        "accelerate launch": summary([started(launched, run) for _ in range(min(rounds, 2))]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "startup.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
    from benchmarks.measuring import environment, write_result

    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), args.rounds)
    for title, told in found.items():
        print(title, json.dumps(told, indent=1))
    write_result(args.out, {"environment": environment(("torch", "transformers", "accelerate", "mlflow")), **found})


if __name__ == "__main__":
    main()
