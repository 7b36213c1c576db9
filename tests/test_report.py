import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facetclip.metrics import AttributeMetrics, measure_attribute
from facetclip.report import (
    MOST_DRAWN,
    EvalReport,
    draw_confusion,
    draw_reliability,
    draw_summary,
    drawn_confusion,
    reading,
    render_page,
    summary_table,
    text_table,
    write_report,
)
from facetclip.schema import Attribute

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


def make_report(*, zero_shot: bool = True, values: list[str] | None = None) -> EvalReport:
    values = values or ["one", "two", "none"]
    start = {"handle": measured(values, skill=0.3), "lid": measured(["yes", "no"], seed=1, skill=0.3)}
    model = {"handle": measured(values), "lid": measured(["yes", "no"], seed=1)}
    return EvalReport(
        split="test",
        items=60,
        products=31,
        data_digest="d" * 64,
        model=reading("runs/demo/model", "m" * 64, model),
        zero_shot=reading("starter", "z" * 64, start) if zero_shot else None,
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


def test_the_mean_is_over_attributes():
    report = make_report()
    f1 = [measured.macro_f1 for measured in report.model.attributes.values()]
    assert report.model.mean.macro_f1 == pytest.approx(np.mean(f1))
    assert report.numbers()["mean/macro_f1"] == pytest.approx(np.mean(f1))
    assert report.numbers()["lid/accuracy"] == report.model.attributes["lid"].accuracy


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
    report = make_report(values=[HOSTILE, "two", "none"])
    page = render_page(report)
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    found = Page(page)
    assert found.links == []
    assert "script" not in found.tags
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


@pytest.mark.parametrize("zero_shot", [True, False])
def test_the_page_shows_the_numbers_of_the_report(zero_shot):
    report = make_report(zero_shot=zero_shot)
    text = re.sub(r"<[^>]+>", " ", render_page(report))
    for number in (report.model.mean.macro_f1, report.model.attributes["handle"].accuracy):
        assert f"{number:.3f}" in text
    assert ("zero-shot" in text) is zero_shot
    assert "capacity" in text


def test_the_folder_holds_json_page_and_one_picture_an_attribute(tmp_path: Path):
    write_report(make_report(), tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    pictures = [f"{kind}_{name}.png" for kind in ("confusion", "reliability") for name in ("handle", "lid")]
    assert names == sorted([*pictures, "index.html", "report.json", "summary.png"])


def test_an_attribute_named_like_a_path_stays_in_the_folder(tmp_path: Path):
    report = make_report(zero_shot=False)
    report.model.attributes["../up/it"] = report.model.attributes["lid"]
    write_report(report, tmp_path / "out")
    assert {path.parent for path in tmp_path.rglob("*.png")} == {tmp_path / "out"}


def test_the_terminal_table_sets_zero_shot_beside_the_model():
    lines = summary_table(make_report()).splitlines()
    assert lines[0].split("  ")[0] == "attribute"
    assert [line.split()[0] for line in lines[2:]] == ["handle", "lid", "mean"]
    assert len({len(line) for line in lines}) == 1
    assert "zero-shot" not in summary_table(make_report(zero_shot=False))


def test_wide_letters_take_two_columns_of_a_table():
    lines = text_table(["名前", "n"], [["色", "1"], ["color", "22"]]).splitlines()
    assert lines[2] == "色      1"
    assert lines[3] == "color  22"
