"""`facetclip promote`: the challenger becomes the champion where it is better on the same items, and only there."""

import fcntl
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from facetclip.errors import UserError
from facetclip.registry import CHALLENGER, DIGEST_TAG, aliases, connect_registry, model_folder, told
from facetclip.report import EvalReport
from facetclip.tracking import LONGEST_TAG, metric_name, tracking_uri

CHAMPION = "champion"
LOG = "promotions.jsonl"


@dataclass(frozen=True)
class Decision:
    """Whether the challenger becomes the champion, and why; `challenger` and `champion` are the versions compared."""

    promote: bool
    reason: str
    challenger: str | None = None
    champion: str | None = None


def decide(challenger: EvalReport, champion: EvalReport | None, margin: float = 0.0) -> Decision:
    """The challenger wins where its mean macro-F1 exceeds the champion's by more than `margin`, on the same items.

    The mean is over the attributes that the champion reads. Whatever is missing or is no number refuses.
    """
    refusal = unusable(challenger, "challenger")
    if champion is not None:
        refusal = refusal or unusable(champion, "champion") or incomparable(challenger, champion)
    if refusal:
        return Decision(False, refusal)
    if champion is None:
        return Decision(True, f"there is no champion yet; mean macro-F1 {mean_macro_f1(challenger, challenger):.4f}")
    ours, theirs = mean_macro_f1(challenger, champion), mean_macro_f1(champion, champion)
    numbers = f"mean macro-F1 {ours:.4f}, the champion's is {theirs:.4f}"
    if ours > theirs + margin:
        return Decision(True, numbers)
    return Decision(False, f"not better: {numbers}" + (f"; wanted: over {margin:g} more" if margin else ""))


def unusable(report: EvalReport, role: str) -> str | None:
    """Why a report cannot be compared with any other."""
    if not report.model.attributes:
        return f"no attribute of the {role} was measured"
    broken = [name for name, metrics in report.model.attributes.items() if not math.isfinite(metrics.macro_f1)]
    return f"the {role}'s macro-F1 of {', '.join(broken)} is no number" if broken else None


def incomparable(challenger: EvalReport, champion: EvalReport) -> str | None:
    """Why two reports cannot be compared with each other."""
    if challenger.model.digest == champion.model.digest:
        return "the challenger is the champion's own model"
    for name in ("split", "data_digest", "items"):
        ours, theirs = getattr(challenger, name), getattr(champion, name)
        if ours != theirs:
            return f"they were measured on different data: {name} {ours} and {theirs}"
    missing = sorted(set(champion.model.attributes) - set(challenger.model.attributes))
    return f"the challenger does not read {', '.join(missing)}, which the champion does" if missing else None


def mean_macro_f1(report: EvalReport, like: EvalReport) -> float:
    """Mean macro-F1 over the attributes that `like` measures."""
    names = list(like.model.attributes)
    return math.fsum(report.model.attributes[name].macro_f1 for name in names) / len(names)


def promote(name: str, score: Callable[[str], EvalReport], *, margin: float = 0.0) -> Decision:
    """Make the challenger of `name` its champion if `decide` says so; `score` measures a local model folder.

    Scoring takes no lock: should another promoter move an alias meanwhile, everything is compared anew. The decision is
    logged before the alias is written, so a kill leaves the old champion, never none. UserError where the registry
    cannot be reached, the model has no challenger, or `score` cannot read it.
    """
    contest = Contest(connect_registry(), name, score, margin)
    while True:
        known = aliases(contest.client, name)
        decision = contest.decision(known.get(CHALLENGER), known.get(CHAMPION))
        with promoting(name), told(f"registered model {name!r}"):
            if aliases(contest.client, name) == known:
                contest.settle(decision)
                return decision


class Contest:
    """The versions of one registered model as measured by one promoter."""

    def __init__(self, client: Any, name: str, score: Callable[[str], EvalReport], margin: float) -> None:
        self.client, self.name, self.score, self.margin = client, name, score, margin
        self.reports: dict[str, EvalReport] = {}

    def decision(self, challenger: str | None, champion: str | None) -> Decision:
        """Compare two versions, measuring each once."""
        if challenger is None:
            raise UserError(
                f"{self.name}: no version has the alias {CHALLENGER!r}; train with tracking.register_as={self.name}, "
                "or give a version the alias in MLflow"
            )
        if challenger == champion:
            return Decision(False, f"version {champion} is the champion already", challenger, champion)
        refusal = self.measure(challenger)
        if champion is not None and not refusal:
            try:
                refusal = self.measure(champion)
            except UserError as error:
                refusal = f"the champion, version {champion}, cannot be measured on this data: {error}"
        if refusal:
            return Decision(False, refusal, challenger, champion)
        theirs = self.reports[champion] if champion else None
        return replace(decide(self.reports[challenger], theirs, self.margin), challenger=challenger, champion=champion)

    def measure(self, version: str) -> str | None:
        """Score a version unless it is scored; returns why it does not count."""
        if version not in self.reports:
            self.reports[version] = self.score(model_folder(self.client, self.name, version))
        with told(f"models:/{self.name}/{version}"):
            filed = self.client.get_model_version(self.name, version).tags.get(DIGEST_TAG)
        changed = filed is not None and filed != self.reports[version].model.digest
        return f"the files of version {version} are not those that were registered" if changed else None

    def settle(self, decision: Decision) -> None:
        """Write the decision on the challenger and in the log, then, where it is a yes, the alias."""
        version = str(decision.challenger)
        said = f"{'promoted' if decision.promote else 'refused'}: {decision.reason}"
        facts = {"decision": said[:LONGEST_TAG]} | {key: str(value) for key, value in self.measured(version).items()}
        for key, value in facts.items():
            self.client.set_model_version_tag(self.name, version, f"facetclip.test.{metric_name(key)}", value)
        self.log(decision)
        if decision.promote:
            self.client.set_registered_model_alias(self.name, CHAMPION, version)
            if (found := aliases(self.client, self.name).get(CHAMPION)) != version:
                raise UserError(f"{self.name}: version {found} became champion at the same time; promote again")

    def measured(self, version: str | None) -> dict[str, Any]:
        """The numbers of a version and what they were measured on; nothing where it was not measured."""
        report = self.reports.get(str(version))
        if report is None:
            return {}
        named = {f"macro_f1.{name}": metrics.macro_f1 for name, metrics in report.model.attributes.items()}
        facts = {"split": report.split, "items": report.items, "data_digest": report.data_digest}
        return {"macro_f1": report.model.mean.macro_f1, **named, **facts, "digest": report.model.digest}

    def log(self, decision: Decision) -> None:
        """Append the decision beside a SQLite store; on a server, as a tag of the registered model."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {"time": now, "model": self.name, **asdict(decision), "margin": self.margin}
        entry |= {"measured": {v: self.measured(v) for v in (decision.challenger, decision.champion) if v}}
        line = json.dumps(entry, ensure_ascii=False)
        if (database := sqlite_file(tracking_uri())) is None:
            self.client.set_registered_model_tag(self.name, f"facetclip.promotion.{now}", line[:LONGEST_TAG])
            return
        with (database.parent / LOG).open("a", encoding="utf-8") as log:
            log.write(line + "\n")
            log.flush()
            os.fsync(log.fileno())


@contextmanager
def promoting(name: str) -> Iterator[None]:
    """One promoter of `name` at a time, on this machine; the lock goes with its process."""
    uri = tracking_uri()
    database = sqlite_file(uri)
    mark = hashlib.sha256(f"{uri}\0{name}".encode()).hexdigest()[:16]
    folder = database.parent if database else Path(tempfile.gettempdir())
    with (folder / f".facetclip-promote-{mark}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for a server."""
    return Path(uri.partition(":///")[2]) if uri.startswith("sqlite:///") else None
