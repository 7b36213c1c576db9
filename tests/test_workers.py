import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from facetclip.errors import UserError
from facetclip.workers import AHEAD, each


def square(number):
    return number * number


def fail_at_three(number):
    if number == 3:
        raise UserError("three is not allowed")
    return number


def die_at_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_every_portion_is_worked_on_once(workers):
    assert sorted(each(square, range(20), workers=workers)) == [number**2 for number in range(20)]
    assert list(each(square, [], workers=workers)) == []


def test_portions_are_drawn_only_as_workers_are_free():
    drawn = []
    results = each(square, (drawn.append(number) or number for number in range(50)), workers=2)
    next(results)
    assert len(drawn) <= 2 * AHEAD + 1
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_work_comes_through_unchanged(workers):
    with pytest.raises(UserError, match="three is not allowed"):
        list(each(fail_at_three, range(9), workers=workers))


def test_a_killed_worker_is_one_clear_line():
    with pytest.raises(UserError, match="a worker was killed"):
        list(each(die_at_three, range(9), workers=2))


SLEEPERS = """
import time
from pathlib import Path
from facetclip.workers import each

if __name__ == "__main__":
    for _ in each(time.sleep, [0.01, 0.01, 60, 60], workers=2):
        print("done", flush=True)
"""


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    workers = children(parent.pid)
    assert len(workers) >= 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
