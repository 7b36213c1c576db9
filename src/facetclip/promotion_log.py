"""Who was promoted, refused and rolled back, in order: tags of the registered model, one for each decision.

The log lies in the registry because the aliases lie there too: whoever sees the one sees the other, on any machine.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from facetclip.tracking import LONGEST_TAG

TAG = "facetclip.promotion."  # before the number of an entry
LONGEST_REASON = 1500
PROMOTED, REFUSED, ROLLED_BACK = "promoted", "refused", "rolled back"
Action = Literal["promoted", "refused", "rolled back"]


@dataclass(frozen=True)
class Entry:
    """One decision: `version` was promoted or refused while `before` was champion, or `before` was rolled back to
    `version`. `numbers`: what it was decided by."""

    action: Action
    version: str
    before: str | None
    reason: str
    numbers: dict[str, Any] = field(default_factory=dict)
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))


def history(client: Any, name: str) -> list[Entry]:
    """All entries, the oldest first."""
    tags = client.get_registered_model(name).tags
    return [Entry(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(TAG)]


def append(client: Any, name: str, entry: Entry) -> None:
    """Add an entry; nothing that is there is ever written again. Where there is more than a tag holds, the numbers of
    single attributes are left to the version's own tags."""
    facts = asdict(entry) | {"reason": entry.reason[:LONGEST_REASON]}
    line = json.dumps(facts, ensure_ascii=False)
    if len(line) > LONGEST_TAG:
        short = {key: value for key, value in entry.numbers.items() if not isinstance(value, dict)}
        line = json.dumps(facts | {"numbers": short}, ensure_ascii=False)
    number = len(history(client, name)) + 1
    client.set_registered_model_tag(name, f"{TAG}{number:06d}.{secrets.token_hex(4)}", line)


def previous(entries: Sequence[Entry], champion: str | None) -> str | None:
    """Who was champion before `champion` and was not rolled back since; None where the log knows nobody.

    An entry whose alias a kill kept from being written promoted nobody yet: those above `champion` do not count.

    >>> one, two = Entry("promoted", "1", None, ""), Entry("promoted", "2", "1", "")
    >>> previous([one, two], "2"), previous([one, two, Entry("rolled back", "1", "2", "")], "1")
    ('1', None)
    """
    line: list[str] = []
    for entry in entries:
        if entry.action == PROMOTED:
            line += [each for each in (entry.before, entry.version) if each and [each] != line[-1:]]
        elif entry.action == ROLLED_BACK:
            line = line[: _last(line, entry.version) + 1] if entry.version in line else [entry.version]
    below = line[: _last(line, champion)] if champion in line else line
    return next((each for each in reversed(below) if each != champion and not rolled_back(entries, each)), None)


def rolled_back(entries: Sequence[Entry], version: str) -> bool:
    """Whether `version` was champion and is not to be so again."""
    return any(entry.action == ROLLED_BACK and entry.before == version for entry in entries)


def _last(line: Sequence[str], version: str | None) -> int:
    return max(place for place, each in enumerate(line) if each == version)
