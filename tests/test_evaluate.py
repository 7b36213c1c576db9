import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_shop import SCHEMA, make_reader, make_shards

from facetclip.errors import UserError
from facetclip.evaluate import Beside, evaluate, evaluate_reader
from facetclip.index import ShardIndex
from facetclip.metrics import measure_attribute
from facetclip.model import load_model, save_model
from facetclip.report import EvalReport
from facetclip.schema import NOT_APPLICABLE, UNLABELLED
from facetclip.scores import reader_digest, score_rows


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a GPU is there too, its numbers are a little different."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("start")
    save_model(make_reader(seed=0), folder)
    return str(folder)


def fine_tuned(folder: Path, start: str | None) -> str:
    reader = make_reader(seed=1)
    save_model(reader, folder, card=replace(reader.card, start=start))
    return str(folder)


def test_a_report_holds_the_model_and_the_start_that_it_names(tmp_path, index, start):
    model = fine_tuned(tmp_path / "model", start)
    report = evaluate(model, index.folder, "test", tmp_path / "report")
    assert report.items == 11
    assert report.products == 11
    assert report.data_digest == index.digest
    assert report.model.source == model
    assert report.model.digest == reader_digest(load_model(model))
    assert report.zero_shot is not None
    assert report.zero_shot.source == start
    assert report.zero_shot.digest == reader_digest(load_model(start))
    assert report.zero_shot == evaluate_reader(load_model(start), index, "test", source=start)[0].model
    stored = (tmp_path / "report" / "report.json").read_text()
    assert EvalReport.from_json(stored) == report
    assert json.loads(stored)["model"]["mean"]["macro_f1"]["value"] == report.model.mean["macro_f1"].value


def test_what_is_measured_is_what_score_rows_gives(index):
    reader, rows = make_reader(), index.rows("test")
    report, _ = evaluate_reader(reader, index, "test")
    scores = score_rows(reader, index, rows)
    sleeveless = scores.predicted()["category"] == 1  # pants, by what is read and not by what is labelled
    for name, attribute in SCHEMA.attributes.items():
        excluded = sleeveless if name == "sleeve" else None
        expected = measure_attribute(attribute, index.labels[name][rows], scores.probabilities[name], excluded)
        assert report.model.attributes[name] == expected


def test_not_applicable_is_found_by_the_rules_on_what_is_read_alone(tmp_path):
    told, silent = (
        make_shards(tmp_path / name, labels=labels)
        for name, labels in (("told", {}), ("silent", {"category": np.full(22, UNLABELLED)}))
    )
    reader = make_reader()
    by_index = [evaluate_reader(reader, index, "test")[0].model.attributes["sleeve"] for index in (told, silent)]
    absent = told.labels["sleeve"][told.rows("test")] == NOT_APPLICABLE
    found = by_index[0].not_applicable
    assert found is not None
    assert found.items == absent.sum() > 0
    assert by_index[0] == by_index[1]


def test_attributes_without_a_rule_have_no_detection(index):
    attributes = evaluate_reader(make_reader(), index, "test")[0].model.attributes
    assert attributes["category"].not_applicable is None
    assert attributes["colour"].not_applicable is None
    assert attributes["colour"].exact_match is not None
    assert attributes["category"].exact_match is None


def test_two_evaluations_write_the_same_bytes(tmp_path, index, start):
    model = fine_tuned(tmp_path / "model", start)
    for out in ("a", "b"):
        evaluate(model, index.folder, "test", tmp_path / out)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_plain_model_reads_the_schema_of_the_index_and_stands_alone(tmp_path, index, start):
    (plain := tmp_path / "plain").mkdir()
    for path in Path(start).iterdir():
        if path.name != "facetclip.json":
            (plain / path.name).write_bytes(path.read_bytes())
    report = evaluate(str(plain), index.folder, "test", tmp_path / "report")
    assert report.zero_shot is None
    assert report.note is None
    assert report.model.mean == evaluate(start, index.folder, "test", tmp_path / "report").model.mean


def test_a_start_that_is_gone_is_said_and_stops_nothing(tmp_path, index):
    model = fine_tuned(tmp_path / "model", str(tmp_path / "gone"))
    report = evaluate(model, index.folder, "test", tmp_path / "report")
    assert report.zero_shot is None
    assert "gone" in str(report.note)
    assert "gone" in (tmp_path / "report" / "index.html").read_text()


def test_the_comparison_can_be_named_or_left_out(tmp_path, index, start):
    model = fine_tuned(tmp_path / "model", str(tmp_path / "gone"))
    named = evaluate(model, index.folder, "test", tmp_path / "report", beside=Beside(zero_shot=start))
    assert named.zero_shot is not None
    assert named.zero_shot.source == start
    alone = evaluate(model, index.folder, "test", tmp_path / "report", beside=Beside(zero_shot="none"))
    assert (alone.zero_shot, alone.note) == (None, None)
    with pytest.raises(UserError, match="gone"):
        evaluate(model, index.folder, "test", tmp_path / "report", beside=Beside(zero_shot=str(tmp_path / "gone")))


def test_an_attribute_without_labels_in_the_split_is_named_not_measured(tmp_path):
    index = make_shards(tmp_path / "shards", labels={"sleeve": np.full(22, UNLABELLED)})
    report, _ = evaluate_reader(make_reader(), index, "test")
    assert report.unmeasured == ("sleeve",)
    assert list(report.model.attributes) == ["category", "colour"]


def test_an_empty_or_silent_split_is_a_user_error(tmp_path, start):
    silent = {name: np.full(22, UNLABELLED) for name in SCHEMA.names}
    index = make_shards(tmp_path / "shards", labels=silent)
    with pytest.raises(UserError, match="the validation split is empty"):
        evaluate(start, index.folder, "validation", tmp_path / "report")
    with pytest.raises(UserError, match="the test split holds no label"):
        evaluate(start, index.folder, "test", tmp_path / "report")
    with pytest.raises(UserError, match="expected one of"):
        evaluate(start, index.folder, "tset", tmp_path / "report")
    with pytest.raises(UserError, match=r"no index\.parquet"):
        evaluate(start, tmp_path, "test", tmp_path / "report")
    assert not (tmp_path / "report").exists()
