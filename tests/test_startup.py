"""The time before the first step."""

from pathlib import Path

import pytest
from benchmarks.startup import measure

MOST, OURS = 15.0, 2.0  # seconds of the processor


@pytest.mark.nightly
def test_a_training_is_at_its_first_step_within_fifteen_seconds_of_which_two_are_ours(tmp_path: Path) -> None:
    told = measure(tmp_path, rounds=1)["training/train.py"]
    assert told["processor seconds to the first step"] <= MOST
    assert told["ours"] <= OURS
