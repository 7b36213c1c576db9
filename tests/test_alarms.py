import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_shop import make_shards
from test_trainer import make_run

from facetclip.alarms import collapse_alarm, mean_cosine
from facetclip.launch import make_accelerator
from facetclip.trainer import Trainer


def test_a_loss_that_falls_from_chance_is_no_alarm() -> None:
    assert collapse_alarm(1.08, before=1.3, chance=1.0986, likeness=0.4) is None
    assert collapse_alarm(0.9, before=0.9, chance=1.0986, likeness=0.4) is None
    assert collapse_alarm(math.log(3), before=math.log(3), chance=math.inf, likeness=0.4) is None


def test_a_loss_stuck_at_chance_says_what_to_change() -> None:
    alarm = collapse_alarm(1.0986, before=1.0990, chance=math.log(3), likeness=0.4)
    assert alarm is not None
    assert "that of a guess (1.099)" in alarm
    assert "optimizer.lr" in alarm


def test_photos_that_all_look_alike_are_an_alarm() -> None:
    alarm = collapse_alarm(0.5, before=0.6, chance=1.1, likeness=0.999)
    assert alarm is not None
    assert "shrunk together (mean cosine 0.999)" in alarm


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    features = torch.nn.functional.normalize(torch.randn(9, 5), dim=1)
    cosines = (features @ features.T)[~torch.eye(9, dtype=torch.bool)]
    ours = mean_cosine(features.sum(dim=0).square().sum(), 9)
    assert ours.item() == pytest.approx(cosines.mean().item(), abs=1e-6)


def test_a_run_on_labels_that_photos_know_nothing_of_is_warned_of_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chance = np.random.default_rng(0).integers(0, 2, 80).astype(np.int16)
    make_shards(tmp_path / "shards", 80, labels={"category": chance})
    run = make_run(
        tmp_path,
        train={"steps": 60, "batch": 16},
        optimizer={"lr": 1e-6, "warmup_steps": 0},
        validation={"every": 60},
        objective={"weights": {"sleeve": 0.0, "colour": 0.0}},
    )
    Trainer(run, make_accelerator()).train()
    errors = capfd.readouterr().err
    assert errors.count("warning: the loss") == 1
    assert "is that of a guess" in errors
