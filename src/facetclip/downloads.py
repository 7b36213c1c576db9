"""The images that a catalog names by URL, fetched into a folder: many at once, few at a time from each host.

The folder is the state: a file for each URL that was had, a `.failed` note for each that was not, a `.part` for what an
interruption left of a large one. The same call goes on there and asks for nothing again that it has. Whatever was not
had is judged and asked for anew by each run: a photo may have come since, and what is refused depends on its options.
"""

import hashlib
import json
import os
import random
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from threading import Condition, RLock, Thread
from typing import Any, TypeVar

from facetclip import __version__, faults
from facetclip.addresses import Allowed, Refused, place, redirected, shown
from facetclip.errors import OwnMistake
from facetclip.fetching import Answer, Client, Failure, Kept, Patience, Stale, resolve
from facetclip.images import MOST_BYTES, BadImage
from facetclip.lease import LEASE, Lease
from facetclip.queues import Job, Queues

T = TypeVar("T")

MOST_REDIRECTS = 5
MOST_WAIT = 300.0  # seconds; a host that asks for more is left for the next run
AHEAD = 2000  # URLs in hand at a time: memory does not grow with the catalog
SPILL = 1 << 20  # a body longer than this goes to the disk as it comes, so that a kill loses no more of it


@dataclass(frozen=True)
class FetchSpec:
    """How images are fetched. `folder`: where they are kept; None: beside the shards, until these are done."""

    folder: Path | None = None
    contact: str = ""  # an address or page, told to the servers
    allowed: Allowed = frozenset()  # hosts that may be private
    per_host: int = 8  # requests at a time
    spacing: float = 0.01  # seconds between two requests to a host
    threads: int = 32
    attempts: int = 5
    backoff: float = 1.0  # seconds before the second attempt, doubled for each further one
    most_bytes: int | None = None  # of all bodies together
    patience: Patience = field(default_factory=lambda: Patience(most_bytes=MOST_BYTES))

    @property
    def agent(self) -> str:
        """The User-Agent.

        >>> FetchSpec(contact="photos@shop.example").agent.partition(" ")[2]
        '(photos@shop.example)'
        """
        return f"facetclip/{__version__}" + (f" ({self.contact})" if self.contact else "")


def downloaded(folder: Path, url: str) -> bytes:
    """The bytes that were fetched for `url`; BadImage when they could not be had."""
    path = _path(folder, url)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise BadImage("unreadable", f"cannot be read: {error.strerror}") from error
    note = _note(path)
    raise BadImage(note["code"], note["message"]) if note else BadImage("not_found", f"{shown(url)}: not fetched")


def judged(folder: Path, url: str, judge: Callable[[bytes], T]) -> T:
    """What `judge` makes of the bytes that were fetched for `url`; BadImage when they could not be had.

    Where it raises BadImage, a note takes their place: a page that said "busy" may be a photo by the next run.
    """
    content = downloaded(folder, url)
    try:
        return judge(content)
    except BadImage as bad:
        path = _path(folder, url)
        with suppress(OSError):  # a folder that cannot be written stays as it is
            beside = path.with_suffix(f".{secrets.token_hex(4)}")  # others may find the same at this moment
            beside.write_bytes(_told(url, bad.code, bad.message))
            beside.replace(path.with_suffix(".failed"))
            path.unlink(missing_ok=True)
        raise


def delay(attempt: int, first: float, draw: float, told: float | None) -> float:
    """Seconds before attempt number `attempt` + 1: doubled each time, spread by `draw` in [0, 1); never less than told.

    >>> delay(1, 1.0, 0.0, None), delay(3, 1.0, 0.5, None), delay(1, 1.0, 0.0, 30.0)
    (0.5, 3.0, 30.0)
    """
    own = first * 2 ** (attempt - 1) * (0.5 + draw / 2)
    return own if told is None else max(own, told)


def download_all(
    urls: Iterable[str], spec: FetchSpec, folder: Path, *, names: Callable[[str, int], Sequence[str]] = resolve
) -> None:
    """Fetch every URL into `folder`, or note why it cannot be had. OwnMistake past the limit of bytes or of the disk;
    Held where another process fetches into it: the two would spoil each other's half files.
    """
    left = iter(urls)
    try:
        first = next((url for url in left if _wanted(_path(folder, url))), None)
        if first is None:
            return
        lease = Lease(folder / LEASE, "is fetching into this folder; wait for it to end")
    except OSError as error:
        raise OwnMistake(f"{folder}: could not be written: {error.strerror}") from error
    try:
        _fetch_all(chain([first], left), spec, folder, names)
    finally:
        lease.release()


def _fetch_all(urls: Iterable[str], spec: FetchSpec, folder: Path, names: Callable[[str, int], Sequence[str]]) -> None:
    client = Client(spec.agent, spec.allowed, spec.patience, names)
    crew = _Crew(spec, folder, client)
    threads = [Thread(target=crew.work, name=f"download-{number}", daemon=True) for number in range(spec.threads)]
    for thread in threads:
        thread.start()
    try:
        for url in urls:
            crew.add(url)
        crew.finish()
    except OSError as error:
        crew.error = crew.error or error
    finally:
        crew.stop()
        for thread in threads:
            thread.join()
        client.close()
    if isinstance(crew.error, OSError):
        raise OwnMistake(f"{folder}: could not be written: {crew.error.strerror}") from crew.error
    if crew.error is not None:
        raise crew.error


def _path(folder: Path, url: str) -> Path:
    name = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:40]
    return folder / name[:2] / name[2:]


def _told(url: str, code: str, message: str) -> bytes:
    """What a note says."""
    return json.dumps({"url": url, "code": code, "message": message}).encode()


def _note(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.with_suffix(".failed").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _wanted(path: Path) -> bool:
    """Whether it is not had: a note of what failed is no answer to a later run. A power cut can leave an empty file."""
    try:
        return not path.stat().st_size
    except FileNotFoundError:
        return True


class _Crew:
    """The threads that fetch, and what they share."""

    def __init__(self, spec: FetchSpec, folder: Path, client: Client) -> None:
        self._spec, self._folder, self._client = spec, folder, client
        self._queues = Queues(spec.per_host, spec.spacing)
        lock = RLock()
        self._change, self._room = Condition(lock), Condition(lock)
        self._pending: set[str] = set()
        self._failed: set[str] = set()  # in this run: a URL that many rows name is not asked anew for each
        self._bytes, self._alarm = 0, float("inf")
        self._stopped = False
        self.error: Exception | None = None

    def add(self, url: str) -> None:
        """Take on one more URL, once there is room, unless it is had already."""
        with self._room:
            if url in self._pending or url in self._failed:
                return
        if not _wanted(_path(self._folder, url)) or (job := self._job(url, url, 0)) is None:
            return
        with self._room:
            self._room.wait_for(lambda: len(self._pending) < AHEAD or self._stopped)
            if not self._stopped:
                self._pending.add(url)
                self._queues.put(job)
                self._change.notify()

    def _job(self, url: str, at: str, hops: int) -> Job | None:
        """The job of asking `at`; None, with a note, where that is refused."""
        try:
            where = place(at, self._spec.allowed)
            return Job(url, at, where.authority, hops)
        except Refused as error:
            self._fail(url, Failure("url_refused", str(error)))
            return None

    def finish(self) -> None:
        """Wait until all is done, or something went wrong."""
        with self._room:
            self._room.wait_for(lambda: not self._pending or self._stopped)

    def stop(self) -> None:
        """Let the threads end after what they are at."""
        with self._change:
            self._stopped = True
            self._change.notify_all()
            self._room.notify_all()

    def work(self) -> None:
        """What each thread does."""
        while (job := self._next()) is not None:
            try:
                follow, after, pause = self._step(job)
            except Exception as error:  # the main thread raises it
                self.error = self.error or error
                self.stop()
                return
            with self._change:
                if pause is not None:
                    self._queues.pause(job.host, time.monotonic() + pause)
                if follow is None:
                    self._pending.discard(job.url)
                    self._room.notify_all()
                else:
                    self._queues.put(follow, None if after is None else time.monotonic() + after)
                self._queues.done(job.host)
                self._change.notify()

    def _next(self) -> Job | None:
        """The next job, waited for; one thread at a time waits by the clock."""
        with self._change:
            while not self._stopped:
                now = time.monotonic()
                job, wait = self._queues.take(now)
                if job is not None:
                    self._change.notify()
                    return job
                alarm = None if wait is None or now + wait >= self._alarm else now + wait
                self._alarm = self._alarm if alarm is None else alarm
                self._change.wait(None if alarm is None else wait)
                if alarm == self._alarm:
                    self._alarm = float("inf")
        return None

    def _step(self, job: Job) -> tuple[Job | None, float | None, float | None]:
        """One request: the job that follows from it, in how many seconds, and for how long its host is left alone."""
        try:
            location = self._fetch(job)
            if location is None:
                return None, None, None
            if job.hops >= MOST_REDIRECTS:
                raise Failure("url_refused", f"{shown(job.url)}: more than {MOST_REDIRECTS} redirects")
            return self._job(job.url, redirected(job.at, location), job.hops + 1), None, None
        except Refused as error:
            self._fail(job.url, Failure("url_refused", str(error)))
        except Failure as failure:
            attempt = job.attempt + 1
            wait = delay(attempt, self._spec.backoff, random.random(), failure.wait)
            if failure.transient and attempt < self._spec.attempts and wait <= MOST_WAIT:
                return replace(job, attempt=attempt), wait, failure.wait
            self._fail(job.url, failure)
        return None, None, None

    def _fail(self, url: str, failure: Failure) -> None:
        self._failed.add(url)
        _put(_path(self._folder, url).with_suffix(".failed"), _told(url, failure.code, failure.message))

    def _fetch(self, job: Job) -> str | None:
        """The body of a job as a file; where to go instead, when it was redirected."""
        path = _path(self._folder, job.url)
        try:
            with self._client.get(job.at, _kept(path), job.attempt) as answer:
                if answer.location is None:
                    self._count(_save(path, answer))
                    faults.reach("downloads.after_file")
                return answer.location
        except Stale:
            path.with_suffix(".part").unlink(missing_ok=True)
            raise

    def _count(self, size: int) -> None:
        with self._change:
            self._bytes += size
            most = self._spec.most_bytes
        if most is not None and self._bytes > most:
            raise OwnMistake(
                f"more than {most:,} bytes were fetched; the same command with a higher --most-download goes on"
            )


def _kept(path: Path) -> Kept | None:
    try:
        size = path.with_suffix(".part").stat().st_size
        tag = path.with_suffix(".tag").read_text(encoding="latin-1")
    except FileNotFoundError:
        return None
    return Kept(size, tag) if size and tag else None


def _save(path: Path, answer: Answer) -> int:
    """Put a body in its place, whole; the bytes that came. What came of a longer one before it broke off is kept."""
    pieces: list[bytes] = []
    held = came = 0
    begun = answer.start > 0
    try:
        for piece in answer.body:
            pieces.append(piece)
            held, came = held + len(piece), came + len(piece)
            if held >= SPILL:
                begun = _spill(path, answer.tag, pieces, begun=begun)
                pieces, held = [], 0
    except Failure as failure:
        if answer.tag and failure.transient:
            _spill(path, answer.tag, pieces, begun=begun)
        raise
    part, tag = path.with_suffix(".part"), path.with_suffix(".tag")
    if begun:
        _spill(path, answer.tag, pieces, begun=True)
        part.replace(path)
    else:
        _put(path, b"".join(pieces))
        part.unlink(missing_ok=True)
    tag.unlink(missing_ok=True)
    path.with_suffix(".failed").unlink(missing_ok=True)
    return came


def _spill(path: Path, tag: str, pieces: list[bytes], *, begun: bool) -> bool:
    """Append pieces to the `.part`, or begin it: the old one goes before the new tag comes, so that they never mix."""
    part = path.with_suffix(".part")
    if not begun:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        path.with_suffix(".tag").write_text(tag, encoding="latin-1")
    with part.open("ab") as file:
        file.writelines(pieces)
    return True


def _put(path: Path, content: bytes) -> None:
    """A whole file or none, after a kill too. Not flushed to the disk: after a power cut it may be asked for again."""
    beside = path.with_suffix(".new")
    try:
        beside.write_bytes(content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
    os.replace(beside, path)  # noqa: PTH105 - once an image
