"""Two ways to do one thing, measured side by side in one run: interleaved, with a control, and what they ran on."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def cpu_seconds(work: Callable[[], object]) -> float:
    """The processor time, over all threads of this process, that `work` takes; a busy machine hardly changes it."""
    start = time.process_time()
    work()
    return time.process_time() - start


def wall_seconds(work: Callable[[], object]) -> float:
    """The time on the clock that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each contender once a round, in turn, so that what slows the machine slows all; after one round to warm up.

    >>> interleaved({"a": lambda: 2.0, "b": lambda: 3.0}, rounds=2)
    {'a': [2.0, 2.0], 'b': [3.0, 3.0]}
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, measure in contenders.items():
            seconds = measure()
            if turn > 0:
                taken[name].append(seconds)
    return taken


def ratio(peer: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """How many times faster ours is: the median over rounds of peer / ours, with the smallest and the largest.

    >>> ratio([4.0, 6.0, 9.0], [2.0, 2.0, 2.0])
    {'median': 3.0, 'least': 2.0, 'most': 4.5}
    """
    each = [theirs / mine for theirs, mine in zip(peer, ours, strict=True)]
    return {name: round(of(each), 3) for name, of in (("median", statistics.median), ("least", min), ("most", max))}


def environment(packages: Iterable[str]) -> dict[str, Any]:
    """What the numbers depend on: commit, processor, cores, load, Python, and the versions of `packages`."""
    return {
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def _commit() -> str | None:
    """The commit that is checked out, with a + where files differ from it; None outside a repository."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return None
    return found.stdout.strip() or None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_result(path: Path, result: dict[str, Any]) -> None:
    """The result as JSON, to be compared with the next one line by line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
