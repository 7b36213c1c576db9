import os
import signal

import pytest

from facetclip import faults
from facetclip.errors import UserError


def test_nothing_happens_unless_asked_for(monkeypatch):
    monkeypatch.delenv("FACETCLIP_FAULT", raising=False)
    faults.reach("here")
    monkeypatch.setenv("FACETCLIP_FAULT", "elsewhere:1")
    faults.reach("here")


def test_the_process_is_killed_the_nth_time(monkeypatch):
    killed = []
    monkeypatch.setenv("FACETCLIP_FAULT", "third:3")
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    for reached in range(1, 6):
        faults.reach("third")
        assert len(killed) == (reached >= 3)
    assert killed == [(os.getpid(), signal.SIGKILL)]


@pytest.mark.parametrize("fault", ["here", "here:", "here:0", "here:x", "here:1=strange", "here:1@x"])
def test_a_count_that_is_none_is_refused(monkeypatch, fault):
    monkeypatch.setenv("FACETCLIP_FAULT", fault)
    with pytest.raises(UserError, match="expected place:n"):
        faults.reach("here")


def test_kind_and_rank(monkeypatch):
    monkeypatch.setenv("FACETCLIP_FAULT", "kind:1=full@1,kind:1=nan@0,other:2=raise")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(OSError, match="No space left"):
        faults.reach("kind")
    monkeypatch.setenv("RANK", "0")
    faults._reached.clear()
    assert faults.spoiled("kind") != faults.spoiled("kind")  # a number that is none, then nothing
    faults.reach("other")
    with pytest.raises(RuntimeError):
        faults.reach("other")
