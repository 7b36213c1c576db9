"""The challenger becomes champion where it is better on the same items, and there is never no champion."""

import json
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_shop import make_reader, make_shards

from facetclip import promotion
from facetclip.errors import UserError
from facetclip.evaluate import evaluate
from facetclip.metrics import AttributeMetrics, Baseline
from facetclip.model import save_model
from facetclip.promotion import LOG, Decision, decide, promote
from facetclip.registry import DIGEST_TAG, register
from facetclip.report import EvalReport, reading
from facetclip.tracking import connector


def report(digest: str = "a", /, **macro_f1: float) -> EvalReport:
    """A report with these macro-F1; `digest` is that of the model."""
    baseline = Baseline("yes", 0.5, 0.3, 0.5)
    attributes = {
        name: AttributeMetrics(
            ("yes", "no"), 9, 0.5, value, 0.5, 0.7, (0.5, 0.5), (4, 5), ((2, 2), (2, 3)), baseline, 0, ()
        )
        for name, value in macro_f1.items()
    }
    model = reading("folder", digest, attributes) if attributes else replace(reading("f", digest, REST), attributes={})
    return EvalReport(split="test", items=9, products=4, data_digest="d", model=model)


REST = {
    "lid": AttributeMetrics(("a", "b"), 1, 1, 1, 1, 1, (1, 1), (1, 1), ((1, 1), (1, 1)), Baseline("a", 1, 1, 1), 0, ())
}
CHAMPION = report("champion", lid=0.8, handle=0.6)


@pytest.mark.parametrize(
    ("challenger", "champion", "promoted", "reason"),
    [
        (report(lid=0.8, handle=0.7), CHAMPION, True, "0.7500, the champion's is 0.7000"),
        (report(lid=0.8, handle=0.6), CHAMPION, False, "not better"),
        (report(lid=0.7, handle=0.6), CHAMPION, False, "not better"),
        (report(lid=0.1, handle=0.1), None, True, "no champion yet"),
        (report(lid=0.9, handle=math.nan), CHAMPION, False, "challenger's macro-F1 of handle is no number"),
        (report(lid=math.inf, handle=0.9), None, False, "challenger's macro-F1 of lid is no number"),
        (report(lid=0.9, handle=0.9), report("c", lid=math.nan, handle=0.1), False, "champion's macro-F1 of lid"),
        (report(lid=0.99), CHAMPION, False, "does not read handle"),
        (report(), None, False, "no attribute of the challenger"),
        (report(lid=0.85, handle=0.6, colour=0.1), CHAMPION, True, "0.7250"),  # a new attribute counts neither way
        (replace(report(lid=0.9, handle=0.9), data_digest="e"), CHAMPION, False, "different data: data_digest e and d"),
        (replace(report(lid=0.9, handle=0.9), split="train"), CHAMPION, False, "different data: split"),
        (replace(report(lid=0.9, handle=0.9), items=8), CHAMPION, False, "different data: items 8 and 9"),
        (report("champion", lid=0.9, handle=0.9), CHAMPION, False, "the champion's own model"),
    ],
)
def test_what_decides(challenger: EvalReport, champion: EvalReport | None, promoted: bool, reason: str) -> None:
    decision = decide(challenger, champion)
    assert decision.promote == promoted
    assert reason in decision.reason


def test_the_margin_must_be_exceeded() -> None:
    challenger = report(lid=0.85, handle=0.65)
    assert decide(challenger, CHAMPION, 0.04).promote
    refused = decide(challenger, CHAMPION, 0.06)
    assert not refused.promote
    assert "over 0.06 more" in refused.reason


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1)


@given(ours=numbers, theirs=numbers, margin=st.floats(0, 0.5))
def test_nobody_is_promoted_by_what_is_no_number_nor_back_and_forth(ours: float, theirs: float, margin: float) -> None:
    one, other = report("one", lid=ours), report("other", lid=theirs)
    there, back = decide(one, other, margin).promote, decide(other, one, margin).promote
    assert not (there and back)
    assert not (there or back) or (math.isfinite(ours) and math.isfinite(theirs))


class Registry:
    """A registered model whose versions have made-up reports."""

    def __init__(self, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client = connector(uri)()
        self.client.create_registered_model("shop")
        self.reports: dict[str, EvalReport] = {}
        self.scored: list[str] = []
        monkeypatch.setattr(promotion, "model_folder", lambda client, name, version: version)

    def add(self, made: EvalReport, alias: str = "challenger", digest: str | None = None) -> str:
        tags = {DIGEST_TAG: digest or made.model.digest}
        version = str(self.client.create_model_version("shop", "/nowhere", tags=tags).version)
        self.client.set_registered_model_alias("shop", alias, version)
        self.reports[version] = made
        return version

    def score(self, folder: str) -> EvalReport:
        self.scored.append(folder)
        return self.reports[folder]

    @property
    def aliases(self) -> dict[str, str]:
        return {alias: str(version) for alias, version in self.client.get_registered_model("shop").aliases.items()}


@pytest.fixture
def registry(store: str, monkeypatch: pytest.MonkeyPatch) -> Registry:
    return Registry(store, monkeypatch)


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def test_the_first_challenger_becomes_champion_and_only_a_better_one_follows(
    registry: Registry, tmp_path: Path
) -> None:
    registry.add(report("a", lid=0.5))
    assert promote("shop", registry.score).promote
    assert registry.aliases == {"challenger": "1", "champion": "1"}
    assert promote("shop", registry.score) == Decision(False, "version 1 is the champion already", "1", "1")
    registry.add(report("b", lid=0.4))
    worse = promote("shop", registry.score)
    assert (worse.promote, worse.challenger, worse.champion) == (False, "2", "1")
    assert registry.aliases == {"challenger": "2", "champion": "1"}
    registry.add(report("c", lid=0.6))
    assert promote("shop", registry.score).promote
    assert registry.aliases == {"challenger": "3", "champion": "3"}

    entries = log(tmp_path)
    assert [(entry["challenger"], entry["promote"]) for entry in entries] == [
        ("1", True),
        ("1", False),
        ("2", False),
        ("3", True),
    ]
    assert entries[-1]["measured"]["3"] == {
        **{"macro_f1": 0.6, "macro_f1.lid": 0.6},
        **{"split": "test", "items": 9, "data_digest": "d", "digest": "c"},
    }
    tags = registry.client.get_model_version("shop", "2").tags
    assert tags["facetclip.test.decision"].startswith("refused: not better")
    assert (tags["facetclip.test.macro_f1"], tags["facetclip.test.data_digest"]) == ("0.4", "d")


def test_changed_files_refuse_whoever_has_them(registry: Registry) -> None:
    registry.add(report("b", lid=0.9), digest="a")
    refused = promote("shop", registry.score)
    assert refused.reason == "the files of version 1 are not those that were registered"
    registry.add(report("c", lid=0.9), "champion", digest="d")
    registry.add(report("e", lid=0.95))
    assert "version 2" in promote("shop", registry.score).reason
    assert registry.aliases["champion"] == "2"


def test_a_champion_that_cannot_read_this_data_stays(registry: Registry) -> None:
    registry.add(report("a", lid=0.5), "champion")
    registry.add(report("b", lid=0.9))

    def score(folder: str) -> EvalReport:
        if folder == "1":
            raise UserError("it reads other attributes")
        return registry.score(folder)

    refused = promote("shop", score)
    assert refused.reason == "the champion, version 1, cannot be measured on this data: it reads other attributes"
    assert registry.aliases["champion"] == "1"


def test_a_challenger_that_cannot_be_read_is_the_users_to_mend(registry: Registry) -> None:
    registry.add(report("a", lid=0.5))

    def score(folder: str) -> EvalReport:
        raise UserError("damaged")

    with pytest.raises(UserError, match="damaged"):
        promote("shop", score)
    assert "champion" not in registry.aliases


def test_no_challenger_and_no_model_are_one_line(registry: Registry) -> None:
    with pytest.raises(UserError, match="no version has the alias 'challenger'"):
        promote("shop", registry.score)
    with pytest.raises(UserError, match="registered model 'elsewhere'"):
        promote("elsewhere", registry.score)


def test_whoever_became_champion_meanwhile_is_compared_with(registry: Registry) -> None:
    registry.add(report("a", lid=0.5), "champion")
    registry.add(report("b", lid=0.7))

    def score(folder: str) -> EvalReport:
        if folder == "2" and "2" not in registry.scored:
            registry.add(report("c", lid=0.8), "champion")  # another promoter, while this one measures
        return registry.score(folder)

    refused = promote("shop", score)
    assert (refused.promote, refused.challenger, refused.champion) == (False, "2", "3")
    assert registry.scored == ["2", "1", "3"]
    assert registry.aliases["champion"] == "3"


def test_promoters_at_once_end_with_the_best_as_champion(registry: Registry) -> None:
    """Each has its own challenger; the alias goes from one to the next as trainings end."""
    gate = threading.Lock()

    def contend(value: float) -> None:
        with gate:  # a training ends and is promoted; others end before its promotion does
            registry.add(report(f"m{value}", lid=value))
        promote("shop", registry.score)

    threads = [threading.Thread(target=contend, args=(value,)) for value in (0.3, 0.9, 0.5, 0.7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    champion = registry.reports[registry.aliases["champion"]]
    last = registry.reports[registry.aliases["challenger"]]
    assert champion.model.mean.macro_f1 >= last.model.mean.macro_f1


@pytest.mark.parametrize("step", ["set_model_version_tag", "set_registered_model_alias"])
def test_dying_in_the_middle_leaves_the_old_champion_and_the_next_try_ends_it(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    registry.add(report("a", lid=0.5), "champion")
    registry.add(report("b", lid=0.7))

    class Dead(BaseException):
        pass

    def die(*_: object) -> None:
        raise Dead

    with monkeypatch.context() as patch:
        patch.setattr(type(registry.client), step, die)
        with pytest.raises(Dead):
            promote("shop", registry.score)
    assert registry.aliases["champion"] == "1"
    assert promote("shop", registry.score).promote
    assert registry.aliases["champion"] == "2"


def test_real_models_are_measured_and_promoted(store: str, tmp_path: Path) -> None:
    make_shards(tmp_path / "shards")
    score: Callable[[str], EvalReport] = lambda folder: evaluate(  # noqa: E731 - as the command hands it on
        folder, tmp_path / "shards", "test", tmp_path / "report", zero_shot="none"
    )
    for seed in (0, 1):
        register(save_model(make_reader(seed), tmp_path / f"model{seed}"), name="shop")
        decision = promote("shop", score)
        assert decision.promote or seed, decision
    champion = connector(store)().get_registered_model("shop").aliases["champion"]
    assert str(champion) == ("2" if decision.promote else "1")
