"""How the starts of a run ended, so that one that dies at the same step again and again is not started for ever."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from facetclip.errors import UserError
from facetclip.files import remove, write_whole
from facetclip.interruption import Interrupted

RECORD = "attempts.json"
MOST = 3  # starts that may end without a word at one step


@contextmanager
def attempt(folder: Path, died_at: int | None) -> Iterator[None]:
    """A start of the run, after one that died at step `died_at`, None where it ended well. One that is refused or
    interrupted inside the block was none.

    UserError when it was the third in a row that died at that step.
    """
    path, count = folder / RECORD, 0
    before = path.read_bytes() if path.is_file() else None
    if died_at is not None:
        stored: dict[str, Any] = json.loads(before) if before else {"step": None}
        count = stored["count"] + 1 if stored["step"] == died_at else 1
    write_whole(path, json.dumps({"step": died_at, "count": count}).encode())
    if count >= MOST:
        raise UserError(
            f"{folder}: {count} starts in a row died at step {died_at}. Look at their errors, and at the photos of "
            "that batch; then go on with --allow crashes, or start over with --fresh"
        )
    try:
        yield
    except (UserError, Interrupted, KeyboardInterrupt):
        remove(path) if before is None else write_whole(path, before)
        raise
