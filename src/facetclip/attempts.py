"""How the starts of a run ended, so that one that dies at the same step again and again is not started for ever."""

import json
from pathlib import Path

from facetclip.errors import UserError
from facetclip.files import write_whole

RECORD = "attempts.json"
MOST = 3  # starts that may end without a word at one step


def count_attempt(folder: Path, died_at: int | None) -> None:
    """Note at which step the start before this one died, None where it ended well.

    UserError when it was the third in a row at that step.
    """
    path, count = folder / RECORD, 0
    if died_at is not None:
        try:
            stored = json.loads(path.read_bytes())
            count = stored["count"] + 1 if stored["step"] == died_at else 1
        except FileNotFoundError:
            count = 1
    write_whole(path, json.dumps({"step": died_at, "count": count}).encode())
    if count >= MOST:
        raise UserError(
            f"{folder}: {count} starts in a row died at step {died_at}. Look at their errors, and at the photos of "
            "that batch; then go on with --allow crashes, or start over with --fresh"
        )
