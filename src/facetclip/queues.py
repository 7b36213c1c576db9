"""Whose turn it is: which URL may be asked for at a moment, so that no host is asked for much at a time."""

from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Job:
    """One URL of the catalog; `at`, `hops`: where redirects have led; `attempt`: requests made at this hop."""

    url: str
    at: str
    host: str
    hops: int = 0
    attempt: int = 0


@dataclass
class _Host:
    ready: deque[Job] = field(default_factory=deque)
    later: list[tuple[float, Job]] = field(default_factory=list)
    running: int = 0
    next: float = 0.0


class Queues:
    """What may be asked of whom at a moment: at most `per_host` jobs of a host at once, `spacing` seconds apart."""

    def __init__(self, per_host: int, spacing: float) -> None:
        self._per_host, self._spacing = per_host, spacing
        self._hosts: dict[str, _Host] = {}
        self._turn: deque[str] = deque()

    def put(self, job: Job, not_before: float | None = None) -> None:
        """Add a job, perhaps for later."""
        if job.host not in self._hosts:
            self._hosts[job.host] = _Host()
            self._turn.append(job.host)
        host = self._hosts[job.host]
        if not_before is None:
            host.ready.append(job)
        else:
            host.later.append((not_before, job))

    def pause(self, host: str, until: float) -> None:
        """Ask nothing of `host` before `until`."""
        self._hosts[host].next = max(self._hosts[host].next, until)

    def take(self, now: float) -> tuple[Job | None, float | None]:
        """A job that may run now; or the seconds until one may, None when that waits for `done` or `put`."""
        soonest: float | None = None
        for _ in range(len(self._turn)):
            self._turn.rotate(-1)
            host = self._hosts[self._turn[-1]]
            if not (host.running or host.ready or host.later or host.next > now):
                del self._hosts[self._turn.pop()]
                continue
            when = self._when(host, now)
            if when is not None and when <= now:
                host.running += 1
                host.next = now + self._spacing
                return host.ready.popleft(), None
            if when is not None:
                soonest = when if soonest is None else min(soonest, when)
        return None, None if soonest is None else soonest - now

    def _when(self, host: _Host, now: float) -> float | None:
        """When a job of `host` may start; None when it has none or too many run."""
        if host.later:
            host.ready.extend(job for when, job in host.later if when <= now)
            host.later = [(when, job) for when, job in host.later if when > now]
        if host.running >= self._per_host or not (host.ready or host.later):
            return None
        return max(host.next, now if host.ready else min(when for when, _ in host.later))

    def done(self, name: str) -> None:
        """A job of this host has ended."""
        self._hosts[name].running -= 1
