import importlib.util
import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def measuring():
    path = Path(__file__).parents[1] / "benchmarks" / "measuring.py"
    spec = importlib.util.spec_from_file_location("measuring", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_contenders_take_turns_after_one_round_to_warm_up(measuring):
    order = []
    taken = measuring.interleaved({name: lambda name=name: float(order.append(name) or 1) for name in "ab"}, rounds=3)
    assert order == ["a", "b"] * 4
    assert taken == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_the_ratio_is_taken_round_by_round(measuring):
    assert measuring.ratio([4, 100, 9], [2, 50, 3]) == {"median": 2, "least": 2, "most": 3}


def test_waiting_costs_no_processor_time(measuring):
    import time

    assert measuring.cpu_seconds(lambda: time.sleep(0.05)) < 0.02
    assert measuring.wall_seconds(lambda: time.sleep(0.05)) >= 0.05


def test_a_result_says_what_it_ran_on(measuring, tmp_path):
    measuring.write_result(tmp_path / "results" / "a.json", {"environment": measuring.environment(["numpy"])})
    found = json.loads((tmp_path / "results" / "a.json").read_text())["environment"]
    assert found["packages"]["numpy"]
    assert found["processor"]
