"""One request over HTTP, to an address that was judged: no cookies, no credentials, no proxy, no redirect followed.

The connection goes to the address, never to the name again, so a name that changes its mind (DNS rebinding) gains
nothing. Every wait has an end: a silence, and a whole answer, headers included. Connections are used again.
"""

import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from threading import Lock

from facetclip.addresses import Allowed, Place, Refused, judged, place, shown

CHUNK = 1 << 16
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
REDIRECTS = (301, 302, 303, 307, 308)
Resolve = Callable[[str, int], Sequence[str]]  # host, port -> addresses


class Failure(Exception):
    """An answer that is no image. `code`: of images.CODES; `transient`: worth another try, after `wait` seconds."""

    def __init__(self, code: str, message: str, *, transient: bool = False, wait: float | None = None) -> None:
        super().__init__(code, message)
        self.code, self.message, self.transient, self.wait = code, message, transient, wait


class Stale(Failure):
    """The server will not go on where an interrupted answer ended: what was kept of it is of no use."""


@dataclass(frozen=True)
class Patience:
    """Seconds for a connection to be made, for one silence, and for a whole answer; and the largest body in bytes."""

    connect: float = 10.0
    silence: float = 20.0
    whole: float = 120.0
    most_bytes: int = 128 << 20


@dataclass(frozen=True)
class Kept:
    """The beginning of a body that an interrupted answer left, and the server's tag of that version."""

    size: int
    tag: str


@dataclass(frozen=True)
class Answer:
    """What a server sent before the body. `start`: where in the whole the body begins; `tag`: "" where it told none."""

    location: str | None
    start: int
    tag: str
    body: Iterator[bytes]


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host by the system's resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Client:
    """Asks judged addresses for bodies; used by many threads at once."""

    def __init__(self, agent: str, allowed: Allowed, patience: Patience, names: Resolve = resolve) -> None:
        self._headers = {"User-Agent": agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
        self._allowed, self._patience, self._names = allowed, patience, names
        self._pinned: dict[tuple[str, int], tuple[str, ...]] = {}
        self._idle: dict[tuple[str, str, int], list[_Connection]] = {}
        self._lock = Lock()
        self._tls = ssl.create_default_context()

    def close(self) -> None:
        """End all idle connections."""
        with self._lock:
            connections = [connection for idle in self._idle.values() for connection in idle]
            self._idle.clear()
        for connection in connections:
            connection.end()

    @contextmanager
    def get(self, url: str, kept: Kept | None = None, attempt: int = 0) -> Iterator[Answer]:
        """The answer to one request, its body to be read inside the block; Failure for all that can go wrong.

        With `kept`, only what is missing is asked for, if the server still has that version.
        """
        try:
            where = place(url, self._allowed)
            addresses = self._addresses(where)
        except Refused as error:
            raise Failure("url_refused", str(error)) from error
        key = (where.scheme, where.host, where.port)
        connection, response = self._ask(where, key, addresses[attempt % len(addresses)], kept)
        try:
            with _named(url):
                answer = self._answer(url, response, kept)
            yield answer
        finally:
            if response.isclosed() and not response.will_close:
                with self._lock:
                    self._idle.setdefault(key, []).append(connection)
            else:
                connection.end()

    def _addresses(self, where: Place) -> tuple[str, ...]:
        """The judged addresses of a host, resolved once."""
        with self._lock:
            known = self._pinned.get((where.host, where.port))
        if known is not None:
            return known
        try:
            found = self._names(where.host, where.port)
        except (OSError, UnicodeError) as error:
            raise Failure("connection", f"{where.host}: no such host ({error})", transient=True) from error
        addresses = judged(where, found, self._allowed)
        with self._lock:
            return self._pinned.setdefault((where.host, where.port), addresses)

    def _ask(
        self, where: Place, key: tuple[str, str, int], address: str, kept: Kept | None
    ) -> tuple["_Connection", http.client.HTTPResponse]:
        """A connection on which the request was answered; an idle one that the server has ended is replaced."""
        headers = self._headers | {"Host": where.authority}
        if kept is not None:
            headers |= {"Range": f"bytes={kept.size}-", "If-Range": kept.tag}
        with self._lock:
            idle = self._idle.get(key)
            used = idle.pop() if idle else None
        with _named(f"{where.scheme}://{where.authority}{where.target}"):
            if used is not None:
                with suppress(ConnectionError):
                    return used, used.ask(where.target, headers)
            fresh = _Connection(where, address, self._patience, self._tls)
            return fresh, fresh.ask(where.target, headers)

    def _answer(self, url: str, response: http.client.HTTPResponse, kept: Kept | None) -> Answer:
        if response.status not in (200, 206) and response.length is not None and response.length < CHUNK:
            response.read()  # then the connection can be used again
        if response.status in REDIRECTS:
            location = response.headers.get("Location")
            if not location:
                raise Failure("http_status", f"{shown(url)}: answered {response.status} without saying where to go")
            return Answer(location, 0, "", iter(()))
        if response.status == 416 and kept is not None:
            raise Stale("connection", f"{shown(url)}: the rest is not to be had", transient=True)
        if response.status not in (200, 206) or (response.status == 206 and kept is None):
            raise _status(url, response)
        if (coding := response.headers.get("Content-Encoding", "identity").strip().lower()) not in ("", "identity"):
            raise Failure("http_encoding", f"{shown(url)}: sent as {coding[:40]!r}, which was not asked for")
        start = _start(url, response, kept) if response.status == 206 else 0
        return Answer(None, start, _tag(response), _body(url, response, start, self._patience.most_bytes))


def _status(url: str, response: http.client.HTTPResponse) -> Failure:
    status = response.status
    wait = retry_after(response.headers.get("Retry-After"), time.time())
    return Failure(
        "http_status", f"{shown(url)}: the server answered {status}", transient=status in TRANSIENT, wait=wait
    )


def retry_after(told: str | None, now: float) -> float | None:
    """The seconds that a Retry-After header asks to wait: written as such, or as a date.

    >>> retry_after("120", 0), retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 20), retry_after("soon", 0)
    (120.0, 40.0, None)
    """
    if told is None:
        return None
    if told.strip().isascii() and told.strip().isdigit():
        return float(told.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _tag(response: http.client.HTTPResponse) -> str:
    """What If-Range may name: a strong ETag, else the date of the last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _start(url: str, response: http.client.HTTPResponse, kept: Kept | None) -> int:
    told = response.headers.get("Content-Range", "")
    if kept is None or not told.startswith(f"bytes {kept.size}-"):
        raise Stale("http_status", f"{shown(url)}: another part came than was asked for: {told[:80]!r}", transient=True)
    return kept.size


def _body(url: str, response: http.client.HTTPResponse, start: int, most: int) -> Iterator[bytes]:
    expected, size = response.length, start
    if expected is not None and start + expected > most:
        raise Failure("too_many_bytes", f"{start + expected:,} bytes; at most {most:,} are read")
    with _named(url):
        while piece := response.read(CHUNK):
            size += len(piece)
            if size > most:
                raise Failure("too_many_bytes", f"more than {most:,} bytes")
            yield piece
    if expected is not None and size - start < expected:
        raise Failure("connection", f"{shown(url)}: the connection ended after {size:,} bytes", transient=True)


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Failure instead of what sockets and http.client raise."""
    try:
        yield
    except TimeoutError as error:
        raise Failure("timeout", f"{shown(url)}: no answer in time", transient=True) from error
    except ssl.SSLCertVerificationError as error:
        raise Failure("connection", f"{shown(url)}: {error.verify_message}") from error
    except http.client.InvalidURL as error:
        raise Failure("url_refused", f"{shown(url)!r}: {error}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Failure("connection", f"{shown(url)}: {error or type(error).__name__}", transient=True) from error


class _Connection:
    """A connection to one address, each request under a deadline."""

    def __init__(self, where: Place, address: str, patience: Patience, tls: ssl.SSLContext) -> None:
        sock = socket.create_connection((address, where.port), timeout=patience.connect)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if where.scheme == "https":
                sock = tls.wrap_socket(sock, server_hostname=where.host)
        except BaseException:
            sock.close()
            raise
        self._patience = patience
        self._wire = _Wire(sock, patience.silence)
        self._http = http.client.HTTPConnection(where.host, where.port)
        self._http.auto_open = 0

    def ask(self, target: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        """The answer to a GET, up to its headers."""
        self._wire.deadline = time.monotonic() + self._patience.whole
        self._http.sock = self._wire
        try:
            self._http.putrequest("GET", target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                self._http.putheader(name, value)
            self._http.endheaders()
            return self._http.getresponse()
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Close it, whatever is still to come."""
        self._http.close()
        self._wire.end()


class _Wire:
    """A socket as http.client uses it, every wait bounded; `close` leaves it open: an answer may still be read."""

    def __init__(self, sock: socket.socket, silence: float) -> None:
        self._sock, self._silence = sock, silence
        self.deadline = 0.0

    def _patiently(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer took too long")
        self._sock.settimeout(min(left, self._silence))

    def sendall(self, content: bytes) -> None:
        """Send all of `content`."""
        self._patiently()
        self._sock.sendall(content)

    def receive(self, into: memoryview) -> int:
        """Fill `into` with what has come; how many bytes."""
        self._patiently()
        return self._sock.recv_into(into)

    def makefile(self, mode: str) -> io.BufferedReader:
        """What has come, as a file."""
        return io.BufferedReader(_Received(self), CHUNK)

    def close(self) -> None:
        """Nothing: `end` closes."""

    def end(self) -> None:
        """Close the socket."""
        self._sock.close()


class _Received(io.RawIOBase):
    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride] - a buffer
        return self._wire.receive(into)
