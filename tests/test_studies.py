"""The two studies: what they train, that they go on where they stopped, and what they leave."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from fleet import launch_fleet
from PIL import Image
from small_shop import make_reader, make_shards
from test_trainer import make_run

from facetclip import studies
from facetclip.cli import main
from facetclip.config import RunConfig
from facetclip.errors import UserError
from facetclip.index import open_index
from facetclip.lease import RunLease
from facetclip.model import save_model
from facetclip.studies import PARENT, run_captions, run_curve
from facetclip.tracking import connector


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    index = make_shards(tmp_path / "shards", 80, validation=True)
    save_model(make_reader(3, index.schema), tmp_path / "start")
    return tmp_path


def run_of(shop: Path, **changes: Any) -> RunConfig:
    sections: dict[str, Any] = {
        "model": {"start": str(shop / "start"), "new": None},
        "train": {"steps": 4, "batch": 8},
        "tuning": {"mode": "probe"},
        "validation": {"every": 2},
        "optimizer": {"name": "adamw", "lr": 1e-2},
    }
    return make_run(shop, **{name: sections.get(name, {}) | changes.get(name, {}) for name in {*sections, *changes}})


def is_picture(path: Path) -> bool:
    with Image.open(path) as picture:
        return picture.format == "PNG" and picture.width > 300


def runs_of(shop: Path) -> list[Any]:
    client = connector(f"sqlite:///{shop / 'mlflow.db'}")()
    return client.search_runs([each.experiment_id for each in client.search_experiments()])


def test_a_curve_measures_every_size_and_seed_and_goes_on_where_it_stopped(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, fits = shop / "curve", 0
    fit = studies.fit

    def fit_until_the_third(trainer: Any) -> Any:
        nonlocal fits
        fits += 1
        if fits == 4:
            raise KeyboardInterrupt
        return fit(trainer)

    monkeypatch.setattr(studies, "fit", fit_until_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_curve(run_of(shop), out, sizes=(6, 12), seeds=2)
    assert not (out / "curve.json").exists()
    points = run_curve(run_of(shop), out, sizes=(6, 12), seeds=2)
    assert fits == 1 + 4 + 1  # zero-shot, two sizes by two seeds, and the one that was cut off
    sizes = {(point.items, point.seed) for point in points}
    assert sizes == {(0, 0), (6, 0), (12, 0), (6, 1), (12, 1)}
    assert {point.attribute for point in points} == {"category", "sleeve", "colour"}
    stored = json.loads((out / "curve.json").read_text())
    assert len(stored["points"]) == len(points)
    assert is_picture(out / "curve.png")
    assert not list(out.glob("runs/*/model"))
    assert "macro-F1 on the test split by labelled training images" in capsys.readouterr().out
    before = fits
    again = run_curve(run_of(shop), out, sizes=(6, 12), seeds=2)
    assert again == points
    assert fits == before

    nested = [run for run in runs_of(shop) if PARENT in run.data.tags]
    (parent,) = {run.data.tags[PARENT] for run in nested}
    assert parent in {run.info.run_id for run in runs_of(shop)}
    assert len(nested) == 5
    assert all("test/category/macro_f1" in run.data.metrics for run in nested)


def test_each_size_trains_on_so_many_labelled_images(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    fit = studies.fit

    def counted(trainer: Any) -> Any:
        seen.append(len(trainer.feed.rows))
        return fit(trainer)

    monkeypatch.setattr(studies, "fit", counted)
    run_curve(run_of(shop), shop / "curve", sizes=(5, 9), seeds=1)
    assert seen[1:] == [5, 9]


def test_captions_cross_forms_and_modes(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = run_captions(
        run_of(shop), shop / "captions", forms=("value", "several"), modes=("zero_shot", "probe"), seeds=2
    )
    cells = {(arm.form, arm.mode, arm.seed) for arm in arms}
    assert cells == {
        (form, *rest) for form in ("value", "several") for rest in (("zero_shot", 0), ("probe", 0), ("probe", 1))
    }
    zero = {arm.form: arm.macro_f1 for arm in arms if arm.mode == "zero_shot" and arm.attribute == "category"}
    assert len(zero) == 2
    assert is_picture(shop / "captions" / "captions.png")
    assert "mean over attributes" in capsys.readouterr().out


def test_what_is_measured_the_first_process_says_for_all(shop: Path) -> None:
    outs = [shop / "one machine's", shop / "another machine's"]
    points = run_curve(run_of(shop), outs[0], sizes=(6,), seeds=1)

    def work() -> None:
        assert run_curve(run_of(shop), outs[int(os.environ["RANK"])], sizes=(6,), seeds=1) == points

    ended = launch_fleet(shop / "fleet", 2, work, seconds=60)
    assert ended.codes == [0, 0], ended.errors


def test_a_study_of_another_run_is_refused(shop: Path) -> None:
    run_curve(run_of(shop), shop / "curve", sizes=(6,), seeds=1)
    with pytest.raises(UserError, match=r"optimizer\.lr was 0\.01, is 0\.1"):
        run_curve(run_of(shop, optimizer={"lr": 0.1}), shop / "curve", sizes=(6,), seeds=1)


def test_a_study_goes_on_under_settings_that_no_number_depends_on(shop: Path) -> None:
    run_curve(run_of(shop), shop / "curve", sizes=(6,), seeds=1)
    changed = {"loading": {"threads": 3}, "watch": {"timeout": 7}, "checkpoint": {"keep": 5}, "train": {"log_every": 3}}
    run_curve(run_of(shop, **changed), shop / "curve", sizes=(6,), seeds=1)
    with pytest.raises(UserError, match=r"tuning\.interpolate was True, is False"):  # the test split is read after it
        run_curve(run_of(shop, tuning={"interpolate": False}), shop / "curve", sizes=(6,), seeds=1)


def test_a_study_of_other_labels_or_another_start_is_refused_and_not_mixed(shop: Path) -> None:
    out = shop / "captions"
    run_captions(run_of(shop), out, forms=["value"], modes=["zero_shot"], seeds=1)
    with pytest.raises(UserError, match=r"data\.labelled was None, is 10") as error:
        run_captions(run_of(shop, data={"labelled": 10}), out, forms=["value"], modes=["zero_shot"], seeds=1)
    assert "--allow" not in str(error.value)  # which a study has not
    save_model(make_reader(4, open_index(shop / "shards").schema), shop / "start")
    with pytest.raises(UserError, match=r"model\.digest was"):
        run_captions(run_of(shop), out, forms=["value"], modes=["zero_shot"], seeds=1)


def test_a_study_cannot_be_started_twice(shop: Path) -> None:
    lease = RunLease(shop / "curve")
    with pytest.raises(UserError, match="is training this run"):
        run_curve(run_of(shop), shop / "curve", sizes=[5], seeds=1)
    lease.release()


def test_a_study_cuts_its_batches_as_the_run_does(shop: Path) -> None:
    study = studies.Study(run_of(shop, train={"micro_batch": 4}), shop / "curve")
    child = studies.Child("child", studies._labelled(study.run, 10, 1))
    assert study._run_of(child, shop / "child").train.micro_batch == 4


def test_more_than_is_labelled_cannot_be_asked_for(shop: Path) -> None:
    with pytest.raises(UserError, match="expected numbers from 1 to"):
        run_curve(run_of(shop), shop / "curve", sizes=(5000,), seeds=1)


def test_without_mlflow_the_study_is_the_same(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert run_curve(run_of(shop), shop / "curve", sizes=(6,), seeds=1)
    assert (shop / "curve" / "curve.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["curve", "--sizes", "ten"], "--sizes 'ten': expected numbers"),
        (["curve", "--targets", "90"], "--targets 90: expected scores between 0 and 1"),
        (["curve", "--seeds", "0"], "--seeds 0: expected at least 1"),
        (["captions", "--forms", "poem"], "--forms: no 'poem'; expected some of schema, value"),
        (["captions", "--modes", "half"], "--modes: no 'half'; expected some of zero_shot, probe"),
    ],
)
def test_what_is_misspelt_ends_with_2(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[data]\nshards = "s"\n[model]\nstart = "starter"\n[train]\nbatch = 8\n[output]\nfolder = "r"\n')
    assert main([words[0], str(path), "--out", str(tmp_path / "out"), *words[1:]]) == 2
    assert message in capsys.readouterr().err
