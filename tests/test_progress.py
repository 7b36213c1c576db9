"""Who is furthest behind, when nothing moves any more."""

import os
from pathlib import Path

import pytest

from facetclip.progress import STUCK, Progress, give_up


def test_processes_of_an_earlier_larger_launch_are_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in range(4):
        Progress(tmp_path, rank, 4).beat(3)
    first, second = (Progress(tmp_path, rank, 2) for rank in range(2))
    first.beat(9)
    second.beat(8)
    monkeypatch.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    with pytest.raises(SystemExit) as ended:
        give_up(first, 1.0)
    assert ended.value.code == STUCK
    assert capsys.readouterr().err.endswith("furthest behind, at step 8: process 1\n")
