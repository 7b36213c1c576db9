from pathlib import Path

import pytest
from test_trainer import make_run

from facetclip.presets import completed, learning_rate_for, steps_for


@pytest.mark.parametrize("mode", ["probe", "prompt", "lora", "image_tower", "last_blocks", "full"])
@pytest.mark.parametrize("labelled", [20, 700, 100_000])
def test_a_run_is_completed_with_numbers_in_sane_ranges(tmp_path: Path, mode: str, labelled: int) -> None:
    open_run = make_run(
        tmp_path,
        train={"steps": None},
        optimizer={"lr": None, "name": "adamw"},
        validation={"every": None},
        checkpoint={"every": None},
        tuning={"mode": mode},
    )
    run = completed(open_run, labelled=labelled, width=768)
    assert run.train.steps is not None
    assert run.optimizer.lr is not None
    assert run.optimizer.warmup_steps is not None
    assert run.validation.every is not None
    assert run.train.steps >= 40
    assert run.optimizer.warmup_steps <= run.train.steps // 10
    assert 1e-6 <= run.optimizer.lr <= 1e-2
    assert 10 <= run.train.steps / run.validation.every <= 20
    assert run.checkpoint.every == run.validation.every


def test_what_was_given_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path, optimizer={"lr": 0.3, "warmup_steps": 0}, train={"steps": 7}, validation={"every": 3})
    done = completed(run, labelled=1000, width=128)
    assert (done.train.steps, done.optimizer.lr, done.optimizer.warmup_steps) == (7, 0.3, 0)
    assert (done.validation.every, done.checkpoint.every) == (3, 5)


def test_more_labels_need_more_steps_but_fewer_passes_over_each() -> None:
    few, many = steps_for(200, 64), steps_for(20_000, 64)
    assert few < many
    assert few * 64 / 200 > many * 64 / 20_000


def test_wider_towers_get_lower_rates_and_new_heads_do_not() -> None:
    assert learning_rate_for("full", 768) < learning_rate_for("full", 256) < learning_rate_for("full", 64)
    assert learning_rate_for("probe", 768) == learning_rate_for("probe", 128)
