import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_shop import SCHEMA, make_labels, make_reader, make_shards

from facetclip.abstention import Cutoff
from facetclip.calibration import Calibration
from facetclip.catalog import read_catalog
from facetclip.cli import main
from facetclip.errors import UserError
from facetclip.evaluate import Beside, Cut, evaluate, evaluate_reader, examiner
from facetclip.findings import Answered, Questions, promises, readings
from facetclip.index import ShardIndex
from facetclip.intervals import numbers_of
from facetclip.metrics import listed_values, measure_attribute, read_values
from facetclip.mistakes import worst_mistakes
from facetclip.model import ModelCard, load_model, save_model
from facetclip.policy import Policy, decide
from facetclip.registry import file_evaluation, register
from facetclip.report import EvalReport
from facetclip.schema import NOT_APPLICABLE, UNLABELLED, Schema
from facetclip.scores import Scores, reader_digest, reader_for, score_rows
from facetclip.slicing import columns_of, slices
from facetclip.spool import RunRecord
from facetclip.tracking import connector

HOSTILE = "<img src=x onerror=window.hacked=1><b>"


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


def test_a_rival_is_compared_item_by_item(tmp_path, index, start):
    rival = fine_tuned(tmp_path / "rival", None)
    report = evaluate(start, index.folder, "test", tmp_path / "report", beside=Beside("none", rival))
    assert report.zero_shot is None
    assert report.rival is not None
    assert report.rival.source == rival
    assert report.over_rival is not None
    for name, measured in report.model.attributes.items():
        behind = report.rival.attributes[name].accuracy
        assert report.over_rival.attributes[name]["accuracy"].value == pytest.approx(measured.accuracy - behind)
    assert report.over_rival.exact_match.value == pytest.approx(
        report.model.exact_match.value - report.rival.exact_match.value
    )
    same = evaluate(start, index.folder, "test", tmp_path / "report", beside=Beside("none", start)).over_rival
    assert same is not None
    assert {each.high - each.low for each in (*same.mean.values(), same.exact_match)} == {0.0}


def test_all_attributes_are_right_where_each_that_is_labelled_is(index):
    reader, rows = make_reader(), index.rows("test")
    report, scores = evaluate_reader(reader, index, "test")
    right, labelled = 0, 0
    for place, row in enumerate(rows):
        verdicts = []
        for name, attribute in SCHEMA.attributes.items():
            listed = listed_values(attribute, index.labels[name][[row]])[0]
            read = read_values(attribute, scores.probabilities[name][[place]])[0]
            verdicts += [bool((listed == read).all())] if listed.any() else []
        labelled += bool(verdicts)
        right += bool(verdicts) and all(verdicts)
    assert report.model.exact_match.value == pytest.approx(right / labelled)


def test_a_model_with_a_rule_fewer_is_compared_in_what_both_can_find(index):
    facts = SCHEMA.model_dump()
    facts["attributes"]["colour"]["applies_where"] = {"category": ["shirt"]}
    labels = make_labels(len(index))
    colour = np.where(labels["category"] == 1, NOT_APPLICABLE, labels["colour"])
    asked = Questions(SCHEMA, {**labels, "colour": colour}, np.asarray(index.products))
    more = make_reader(schema=Schema.model_validate(facts))
    answered = []
    for reader in (more, make_reader()):
        scores = replace(score_rows(make_reader(), index, np.arange(len(index))), schema=reader.schema)
        answered.append(Answered("model", "digest", reader.card, scores))
    (ours, theirs), (over,) = readings(asked, answered)
    assert "not_applicable_f1" in ours.estimates["colour"].keys() - theirs.estimates["colour"].keys()
    assert over.attributes["sleeve"]["not_applicable_f1"].value == 0.0
    assert (over.mean["not_applicable_f1"].low, over.mean["not_applicable_f1"].high) == (0.0, 0.0)


def test_promotion_tallies_what_the_report_says(index, start):
    examined = examiner(index.folder, "test")(start)
    report, _ = evaluate_reader(load_model(start), index, "test")
    for name, each in examined.tallies.items():
        numbers = {key: found.value for key, found in report.model.estimates[name].items() if "coverage" not in key}
        assert numbers_of(each) == numbers


def test_a_model_from_before_an_attribute_was_added_is_examined_on_its_own(tmp_path, index):
    facts = SCHEMA.model_dump()
    del facts["attributes"]["colour"]
    older = make_reader(schema=Schema.model_validate(facts))
    save_model(older, tmp_path / "older", card=replace(older.card, start="starter"))
    save_model(make_reader(), tmp_path / "newer", card=replace(make_reader().card, start="starter"))
    examine = examiner(index.folder, "test")
    champion, challenger = examine(str(tmp_path / "older")), examine(str(tmp_path / "newer"))
    assert (set(champion.tallies), champion.unlabelled) == ({"category", "sleeve"}, ())
    assert set(challenger.tallies) == set(SCHEMA.names)
    assert set(decide(challenger, champion, Policy(least=1)).differences) == {"category", "sleeve"}
    assert "does not read colour" in decide(champion, challenger, Policy(least=1)).reason


def test_a_model_from_before_a_value_was_added_is_examined_by_the_names_of_its_values(tmp_path, index):
    facts = SCHEMA.model_dump()
    facts["attributes"]["sleeve"]["values"] = ["short", "bell", "long"]  # `none` is new, `bell` is no more
    older = make_reader(schema=Schema.model_validate(facts))
    save_model(older, tmp_path / "older", card=replace(older.card, start="starter"))
    examined = examiner(index.folder, "test")(str(tmp_path / "older"))
    rows = index.rows("test")
    labels, read = index.labels["sleeve"][rows], score_rows(older, index, rows).probabilities["sleeve"]
    right = np.where(read[:, 2] >= read[:, 0], 0, 1) == labels
    assert numbers_of(examined.tallies["sleeve"])["accuracy"] == pytest.approx(right[labels >= 0].mean())
    assert examined.unknown == {"sleeve": {2: "none"}}
    challenger = examiner(index.folder, "test")(save(tmp_path))
    assert set(decide(challenger, examined, Policy(least=1)).differences) == set(SCHEMA.names)
    assert "does not know 'none' of sleeve" in decide(examined, challenger, Policy(least=1)).reason
    with pytest.raises(UserError, match="reads sleeve as one of short, bell, long, the data lists one of long, short"):
        reader_for(str(tmp_path / "older"), SCHEMA)
    facts["attributes"]["sleeve"]["separator"] = "|"
    several = make_reader(schema=Schema.model_validate(facts))
    save_model(several, tmp_path / "several", card=replace(several.card, start="starter"))
    with pytest.raises(UserError, match="reads sleeve as several of short, bell, long, the data lists one of"):
        examiner(index.folder, "test")(str(tmp_path / "several"))


def save(folder: Path) -> str:
    return str(save_model(make_reader(3), folder / "newer", card=replace(make_reader(3).card, start="starter")))


def test_the_models_own_cut_offs_are_tried_as_gaps_are_filled(index):
    reader = make_reader()
    reader.calibration = {"category": Calibration(0.5), "sleeve": Calibration(0.03)}
    cutoffs = {"category": (Cutoff(0.9, 0.0), Cutoff(0.95, 0.97)), "sleeve": (Cutoff(0.99, 0.0),)}
    reader.card = replace(reader.card, cutoffs=cutoffs, by_product=("category",))
    (report, scores), rows = evaluate_reader(reader, index, "test"), index.rows("test")
    all_given, some = report.model.promises["category"]
    assert (all_given.precision, all_given.coverage, some.precision) == (0.9, 1.0, 0.95)
    assert all_given.kept is not None
    assert all_given.kept.value == report.model.attributes["category"].accuracy  # one photo a product here
    sure = scores.probabilities["category"].max(axis=1)[index.labels["category"][rows] >= 0]
    assert some.coverage == pytest.approx((sure >= 0.97).mean())
    category, known = index.labels["category"][rows], index.labels["sleeve"][rows] >= 0
    excluded = (
        np.where(category >= 0, category, scores.predicted()["category"]) == 1
    )  # pants, of which no sleeve is told
    assert (scores.predicted()["category"][known] == 1).sum() > excluded[known].sum() > 0
    assert [each.precision for each in report.model.promises["sleeve"]] == [0.9, 0.95, 0.99]
    assert report.model.promises["sleeve"][0].coverage == pytest.approx((~excluded)[known].mean())
    assert "colour" not in report.model.promises


def test_promises_are_tried_with_what_other_rows_of_a_product_list_and_never_the_cell_itself() -> None:
    products = np.repeat(np.arange(40), 2)
    labels = products % 2
    labels[1:20:2] = UNLABELLED  # the first ten products list one cell, the others two that agree
    silent = {name: np.full(80, UNLABELLED) for name in ("sleeve", "colour")}
    even = {name: np.full((80, len(each.values)), 1 / len(each.values)) for name, each in SCHEMA.attributes.items()}
    scores = Scores(np.arange(80), [str(row) for row in range(80)], SCHEMA, even, {})
    cutoffs = {"category": (Cutoff(0.9, 0.6), Cutoff(0.95, 0.6))}
    asked = Questions(SCHEMA, {"category": labels, **silent}, products)
    for together, share in ((("category",), 60 / 70), ((), 0.0)):
        card = ModelCard(cutoffs=cutoffs, by_product=together)
        for promise in promises(asked, Answered("it", "it", card, scores))["category"]:
            assert promise.coverage == pytest.approx(share)
            assert (promise.kept.value if promise.kept else None) == (1.0 if share else None)


def test_the_worst_mistakes_are_the_surest_wrong_answers_one_a_product(tmp_path, index, start):
    report = evaluate(start, index.folder, "test", tmp_path / "report")
    scores, rows = score_rows(load_model(start), index, index.rows("test")), index.rows("test")
    labels, read = index.labels["category"][rows], scores.probabilities["category"]
    wrong = np.flatnonzero((labels >= 0) & (read.argmax(axis=1) != labels))
    found = report.mistakes["category"]
    assert {each.row for each in found} == set(rows[wrong].tolist())
    assert [each.probability for each in found] == sorted((each.probability for each in found), reverse=True)
    for each in found:
        place = rows.tolist().index(each.row)
        assert each.listed == SCHEMA.attributes["category"].values[labels[place]]
        assert each.listed_probability == pytest.approx(float(read[place, labels[place]]))
        assert (each.item_id, each.product_id) == (f"item {each.row}", f"P{each.row // 2}")
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == sum(map(len, report.mistakes.values()))
    assert [len(each) for each in worst_mistakes(index, scores, most=2).values()] == [2, 2, 2]


def test_items_are_sliced_by_columns_of_the_catalog_in_whatever_order_it_is(tmp_path, index, start):
    rows = [f"item {number},{'Acme' if number % 8 == 1 else HOSTILE if number == 3 else ''}" for number in range(22)]
    (tmp_path / "shop.csv").write_text("\n".join(["id,brand", *reversed(rows)]))
    cut = Cut(("brand", "product", "category"), str(tmp_path / "shop.csv"))
    report = evaluate(start, index.folder, "test", tmp_path / "report", cut=cut)
    brands = {each.value: each for each in report.slices["brand"]}
    assert {value: each.items for value, each in brands.items()} == {"": 7, "Acme": 3, HOSTILE: 1}
    assert all(each.small for each in brands.values())
    reader, place = load_model(start), index.rows("test") % 8 == 1
    scores = score_rows(reader, index, index.rows("test"))
    labels = index.labels["category"][index.rows("test")][place]
    expected = measure_attribute(SCHEMA.attributes["category"], labels, scores.probabilities["category"][place])
    assert expected is not None
    assert brands["Acme"].accuracy["category"] == expected.accuracy
    assert [each.items for each in report.slices["product"]] == [1] * 11
    assert {each.value for each in report.slices["category"]} == {"", "shirt", "pants"}
    page = (tmp_path / "report" / "index.html").read_text()
    assert HOSTILE not in page
    assert "few products" in page


def test_rare_values_are_one_slice_and_a_slice_without_a_label_has_no_numbers(tmp_path, monkeypatch):
    silent = {name: np.where(np.arange(22) == 1, UNLABELLED, column) for name, column in make_labels(22).items()}
    index = make_shards(tmp_path / "shards", labels=silent)
    monkeypatch.setattr("facetclip.slicing.MOST_SLICES", 4)
    (_, scores), rows = evaluate_reader(make_reader(), index, "test"), index.rows("test")
    asked = Questions.of(index, rows)
    found = slices(asked, scores, columns_of(index, rows, ["product"], None))["product"]
    assert [(each.value, each.items, each.merged) for each in found] == [
        ("P0", 1, 0),
        ("P1", 1, 0),
        ("P10", 1, 0),
        ("", 8, 8),
    ]
    assert (found[0].numbers, found[0].accuracy) == ({}, {})
    assert set(found[1].numbers) == {"accuracy", "macro_f1", "exact_match"}


def test_items_are_sliced_by_a_split_of_a_dataset(tmp_path, index, start):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"id": f"item {number}", "brand": "Acme"} for number in range(22)])
    datasets.DatasetDict({"whole": rows, "little": rows.select([0])}).save_to_disk(str(tmp_path / "shop"))
    words = [
        "evaluate",
        str(start),
        "--shards",
        str(index.folder),
        "--out",
        str(tmp_path / "report"),
        "--against",
        "none",
    ]
    words += ["--slice", "brand", "--catalog", str(tmp_path / "shop"), "--dataset-split"]
    assert main([*words, "whole"]) == 0
    (brand,) = json.loads((tmp_path / "report" / "report.json").read_text())["slices"]["brand"]
    assert (brand["value"], brand["items"]) == ("Acme", 11)
    assert main([*words, "little"]) == 2


def test_columns_that_are_not_there_are_named(tmp_path, index):
    rows = index.rows("test")
    (tmp_path / "shop.csv").write_text("id,brand\nitem 1,Acme\n")
    with pytest.raises(UserError, match="the index knows product, category, sleeve, colour; give the catalog"):
        columns_of(index, rows, ["brand"], None)
    with pytest.raises(UserError, match=r"shop.csv: no column 'brnad'; did you mean 'brand'"):
        columns_of(index, rows, ["brnad"], read_catalog(str(tmp_path / "shop.csv")))
    with pytest.raises(UserError, match=r"shop.csv: has no item 'item 3'"):
        columns_of(index, rows, ["brand"], read_catalog(str(tmp_path / "shop.csv")))


def test_an_evaluation_is_filed_in_the_run_of_its_model(tmp_path, store, index, capsys):
    client = connector(store)()
    run = client.create_run(client.create_experiment("shops")).info.run_id
    model = fine_tuned(tmp_path / "run" / "model", None)
    RunRecord(tmp_path / "run", store, "shops", "run", {}, {}, run_id=run).update()
    register(Path(model), name="shop", run_id=run)
    out = tmp_path / "report"
    for number, source in enumerate((model, "models:/shop@challenger")):
        assert main(["evaluate", source, "--shards", str(index.folder), "--out", str(out)]) == 0
        assert f"MLflow: run {run}, evaluation/test" in capsys.readouterr().out
        assert len(client.get_metric_history(run, "evaluation/test/mean/macro_f1")) == number + 1
    report = EvalReport.from_json((out / "report.json").read_text())
    assert report.model.source == "models:/shop/1"
    metrics = client.get_run(run).data.metrics
    for name, value in report.numbers().items():
        assert metrics[f"evaluation/test/{name}"] == pytest.approx(value)
    filed = {item.path for item in client.list_artifacts(run, "evaluation/test")}
    assert filed == {f"evaluation/test/{name}" for name in ("index.html", "report.json", "summary.png")}


def test_a_model_without_a_folder_is_not_the_run_that_one_stands_in(tmp_path, store, monkeypatch):
    client = connector(store)()
    run = client.create_run(client.create_experiment("shops")).info.run_id
    RunRecord(tmp_path, store, "shops", "run", {}, {}, run_id=run).update()
    monkeypatch.chdir(tmp_path)
    assert file_evaluation("starter", "test", {"mean/accuracy": 0.5}, tmp_path) is None
    assert not client.get_run(run).data.metrics


def test_mlflow_down_costs_an_evaluation_one_line(tmp_path, index, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    model = fine_tuned(tmp_path / "run" / "model", None)
    RunRecord(tmp_path / "run", "http://127.0.0.1:9", "shops", "run", {}, {}, run_id="a").update()
    assert main(["evaluate", model, "--shards", str(index.folder), "--out", str(tmp_path / "report")]) == 0
    assert "but not in MLflow" in capsys.readouterr().err
    assert (tmp_path / "report" / "report.json").is_file()


@pytest.mark.xdist_group("browser")
def test_the_page_fits_a_phone_and_asks_for_nothing(tmp_path, index, start):
    browser = pytest.importorskip("selenium.webdriver")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium here; apt-get install chromium chromium-driver")
    rows = [f"item {number},{HOSTILE}{'long' * 40}" for number in range(22)]
    (tmp_path / "shop.csv").write_text("\n".join(["id,brand", *rows]))
    beside, cut = Beside(start, fine_tuned(tmp_path / "rival", None)), Cut(("brand",), str(tmp_path / "shop.csv"))
    evaluate(start, index.folder, "test", tmp_path / "report", beside=beside, cut=cut)
    options = browser.ChromeOptions()
    options.binary_location = binary
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(word)
    opened = browser.Chrome(options, browser.ChromeService(driver))
    try:
        for width in (375, 1400):
            metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 400}
            opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            opened.get((tmp_path / "report" / "index.html").as_uri())
            assert opened.execute_script("return document.documentElement.scrollWidth") <= width
        assert opened.execute_script("return window.hacked") is None
        assert HOSTILE in opened.execute_script("return document.getElementById('slices').parentElement.textContent")
        asked = "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
        assert opened.execute_script(asked) == []
        drawn = "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
        assert opened.execute_script(drawn) is True
        opened.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        )
        ground = "return getComputedStyle(document.body).backgroundColor"
        assert opened.execute_script(ground) == "rgb(17, 22, 28)"
    finally:
        opened.quit()


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
