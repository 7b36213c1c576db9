"""A launch of a run: what it refuses, and what it leaves of the launch before."""

from pathlib import Path
from typing import Any

import pytest
from small_shop import make_reader, make_shards
from test_trainer import make_run

from facetclip.config import RunConfig
from facetclip.errors import UserError
from facetclip.model import save_model
from facetclip.runs import run_training

OLD = ("best/model.safetensors", "model/model.safetensors", "checkpoints/step-00000004/manifest.json", "goodput.json")


@pytest.fixture
def shop(tmp_path: Path, store: str) -> Path:
    index = make_shards(tmp_path / "shards", 60, validation=True)
    save_model(make_reader(3, index.schema), tmp_path / "start")
    return tmp_path


def run_of(shop: Path, **changes: dict[str, Any]) -> RunConfig:
    sections: dict[str, dict[str, Any]] = {
        "model": {"start": str(shop / "start"), "new": None},
        "train": {"steps": 4},
        "tuning": {"mode": "probe"},
        "validation": {"every": 2},
    }
    return make_run(shop, sections, **changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sampling": {"over": ["nope"]}}, "no attribute 'nope'"),
        ({"data": {"shards": "nowhere"}}, "nowhere"),
        ({"model": {"start": "nothing/here"}}, "nothing/here"),
        ({"train": {"precision": "bf16"}}, "train.precision"),
    ],
    ids=["attribute", "shards", "start", "precision"],
)
def test_starting_over_with_a_mistake_leaves_the_old_run_as_it_was(
    shop: Path, changes: dict[str, dict[str, Any]], complaint: str
) -> None:
    run_training(run_of(shop))
    before = {name: (shop / "run" / name).read_bytes() for name in OLD}
    with pytest.raises(UserError, match=complaint):
        run_training(run_of(shop, **changes), fresh=True)
    assert {name: (shop / "run" / name).read_bytes() for name in OLD} == before


def test_a_run_cannot_start_over_from_what_it_would_delete(shop: Path) -> None:
    outcome = run_training(run_of(shop))
    with pytest.raises(UserError, match=r"model\.start = '.*best'.*--fresh deletes"):
        run_training(run_of(shop, model={"start": str(outcome.result.best)}), fresh=True)
    assert outcome.result.best.is_dir()


def test_a_run_that_starts_over_takes_nothing_from_the_one_before(shop: Path) -> None:
    first = run_training(run_of(shop))
    assert first.result.step
    (shop / "run" / "stacks.txt").touch()
    again = run_training(run_of(shop, train={"steps": 2, "seed": 1}), fresh=True)
    assert [path.name for path in (shop / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert again.result.step <= 2
    assert not (shop / "run" / "stacks.txt").exists()
