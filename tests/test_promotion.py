"""The challenger becomes champion where it is better on the same items, and there is never no champion."""

import fcntl
import math
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_shop import make_reader, make_shards

from facetclip import intervals, promotion
from facetclip.cli import main
from facetclip.errors import UserError
from facetclip.intervals import Tally, tally
from facetclip.model import save_model
from facetclip.policy import Decision, Examined, Policy, decide
from facetclip.promotion import promote, rollback
from facetclip.promotion_log import Entry, append, history, previous
from facetclip.registry import DIGEST_TAG, register
from facetclip.schema import Attribute
from facetclip.tracking import connector

PRODUCTS = 200
YES_NO = Attribute(column="a", values=("yes", "no"))
POLICY = Policy()


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 200)


def answered(right: float, products: int = PRODUCTS) -> Tally:
    """The tally of a model that reads the first `right` of the products as they are, and the others wrong."""
    labels = np.arange(products) % 2
    read = np.where(np.arange(products) < right * products, labels, 1 - labels)
    found = tally(YES_NO, labels, np.where(read[:, None] == np.arange(2), 0.8, 0.2), np.arange(products))
    assert found is not None
    return found


def examined(digest: str = "a", /, products: int = PRODUCTS, **right: float) -> Examined:
    """What a model of this digest answered, so right in each attribute."""
    tallies = {name: answered(share, products) for name, share in right.items()}
    return Examined(digest, "test", products, "d", tallies)


def broken(each: Examined, name: str, number: float) -> Examined:
    """The same with a number in one attribute's sums that is none."""
    sums = each.tallies[name].sums.copy()
    sums[3, 1] = number
    return replace(each, tallies={**each.tallies, name: replace(each.tallies[name], sums=sums)})


CHAMPION = examined("champion", lid=0.8, handle=0.6)
BETTER = examined(lid=0.8, handle=0.7)


@pytest.mark.parametrize(
    ("challenger", "champion", "promoted", "reason"),
    [
        (BETTER, CHAMPION, True, "0.7500, the champion's is 0.7000"),
        (examined(lid=0.8, handle=0.6), CHAMPION, False, "not shown to be better"),
        (examined(lid=0.7, handle=0.6), CHAMPION, False, "lid may be worse by more than 0.05: -0.1000"),
        (examined(lid=0.7, handle=0.9), CHAMPION, False, "lid may be worse"),  # although better on the mean
        (examined(lid=0.8, handle=0.605), CHAMPION, False, "not shown to be better"),  # by one product of 200
        (examined(lid=0.1, handle=0.1), None, True, "no champion yet"),
        (broken(BETTER, "handle", math.nan), CHAMPION, False, "challenger's numbers of handle are no numbers"),
        (broken(BETTER, "lid", math.inf), None, False, "challenger's numbers of lid are no numbers"),
        (BETTER, broken(CHAMPION, "lid", math.nan), False, "champion's numbers of lid are no numbers"),
        (examined(lid=0.99), CHAMPION, False, "does not read handle"),
        (examined(), None, False, "no attribute of the challenger"),
        (replace(BETTER, unlabelled=("strap",)), None, False, "too few labelled products"),
        (examined("b", 20, lid=0.9), None, False, "too few labelled products to judge by, 30 are wanted: lid of 20"),
        (examined(lid=0.9, handle=0.6, colour=0.1), CHAMPION, True, "0.7500"),  # a new attribute counts neither way
        (replace(BETTER, data_digest="e"), CHAMPION, False, "different data: data_digest e and d"),
        (replace(BETTER, split="train"), CHAMPION, False, "different data: split"),
        (replace(BETTER, items=8), CHAMPION, False, "different data: items 8 and 200"),
        (replace(BETTER, digest="champion"), CHAMPION, False, "the champion's own model"),
        (replace(BETTER, kept=BETTER), CHAMPION, False, "only one of them"),
        (replace(BETTER, kept=examined()), None, False, "no attribute of the challenger was measured on other shards"),
    ],
)
def test_what_decides(challenger: Examined, champion: Examined | None, promoted: bool, reason: str) -> None:
    decision = decide(challenger, champion, POLICY)
    assert decision.promote == promoted
    assert reason in decision.reason


def test_each_rule_can_be_set() -> None:
    assert decide(examined(lid=0.75, handle=0.9), CHAMPION, Policy(margin=0.2)).promote
    refused = decide(BETTER, CHAMPION, Policy(gain=0.05))
    assert "not shown to be more than 0.05 better on the mean: +0.0500" in refused.reason
    assert decide(examined("b", 20, lid=0.9), None, Policy(least=20)).promote


@pytest.mark.parametrize(("kept", "promoted"), [(0.9, True), (0.89, True), (0.8, False)])
def test_what_it_still_reads_elsewhere_has_a_budget(kept: float, promoted: bool) -> None:
    champion = replace(CHAMPION, kept=examined("champion", shape=0.9))
    decision = decide(replace(BETTER, kept=examined(shape=kept)), champion, Policy(most_lost=0.05))
    assert decision.promote == promoted
    assert decision.kept is not None
    assert decision.kept.value == pytest.approx(kept - 0.9)
    assert ("on other shards it may have lost more than 0.05" in decision.reason) == (not promoted)


@pytest.mark.parametrize(("right", "promoted"), [(0.8, False), (0.84, False), (0.89, False), (0.94, True)])
def test_a_value_that_the_champion_does_not_know_hides_no_loss_in_the_others(right: float, promoted: bool) -> None:
    """The fourth value of four is new: the champion never reads it, and is right in 95% of the others."""
    attribute = Attribute(column="sleeve", values=("long", "short", "none", "bell"))
    labels, place = np.arange(800) % 4, np.arange(800) // 4

    def reading(share: float, *, known: int) -> Tally:
        wrong = (place % 100 >= 100 * share) | (labels >= known)
        read = np.where(wrong, (labels + 1) % known, labels)
        found = tally(attribute, labels, np.eye(4)[read], np.arange(800))
        assert found is not None
        return found

    champion = Examined(
        "champion", "test", 800, "d", {"sleeve": reading(0.95, known=3)}, unknown={"sleeve": {3: "bell"}}
    )
    decision = decide(Examined("b", "test", 800, "d", {"sleeve": reading(right, known=4)}), champion, POLICY)
    assert decision.promote == promoted
    assert decision.mean is not None
    assert decision.mean.low > 0
    assert ("sleeve may be worse by more than 0.05" in decision.reason) == (not promoted)


numbers = st.sampled_from([math.nan, math.inf, -math.inf, 0.0]) | st.floats(0, 1)


@settings(max_examples=30)
@given(ours=numbers, theirs=numbers, margin=st.floats(0, 0.5))
def test_nobody_is_promoted_by_what_is_no_number_nor_back_and_forth(ours: float, theirs: float, margin: float) -> None:
    def made(digest: str, number: float) -> Examined:
        good = math.isfinite(number)
        each = examined(digest, lid=number if good else 0.9)
        return each if good else broken(each, "lid", number)

    one, other = made("one", ours), made("other", theirs)
    policy = Policy(margin=margin)
    there, back = decide(one, other, policy).promote, decide(other, one, policy).promote
    assert not (there and back)
    assert not (there or back) or (math.isfinite(ours) and math.isfinite(theirs))


def test_the_champion_before_is_found_below_the_present_one() -> None:
    log = [Entry("promoted", "1", None, ""), Entry("refused", "2", "1", ""), Entry("promoted", "3", "1", "")]
    assert previous(log, "3") == "1"
    assert previous(log, "1") is None
    log.append(Entry("promoted", "4", "3", ""))  # killed before its alias was written
    assert previous(log, "3") == "1"
    log += [Entry("promoted", "4", "3", ""), Entry("rolled back", "3", "4", "")]
    assert previous(log, "4") == "3"  # killed before the alias went back
    assert previous(log, "3") == "1"
    log += [Entry("promoted", "5", "3", ""), Entry("rolled back", "3", "5", "")]
    assert previous(log, "3") == "1"
    assert previous(log, "9") == "3"  # somebody else's alias
    assert previous([Entry("promoted", "8", "7", "")], "8") == "7"  # champion before there was a log


class Registry:
    """A registered model whose versions have made-up answers."""

    def __init__(self, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client = connector(uri)()
        self.client.create_registered_model("shop")
        self.examined: dict[str, Examined] = {}
        self.seen: list[str] = []
        monkeypatch.setattr(promotion, "model_folder", lambda client, name, version: version)

    def add(self, made: Examined, alias: str | None = "challenger", digest: str | None = None) -> str:
        tags = {DIGEST_TAG: digest or made.digest}
        version = str(self.client.create_model_version("shop", "/nowhere", tags=tags).version)
        if alias:
            self.client.set_registered_model_alias("shop", alias, version)
        self.examined[version] = made
        return version

    def examine(self, folder: str) -> Examined:
        self.seen.append(folder)
        return self.examined[folder]

    def promote(self, version: str | None = None) -> Decision:
        return promote("shop", self.examine, POLICY, version=version)

    def rollback(self) -> tuple[str | None, str | None]:
        return rollback("shop", lambda folder: self.examined[folder].digest)

    @property
    def aliases(self) -> dict[str, str]:
        return {alias: str(version) for alias, version in self.client.get_registered_model("shop").aliases.items()}

    def log(self) -> list[Entry]:
        return history(self.client, "shop")


@pytest.fixture
def registry(store: str, monkeypatch: pytest.MonkeyPatch) -> Registry:
    return Registry(store, monkeypatch)


def test_what_another_promoter_rolled_back_meanwhile_is_not_promoted_again(registry: Registry) -> None:
    registry.add(examined("a", lid=0.5))
    registry.promote()
    registry.add(examined("b", lid=0.9))
    examine = registry.examine

    def while_another_is_at_work(folder: str) -> Examined:
        if folder == "2" and "2" not in registry.seen:
            assert registry.promote().promote
            assert registry.rollback() == ("1", "2")
        return examine(folder)

    decision = promote("shop", while_another_is_at_work, POLICY)
    assert (decision.promote, decision.reason) == (False, "version 2 was rolled back; train another")
    assert registry.aliases["champion"] == "1"


def test_two_spellings_of_a_store_share_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for uri in ("sqlite:///mlflow.db", f"sqlite:///{tmp_path}/mlflow.db", f"sqlite:///{tmp_path}/x/../mlflow.db"):
        monkeypatch.setattr(promotion, "tracking_uri", lambda uri=uri: uri)
        with promotion.promoting("shop"):
            pass
    assert len(list(tmp_path.glob(".facetclip-promote-*.lock"))) == 1


def test_the_first_challenger_becomes_champion_and_only_a_better_one_follows(registry: Registry) -> None:
    registry.add(examined("a", lid=0.5))
    assert registry.promote().promote
    assert registry.aliases == {"challenger": "1", "champion": "1"}
    assert registry.promote() == Decision(False, "version 1 is the champion already", "1", "1")
    registry.add(examined("b", lid=0.4))
    worse = registry.promote()
    assert (worse.promote, worse.challenger, worse.champion) == (False, "2", "1")
    assert registry.aliases == {"challenger": "2", "champion": "1"}
    registry.add(examined("c", lid=0.6))
    assert registry.promote().promote
    assert registry.aliases == {"challenger": "3", "champion": "3"}

    told = [(entry.version, entry.action, entry.before) for entry in registry.log()]
    assert told == [("1", "promoted", None), ("1", "refused", "1"), ("2", "refused", "1"), ("3", "promoted", "1")]
    numbers = registry.log()[-1].numbers
    assert numbers["macro_f1"] == pytest.approx(0.6)
    assert numbers["differences"]["lid"][0] == numbers["mean"][0] == pytest.approx(0.1)
    assert (numbers["split"], numbers["data_digest"], numbers["digest"]) == ("test", "d", "c")
    assert numbers["policy.margin"] == POLICY.margin
    tags = registry.client.get_model_version("shop", "2").tags
    assert tags["facetclip.test.decision"].startswith("refused: lid may be worse")
    assert tags["facetclip.test.macro_f1.lid"].startswith("0.4")
    assert tags["facetclip.test.data_digest"] == "d"


def test_a_long_decision_leaves_the_numbers_of_single_attributes_to_the_version(registry: Registry) -> None:
    registry.add(examined("a", lid=0.5))
    many = {f"an attribute with a long name, number {place}": [0.1, 0.05, 0.15] for place in range(100)}
    append(registry.client, "shop", Entry("refused", "1", None, "because " * 500, {"split": "test", "all": many}))
    (entry,) = registry.log()
    assert entry.numbers == {"split": "test"}
    assert entry.reason.startswith("because because")


def test_any_version_can_be_judged_and_one_that_is_not_there_is_one_line(registry: Registry) -> None:
    registry.add(examined("a", lid=0.5))
    registry.add(examined("b", lid=0.7))
    assert registry.promote("1").promote
    assert registry.aliases["champion"] == "1"
    with pytest.raises(UserError, match="models:/shop/9"):
        registry.promote("9")


def test_changed_files_refuse_whoever_has_them(registry: Registry) -> None:
    registry.add(examined("b", lid=0.9), digest="a")
    refused = registry.promote()
    assert refused.reason == "the files of version 1 are not those that were registered"
    registry.add(examined("c", lid=0.9), "champion", digest="d")
    registry.add(examined("e", lid=0.95))
    assert "version 2" in registry.promote().reason
    assert registry.aliases["champion"] == "2"


@pytest.mark.parametrize(("unreadable", "role"), [("1", "champion"), ("2", "challenger")])
def test_a_model_that_cannot_be_measured_refuses_and_it_is_logged(
    registry: Registry, unreadable: str, role: str
) -> None:
    registry.add(examined("a", lid=0.5), "champion")
    registry.add(examined("b", lid=0.9))

    def examine(folder: str) -> Examined:
        if folder == unreadable:
            raise UserError("its weights are damaged")
        return registry.examine(folder)

    refused = promote("shop", examine, POLICY)
    assert refused.reason.startswith(f"the {role}, version {unreadable}, cannot be measured: its weights are damaged")
    assert ("give another the alias" in refused.reason) == (role == "champion")
    assert registry.aliases["champion"] == "1"
    assert registry.log()[-1].reason == refused.reason


def test_no_challenger_and_no_model_are_one_line(registry: Registry) -> None:
    with pytest.raises(UserError, match="no version has the alias 'challenger'"):
        registry.promote()
    with pytest.raises(UserError, match="registered model 'elsewhere'"):
        promote("elsewhere", registry.examine, POLICY)
    with pytest.raises(UserError, match="registered model 'elsewhere'"):
        rollback("elsewhere", str)


def test_whoever_became_champion_meanwhile_is_compared_with(registry: Registry) -> None:
    registry.add(examined("a", lid=0.5), "champion")
    registry.add(examined("b", lid=0.7))

    def examine(folder: str) -> Examined:
        if folder == "2" and "2" not in registry.seen:
            registry.add(examined("c", lid=0.8), "champion")  # another promoter, while this one measures
        return registry.examine(folder)

    refused = promote("shop", examine, POLICY)
    assert (refused.promote, refused.challenger, refused.champion) == (False, "2", "3")
    assert registry.seen == ["2", "1", "3"]
    assert registry.aliases["champion"] == "3"


def test_rolling_back_goes_to_the_champion_before_and_what_was_rolled_back_stays_out(registry: Registry) -> None:
    assert registry.rollback() == (None, None)
    for place in range(3):
        registry.add(examined(f"m{place}", lid=0.5 + place / 10))
        assert registry.promote().promote
    assert registry.rollback() == ("2", "3")
    assert registry.promote().reason == "version 3 was rolled back; train another"
    assert registry.rollback() == ("1", "2")
    assert registry.rollback() == (None, "1")
    assert registry.aliases["champion"] == "1"
    assert [entry.action for entry in registry.log()] == [*["promoted"] * 3, "rolled back", "refused", "rolled back"]


def test_a_version_with_changed_files_is_not_gone_back_to(registry: Registry) -> None:
    for place in range(2):
        registry.add(examined(f"m{place}", lid=0.5 + place / 10))
        registry.promote()
    registry.examined["1"] = examined("changed", lid=0.5)
    with pytest.raises(UserError, match="files of version 1 are not those that were registered; nothing was rolled"):
        registry.rollback()
    assert registry.aliases["champion"] == "2"


def in_processes(*works: Callable[[], object]) -> list[int | None]:
    """Exit codes of forked processes that do one work each, all at once; none has used the store before."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def copied(folder: Path, name: str) -> str:
    """The store once more, as it is now, under a URI that no process has open."""
    place = folder / name / "mlflow.db"
    place.parent.mkdir()
    shutil.copy(folder / "mlflow.db", place)
    return f"sqlite:///{place}"


def promoter(registry: Registry, uri: str, version: str, fault: str = "") -> Callable[[], None]:
    def work() -> None:
        os.environ |= {"MLFLOW_TRACKING_URI": uri, "FACETCLIP_FAULT": fault}
        registry.promote(version)

    return work


def standing(uri: str) -> tuple[str | None, list[Entry]]:
    client = connector(uri)()
    found = client.get_registered_model("shop").aliases.get("champion")
    return found and str(found), history(client, "shop")


def sixteen(registry: Registry, seed: int) -> list[str]:
    """Versions of sixteen models in any order; the last named is the best."""
    order = np.random.default_rng(seed).permutation(16)
    versions = {place: registry.add(examined(f"m{place}", lid=0.3 + 0.04 * place)) for place in order.tolist()}
    return [versions[place] for place in range(16)]


def assert_best_won(versions: list[str], champion: str | None, log: list[Entry]) -> None:
    assert champion == versions[-1]
    assert sorted(entry.version for entry in log) == sorted(versions)
    promoted = [entry for entry in log if entry.action == "promoted"]
    # each follows the one before: nobody was judged against a champion of yesterday
    assert [entry.before for entry in promoted] == [None, *(entry.version for entry in promoted[:-1])]


def test_sixteen_promoters_at_once_end_with_the_best_as_champion(registry: Registry, tmp_path: Path) -> None:
    versions = sixteen(registry, 0)
    uri = copied(tmp_path, "sixteen")
    assert in_processes(*(promoter(registry, uri, version) for version in versions)) == [0] * 16
    assert_best_won(versions, *standing(uri))


@pytest.mark.parametrize(
    "fault", ["promote.decided:1", "promote.tagged:1", "promote.tagged:7", "promote.logged:1", "promote.crowned:1"]
)
def test_a_promoter_killed_between_two_steps_leaves_a_champion_and_the_next_try_ends_it(
    registry: Registry, tmp_path: Path, fault: str
) -> None:
    registry.add(examined("a", lid=0.5), "champion")
    registry.add(examined("b", lid=0.7))
    uri = copied(tmp_path, "killed")
    assert in_processes(promoter(registry, uri, "2", fault)) == [-signal.SIGKILL]
    champion, log = standing(uri)
    assert champion == ("2" if "crowned" in fault else "1")
    assert len(log) == ("logged" in fault or "crowned" in fault)
    assert in_processes(promoter(registry, uri, "2")) == [0]
    assert standing(uri)[0] == "2"


@pytest.mark.parametrize("fault", ["rollback.checked:1", "rollback.logged:1", "promote.crowned:1"])
def test_a_rollback_killed_between_two_steps_leaves_a_champion_and_the_next_try_ends_it(
    registry: Registry, tmp_path: Path, fault: str
) -> None:
    for place in range(2):
        registry.add(examined(f"m{place}", lid=0.5 + place / 10))
        registry.promote()
    uri = copied(tmp_path, "killed")

    def back(fault: str = "") -> Callable[[], None]:
        def work() -> None:
            os.environ |= {"MLFLOW_TRACKING_URI": uri, "FACETCLIP_FAULT": fault}
            registry.rollback()

        return work

    assert in_processes(back(fault)) == [-signal.SIGKILL]
    assert standing(uri)[0] == ("1" if "crowned" in fault else "2")
    assert in_processes(back()) == [0]
    assert standing(uri)[0] == "1"


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The URI of an empty database on a PostgreSQL of its own, which listens on loopback alone."""
    pytest.importorskip("psycopg2", reason="no driver here; pip install psycopg2-binary")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("no PostgreSQL here; apt-get install postgresql")
    data, user = folder / "data", ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    control = [*user, str(found[-1] / "pg_ctl"), "-s", "-w", "-D", str(data)]
    options = f"-p {port} -h 127.0.0.1 -k {folder}"
    subprocess.run([*control, "-o", "-U me --auth=trust", "initdb"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*control, "-o", options, "-l", str(folder / "log"), "start"], check=True)
    try:
        yield f"postgresql+psycopg2://me@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "fast", "stop"], check=True)


@pytest.mark.nightly
def test_sixteen_promoters_at_once_on_a_real_postgresql_some_of_them_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, postgres(Path(folder)) as uri:
        for seed in range(10):
            registry = Registry(uri, monkeypatch)
            versions = sixteen(registry, seed)
            theirs = f"{uri}?application_name=promoters{seed}"  # so that no process shares this one's connections
            faults = {3: "promote.tagged:3", 7: "promote.decided:1", 15: "promote.logged:1"} if seed % 2 else {}
            works = [promoter(registry, theirs, each, faults.get(n, "")) for n, each in enumerate(versions)]
            assert in_processes(*works) == [-signal.SIGKILL if n in faults else 0 for n in range(16)]
            again = [promoter(registry, theirs, versions[n]) for n in faults]
            assert in_processes(*again) == [0] * len(again)
            if faults:
                assert registry.aliases["champion"] == versions[-1]
            else:
                assert_best_won(versions, registry.aliases.get("champion"), registry.log())
            registry.client.delete_registered_model("shop")


def test_real_models_are_measured_promoted_and_rolled_back_by_the_command(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = make_shards(tmp_path / "shards")
    words = ["promote", "shop", "--shards", str(index.folder), "--least", "3"]
    folders = [save_model(make_reader(seed), tmp_path / f"model{seed}") for seed in (0, 1)]
    register(folders[0], name="shop")
    assert main(["promote", "shop", "--shards", str(index.folder)]) == 1
    assert "too few labelled products" in capsys.readouterr().out
    assert main([*words, "--retain", str(index.folder)]) == 0
    register(folders[1], name="shop")
    assert main([*words, "--margin", "1", "--gain", "-1", "--retain", str(index.folder), "--most-lost", "1"]) == 0
    assert "mean" in capsys.readouterr().out.splitlines()[-1]
    assert main(["rollback", "shop"]) == 0
    assert main(["rollback", "shop"]) == 1
    assert main([*words, "--version", "1"]) == 1
    assert main([*words, "--shards", str(tmp_path)]) == 2
    assert main(["rollback", "elsewhere"]) == 2
    damaged = make_reader(1)
    damaged.clip.logit_scale.data.fill_(math.nan)
    register(save_model(damaged, tmp_path / "damaged"), name="shop")
    capsys.readouterr()
    assert main(words) == 1
    assert "no numbers; its weights are damaged" in capsys.readouterr().out
    client = connector(store)()
    shutil.copy(tmp_path / "model1" / "model.safetensors", promotion.model_folder(client, "shop", "3"))
    assert main(words) == 1
    assert "the files of version 3 are not those that were registered" in capsys.readouterr().out
    assert str(client.get_registered_model("shop").aliases["champion"]) == "1"


def test_the_lock_of_another_user_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.lan")
    with tempfile.TemporaryDirectory() as folder:  # that everybody may enter
        Path(folder).chmod(0o1777)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        before = os.umask(0o077)
        try:
            with promotion.promoting("shop"):
                pass
        finally:
            os.umask(before)
        (lock,) = Path(folder).iterdir()
        lock.chmod(lock.stat().st_mode & 0o444)
        someone = os.geteuid() or 65534  # root may write everywhere
        os.seteuid(someone)
        try:
            with promotion.promoting("shop"), lock.open("rb") as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.seteuid(os.getuid())
