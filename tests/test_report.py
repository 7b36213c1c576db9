import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facetclip.abstention import Cutoff
from facetclip.findings import Answered, Questions, readings
from facetclip.intervals import Estimate
from facetclip.metrics import AttributeMetrics, measure_attribute
from facetclip.model import ModelCard
from facetclip.report import EvalReport, Mistake, Slice, comparison_tables, summary_table
from facetclip.report_page import render_page, write_report
from facetclip.report_pictures import (
    MOST_DRAWN,
    draw_confusion,
    draw_reliability,
    draw_summary,
    drawn_confusion,
)
from facetclip.schema import Attribute, Schema
from facetclip.scores import Scores
from facetclip.tables import text_table

HOSTILE = '<script>alert("x")</script>'


def measured(values: list[str], *, seed: int = 0, items: int = 60, skill: float = 2.0) -> AttributeMetrics:
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, len(values), items)
    logits = draw.normal(size=(items, len(values)))
    logits[np.arange(items), truth] += skill
    powers = np.exp(logits)
    found = measure_attribute(
        Attribute(column="a", values=tuple(values)), truth, powers / powers.sum(axis=1, keepdims=True)
    )
    assert found is not None
    return found


def answered(schema: Schema, labels: dict[str, np.ndarray], *, skill: float, source: str) -> Answered:
    """A model that knows the labels a little; its cut-offs are those of a training."""
    draw, probabilities = np.random.default_rng(1), {}
    for name, truth in labels.items():
        logits = draw.normal(size=(len(truth), len(schema.attributes[name].values)))
        logits[np.arange(len(truth)), np.maximum(truth, 0)] += skill
        powers = np.exp(logits)
        probabilities[name] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    card = ModelCard(cutoffs={"lid": (Cutoff(0.9, 0.6), Cutoff(0.95, 0.999999))})
    rows = np.arange(len(next(iter(labels.values()))))
    return Answered(source, source[0] * 64, card, Scores(rows, [f"i{row}" for row in rows], schema, probabilities, {}))


def make_report(*, zero_shot: bool = True, rival: bool = False, values: list[str] | None = None) -> EvalReport:
    kinds = {"handle": values or ["one", "two", "none"], "lid": ["yes", "no"], "capacity": ["1 l", "2 l"]}
    attributes = {name: Attribute(column=name, values=tuple(each)) for name, each in kinds.items()}
    schema = Schema(columns={"item": "i", "product": "p", "image": "f"}, attributes=attributes)  # pyright: ignore[reportArgumentType] - pydantic reads it
    draw = np.random.default_rng(0)
    labels = {name: draw.integers(0, len(each), 60) for name, each in kinds.items()} | {"capacity": np.full(60, -1)}
    asked = Questions(schema, labels, np.arange(60) // 2)
    skills = {"runs/demo/model": 2.0} | ({"starter": 0.3} if zero_shot else {}) | ({"champion": 1.0} if rival else {})
    models = [answered(schema, labels, skill=skill, source=source) for source, skill in skills.items()]
    (model, *others), more = readings(asked, models)
    beside = dict(zip([part for part, there in (("zero", zero_shot), ("rival", rival)) if there], others, strict=True))
    over = dict(zip(beside, more, strict=True))
    word = (values or ["plain"])[0]
    cut = Slice(word, 4, 1, True, {"accuracy": Estimate(1, 1, 1)}, {"lid": 1.0})
    shown = {key: Estimate(0.5, 0.25, 0.75) for key in ("accuracy", "macro_f1", "exact_match")}
    return EvalReport(
        split="test",
        items=60,
        products=30,
        data_digest="d" * 64,
        model=model,
        zero_shot=beside.get("zero"),
        rival=beside.get("rival"),
        over_zero_shot=over.get("zero"),
        over_rival=over.get("rival"),
        slices={word: (replace(cut, numbers=shown), Slice("silent", 2, 2, True, {}, {}))},
        mistakes={"lid": (Mistake(7, word, "P", word, word, word, 0.9, 0.1),)},
        unmeasured=("capacity",),
    )


class Page(HTMLParser):
    """The tags of a page, and what loads from elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "srcset")]


@pytest.mark.parametrize("zero_shot", [True, False])
def test_a_report_survives_the_journey_through_json(zero_shot):
    report = make_report(zero_shot=zero_shot)
    assert EvalReport.from_json(report.to_json()) == report


def test_what_is_no_number_survives_json_too():
    unknown = Estimate(0.5, math.nan, math.nan)
    report = make_report(zero_shot=True)
    model = replace(report.model, exact_match=unknown, mean=report.model.mean | {"ece": unknown})
    text = replace(report, model=model).to_json()
    assert "NaN" not in text
    again = EvalReport.from_json(text)
    assert again.to_json() == text
    assert math.isnan(again.model.exact_match.low)
    assert math.isnan(again.model.mean["ece"].high)


def test_a_tracker_gets_every_number_with_its_interval_and_the_differences():
    report = make_report(rival=True)
    numbers, f1 = report.numbers(), [each.macro_f1 for each in report.model.attributes.values()]
    assert numbers["mean/macro_f1"] == pytest.approx(np.mean(f1))
    assert numbers["lid/accuracy"] == report.model.attributes["lid"].accuracy
    assert numbers["mean/macro_f1_low"] < numbers["mean/macro_f1"] < numbers["mean/macro_f1_high"]
    assert report.rival is not None
    behind = report.rival.attributes["lid"].accuracy
    assert numbers["over_rival/lid/accuracy"] == pytest.approx(numbers["lid/accuracy"] - behind)
    assert {"mean/exact_match", "over_zero_shot/mean/exact_match_low", "handle/coverage_95_high"} <= set(numbers)
    assert all(np.isfinite(number) for number in numbers.values())


def test_the_confusion_matrix_is_drawn_most_frequent_value_first_and_loses_no_item():
    values = [f"value {place}" for place in range(40)]
    numbers = measured(values, items=500, skill=4.0)
    names, counts = drawn_confusion(numbers)
    assert len(names) == len(counts) == MOST_DRAWN
    assert counts.sum() == numbers.items
    rows = counts.sum(axis=1)[:-1]
    assert (np.diff(rows) <= 0).all()
    seen = sum(bool(support) for support in numbers.support)
    assert names[-1] == f"{seen - MOST_DRAWN + 1} other values"


def test_one_mistake_among_thousands_is_shown():
    report = make_report(values=["yes", "no"])
    lid = report.model.attributes["lid"]
    report.model.attributes["lid"] = replace(lid, confusion=((5000, 2), (3, 7000)))
    page = render_page(report, {})
    assert re.findall(r"<td[^>]*>([\d,]+)</td>", page.split("<h3>lid</h3>")[1])[:4] == ["7,000", "3", "2", "5,000"]


def test_values_that_never_occur_are_not_drawn():
    numbers = measure_attribute(
        Attribute(column="a", values=("x", "y", "z")), np.array([0, 0, 2]), np.eye(3)[[0, 0, 2]]
    )
    assert numbers is not None
    names, counts = drawn_confusion(numbers)
    assert names == ["x", "z"]
    assert counts.tolist() == [[2, 0], [0, 1]]


@pytest.mark.parametrize("size", [2, 11, 45])
def test_pictures_are_whole_and_the_same_every_time(size):
    numbers = measured([f"a value with a long name, number {place} of $many" for place in range(size)], items=300)
    drawn = draw_confusion("material $ & finish", numbers)
    with Image.open(io.BytesIO(drawn)) as picture:
        picture.load()
        assert min(picture.size) > 300
        assert max(picture.size) < 3000
        assert np.asarray(picture.convert("L")).std() > 5
    assert draw_confusion("material $ & finish", numbers) == drawn


@pytest.mark.parametrize(
    "values", [["黒", "白"], ["$5 off $a", r"\frac{$}$"], ["{value}", '5" pan'], ["_x_", "^", "\u202eabc"]]
)
def test_values_in_any_letters_are_drawn_without_a_word(values: list[str]) -> None:
    numbers = measured(values)
    for name in values:
        for picture in (draw_confusion(name, numbers), draw_reliability(name, numbers)):
            assert Image.open(io.BytesIO(picture)).width > 300


def test_the_summary_picture_draws_with_and_without_zero_shot():
    for zero_shot in (True, False):
        with Image.open(io.BytesIO(draw_summary(make_report(zero_shot=zero_shot)))) as picture:
            picture.load()


def test_the_page_needs_nothing_beside_it_and_escapes_every_word():
    report = make_report(values=[HOSTILE, "two", "none"], rival=True)
    page = render_page(report, {7: "AAAA"})
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;") > 10
    found = Page(page)
    assert {link.partition(",")[0] for link in found.links if link[0] != "#"} == {"data:image/jpeg;base64"}
    assert "default-src 'none'; img-src data:" in page
    assert "script" not in found.tags
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


@pytest.mark.parametrize("zero_shot", [True, False])
def test_the_page_shows_the_numbers_of_the_report(zero_shot):
    report = make_report(zero_shot=zero_shot)
    text = re.sub(r"<style>.*</style>|<[^>]+>", " ", render_page(report, {}), flags=re.DOTALL)
    for each in (report.model.mean["macro_f1"], report.model.estimates["handle"]["coverage_95"]):
        assert f"{each.value:.3f}" in text
        assert f"{each.low:.3f} to {each.high:.3f}" in text
    assert ("More than zero-shot" in text) is zero_shot
    assert "no picture" in text
    assert ("zero-shot" in text) is zero_shot
    assert "capacity" in text


def test_the_folder_holds_json_page_and_one_picture_an_attribute(tmp_path: Path):
    write_report(make_report(), tmp_path / "out", {})
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    pictures = [f"{kind}_{name}.png" for kind in ("confusion", "reliability") for name in ("handle", "lid")]
    assert names == sorted([*pictures, "index.html", "report.json", "summary.png"])


def test_an_attribute_named_like_a_path_stays_in_the_folder(tmp_path: Path):
    report = make_report(zero_shot=False)
    for part in (report.model.attributes, report.model.estimates, report.model.curves):
        part["../up/it"] = part["lid"]  # type: ignore[assignment] - the same key of each
    write_report(report, tmp_path / "out", {})
    assert {path.parent for path in tmp_path.rglob("*.png")} == {tmp_path / "out"}


def test_the_terminal_table_sets_zero_shot_beside_the_model():
    lines = summary_table(make_report()).splitlines()
    assert lines[0].split("  ")[0] == "attribute"
    assert [line.split()[0] for line in lines[2:]] == ["handle", "lid", "mean"]
    assert len({len(line) for line in lines}) == 1
    assert "zero-shot" not in summary_table(make_report(zero_shot=False))


def test_the_terminal_says_what_the_model_has_more_than_each_other():
    report = make_report(rival=True)
    assert report.over_rival is not None
    text = comparison_tables(report)
    assert "more than zero-shot (starter):" in text
    assert f"{report.over_rival.mean['macro_f1'].low:+.4f}" in text.partition("rival (champion):")[2]
    assert comparison_tables(make_report(zero_shot=False)) == ""


def test_wide_letters_take_two_columns_of_a_table():
    lines = text_table(["名前", "n"], [["色", "1"], ["color", "22"]]).splitlines()
    assert lines[2] == "色      1"
    assert lines[3] == "color  22"
