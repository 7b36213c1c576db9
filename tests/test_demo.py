"""What the demo types; that it runs is the nightly tier's, since it takes minutes."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from facetclip.cli import VERBS, main
from facetclip.demo import ROOT, steps


def test_every_step_is_a_command_that_a_user_could_type() -> None:
    for step in steps(Path("demo"), 600, 2):
        words = shlex.split(str(step))
        assert words[0] in ("facetclip", "accelerate")
        assert step.words[0] in VERBS


def test_the_training_is_launched_on_several_processes_only() -> None:
    assert [step.words[0] for step in steps(Path("demo"), 600, 2) if step.launched] == ["train"]
    assert not any(step.launched for step in steps(Path("demo"), 600, 1))


def test_everything_goes_where_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed: list[list[str]] = []
    monkeypatch.setattr("facetclip.demo.main", lambda words: typed.append(words) or 3)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out", "x"]) == 3
    assert typed[0][-1] == str(tmp_path / "x" / "catalog")


@pytest.mark.nightly
def test_the_demo_runs_twice(tmp_path: Path) -> None:
    door = "import sys; from facetclip.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", door, "demo", "--out", str(tmp_path / "demo")]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "zero-shot against fine-tuned" in done.stdout
