"""`doctor --dist`: one table of all processes, and what differs between them."""

from dataclasses import replace
from pathlib import Path

import pytest
from fleet import launch_fleet

from facetclip.cli import main
from facetclip.dist_doctor import PACKAGES, Process, _clocks, _differences, launch_text
from facetclip.doctor import healthy

LIKE = Process(0, "one", "cpu (2 cores)", "MULTI_CPU", "no", "3.11.9", ("2.13.0",) * len(PACKAGES), 0.0)


@pytest.mark.xdist_group("engines")
def test_two_processes_in_one_table(tmp_path: Path) -> None:
    ended = launch_fleet(tmp_path, 2, lambda: main(["doctor", "--dist"]))
    assert ended.codes == [0, 0], ended.errors
    text = (tmp_path / "output-0.txt").read_text()
    assert "2 processes on 1 machine(s) form one group" in text
    assert "GB/s" in text
    assert [line.split()[0] for line in text.splitlines()[2:4]] == ["0", "1"]
    assert (tmp_path / "output-1.txt").read_text() == ""


def test_what_must_be_alike_is_named_where_it_differs() -> None:
    other = replace(LIKE, rank=1, host="two", precision="bf16", versions=("2.12.0", *LIKE.versions[1:]), skew=-3.0)
    findings = [*_differences([LIKE, other]), _clocks([LIKE, other])]
    assert not healthy(findings)
    wrong = {finding.name: finding.found for finding in findings if finding.state == "wrong"}
    assert wrong["precision"] == "no in process 0; bf16 in process 1"
    assert "torch 2.12.0" in wrong["versions"]
    assert wrong["clocks"] == "3.000 s apart"
    assert healthy([*_differences([LIKE, replace(LIKE, rank=1)]), _clocks([LIKE, LIKE])])
    assert "two" in launch_text([LIKE, other])
