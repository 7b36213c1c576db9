"""A contender in a process, and often an environment, of its own, which does what it is told line by line."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PATIENCE = 20  # seconds for it to end by itself


def surroundings(**more: str) -> dict[str, str]:
    """The environment of a contender: this project to import, and one thread."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


class Child:
    """The parent's end of `python -m MODULE WORDS`, which answers every line on its standard input by a line of JSON.

    `more`: of its `surroundings`. `quiet`: what it prints to its standard error is dropped.
    """

    def __init__(self, python: Path | str, module: str, *words: str, quiet: bool = False, **more: str) -> None:
        self._process = subprocess.Popen(
            [str(python), "-m", module, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            text=True,
            env=surroundings(**more),
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, line: str = "go") -> Any:
        """The answer to one line."""
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self.hear()

    def hear(self) -> Any:
        """The next line that it says; RuntimeError where the process ended."""
        assert self._process.stdout
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError(f"{self._process.args} ended with status {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """End it and what it started."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
