"""`facetclip promote` and `facetclip rollback`: who is the champion among the versions of a registered model.

A decision is written in the log before the alias: a kill leaves the old champion, never none, and `promote` given
again ends what was begun. So does `rollback`, unless the alias had moved: then it goes back one version more.
"""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from facetclip.errors import UserError
from facetclip.faults import reach
from facetclip.intervals import Estimate, numbers_of
from facetclip.policy import MEASURE, Decision, Examined, Policy, decide, mean_number
from facetclip.promotion_log import PROMOTED, REFUSED, ROLLED_BACK, Entry, append, history, previous, rolled_back
from facetclip.registry import CHALLENGER, DIGEST_TAG, aliases, connect_registry, model_folder, told
from facetclip.tracking import LONGEST_TAG, metric_name, tracking_uri

CHAMPION = "champion"
SQLITE = "sqlite:///"


def promote(name: str, examine: Callable[[str], Examined], policy: Policy, *, version: str | None = None) -> Decision:
    """Make the challenger of `name`, or the given `version`, its champion if `decide` says so.

    `examine` measures a local model folder. It takes no lock: should another promoter move an alias meanwhile,
    everything is compared anew. UserError where the registry cannot be reached or there is no such version.
    """
    contest = Contest(connect_registry(), name, examine, policy)
    while True:
        standing = contest.standing(version)
        decision = contest.decision(*standing)
        reach("promote.decided")
        with promoting(name), told(f"registered model {name!r}"):
            if contest.standing(version) == standing and not (decision.promote and contest.rolled_back(standing[0])):
                contest.settle(decision)
                return decision


def rollback(name: str, digest: Callable[[str], str]) -> tuple[str | None, str | None]:
    """Make the champion before the present one champion again: (it, the present one).

    (None, the present one) where the log knows none. `digest` is that of a local model folder. UserError where the
    registry cannot be reached, or the files of the version to go back to are not those that were registered.
    """
    client = connect_registry()
    with promoting(name), told(f"registered model {name!r}"):
        champion = aliases(client, name).get(CHAMPION)
        version = previous(history(client, name), champion)
        if champion is None or version is None:
            return None, champion
        found = digest(model_folder(client, name, version))
        if problem := changed(client, name, version, found):
            raise UserError(f"{name}: {problem}; nothing was rolled back")
        reach("rollback.checked")
        append(client, name, Entry(ROLLED_BACK, version, champion, f"version {champion} was rolled back"))
        reach("rollback.logged")
        crown(client, name, version)
        return version, champion


class Contest:
    """The versions of one registered model as measured by one promoter."""

    def __init__(self, client: Any, name: str, examine: Callable[[str], Examined], policy: Policy) -> None:
        self.client, self.name, self.examine, self.policy = client, name, examine, policy
        self.examined: dict[str, Examined] = {}

    def standing(self, version: str | None) -> tuple[str, str | None]:
        """The version to be judged and the champion."""
        known = aliases(self.client, self.name)
        challenger = version or known.get(CHALLENGER)
        if challenger is None:
            raise UserError(
                f"{self.name}: no version has the alias {CHALLENGER!r}; train with tracking.register_as={self.name}, "
                "or give a version the alias in MLflow"
            )
        return challenger, known.get(CHAMPION)

    def decision(self, challenger: str, champion: str | None) -> Decision:
        """Compare two versions, measuring each once."""
        refusal = self._refusal(challenger, champion)
        if refusal:
            return Decision(False, refusal, challenger, champion)
        theirs = self.examined[champion] if champion else None
        return replace(decide(self.examined[challenger], theirs, self.policy), challenger=challenger, champion=champion)

    def _refusal(self, challenger: str, champion: str | None) -> str | None:
        """Why two versions are not even compared."""
        with told(f"models:/{self.name}/{challenger}"):
            self.client.get_model_version(self.name, challenger)
            if self.rolled_back(challenger):
                return f"version {challenger} was rolled back; train another"
        if challenger == champion:
            return f"version {champion} is the champion already"
        return self._measured(CHALLENGER, challenger) or (self._measured(CHAMPION, champion) if champion else None)

    def rolled_back(self, version: str) -> bool:
        """Whether a version was champion once and is not to be again."""
        return rolled_back(history(self.client, self.name), version)

    def _measured(self, role: str, version: str) -> str | None:
        """Examine a version unless that is done; returns why it does not count."""
        if version not in self.examined:
            try:
                self.examined[version] = self.examine(model_folder(self.client, self.name, version))
            except UserError as error:
                way = (
                    f"; give another the alias {CHAMPION!r} in MLflow to replace it unseen" if role == CHAMPION else ""
                )
                return f"the {role}, version {version}, cannot be measured: {error}{way}"
        return changed(self.client, self.name, version, self.examined[version].digest)

    def settle(self, decision: Decision) -> None:
        """Write the decision on the challenger and in the log, then, where it is a yes, the alias."""
        version, action = str(decision.challenger), PROMOTED if decision.promote else REFUSED
        facts = {"decision": f"{action}: {decision.reason}"} | self.measured(version)
        for key, value in facts.items():
            tag = f"facetclip.test.{metric_name(key)}"
            self.client.set_model_version_tag(self.name, version, tag, str(value)[:LONGEST_TAG])
            reach("promote.tagged")
        entry = Entry(action, version, decision.champion, decision.reason, self.numbers(decision))
        append(self.client, self.name, entry)
        reach("promote.logged")
        if decision.promote:
            crown(self.client, self.name, version)

    def measured(self, version: str) -> dict[str, Any]:
        """The numbers of a version and what they were measured on; nothing where it was not measured."""
        found = self.examined.get(version)
        if found is None:
            return {}
        named = {f"{MEASURE}.{name}": numbers_of(each)[MEASURE] for name, each in found.tallies.items()}
        facts = {"split": found.split, "items": found.items, "data_digest": found.data_digest, "digest": found.digest}
        return {MEASURE: mean_number(found), **named, **facts}

    def numbers(self, decision: Decision) -> dict[str, Any]:
        """What was decided by, for the log."""
        measured = self.measured(str(decision.challenger))
        facts = {key: value for key, value in measured.items() if "." not in key}
        facts |= {f"policy.{key}": value for key, value in asdict(self.policy).items()}
        facts |= {key: _rounded(each) for key, each in (("mean", decision.mean), ("kept", decision.kept)) if each}
        return facts | {"differences": {name: _rounded(each) for name, each in decision.differences.items()}}


def changed(client: Any, name: str, version: str, digest: str) -> str | None:
    """Why a version with this `digest` is not the one that was registered."""
    with told(f"models:/{name}/{version}"):
        filed = client.get_model_version(name, version).tags.get(DIGEST_TAG)
    return f"the files of version {version} are not those that were registered" if filed not in (None, digest) else None


def crown(client: Any, name: str, version: str) -> None:
    """Write the alias and see that it stays."""
    client.set_registered_model_alias(name, CHAMPION, version)
    reach("promote.crowned")
    if (found := aliases(client, name).get(CHAMPION)) != version:
        raise UserError(f"{name}: version {found} became champion at the same time; do it again")


def _rounded(each: Estimate) -> list[float]:
    return [round(number, 6) for number in (each.value, each.low, each.high)]


@contextmanager
def promoting(name: str) -> Iterator[None]:
    """One promoter of `name` at a time, on this machine; the lock goes with its process."""
    uri, folder = tracking_uri().rstrip("/"), Path(tempfile.gettempdir())
    if uri.startswith(SQLITE):
        path = Path(uri.removeprefix(SQLITE)).resolve()
        uri, folder = f"{SQLITE}{path}", path.parent
    mark = hashlib.sha256(f"{uri}\0{name}".encode()).hexdigest()[:16]
    with os.fdopen(_opened(folder / f".facetclip-promote-{mark}.lock"), "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _opened(path: Path) -> int:
    """A file to lock. Whoever came first made it, perhaps another user: then reading must do, as it does but for files
    over a network."""
    while True:
        try:
            return os.open(path, os.O_RDWR)
        except PermissionError:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            with suppress(FileExistsError):  # meanwhile
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
                os.fchmod(descriptor, 0o644)  # whatever the umask
                return descriptor
