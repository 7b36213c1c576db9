"""An HTTP server on loopback that serves photos well or badly, and counts who asks for what."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any


class ImageServer(ThreadingHTTPServer):
    """`bodies`: path -> what is served. `/KIND/...` asks for the mischief KIND (the methods of the handler)."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: dict[str, bytes] = {}
        self.hits: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.sent = 0
        self.connections = self.running = self.most_running = 0
        self.slowness = 0.0
        self.lock = Lock()

    @property
    def at(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self.server_address[1]}"

    def url(self, path: str) -> str:
        """Of one of its pages."""
        return f"http://{self.at}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ImageServer  # pyright: ignore[reportIncompatibleVariableOverride] - as the standard library does

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.hits[self.path] += 1
            self.server.headers.append(dict(self.headers))
            self.server.running += 1
            self.server.most_running = max(self.server.most_running, self.server.running)
        try:
            time.sleep(self.server.slowness)
            getattr(self, f"send_{self.path.split('/')[1]}", self.send_photo)()
        finally:
            with self.server.lock:
                self.server.running -= 1

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def send_photo(self) -> None:
        body = self.server.bodies.get(self.path)
        if body is None:
            self.answer(404, b"<html>gone</html>")
        else:
            self.answer(200, body)

    def send_busy(self) -> None:
        """429 the first time."""
        if self.server.hits[self.path] == 1:
            self.answer(429, Retry_After="0")
        else:
            self.answer(200, self.server.bodies["/photo"])

    def send_broken(self) -> None:
        self.answer(500)

    def send_dropped(self) -> None:
        """Half of what is left, then the connection ends; the third request gets the rest."""
        body, start = self.server.bodies["/large"], 0
        asked = self.headers.get("Range")
        if asked and self.headers.get("If-Range") == '"v1"':
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("ETag", '"v1"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        left = body[start:]
        piece = left if self.server.hits[self.path] >= 3 else left[: len(left) // 2]
        self.wfile.write(piece)
        self.server.sent += len(piece)
        self.close_connection = True

    def send_to(self) -> None:
        """A redirect to what follows `/to/`."""
        self.answer(302, Location=self.path.removeprefix("/to/"))

    def send_round(self) -> None:
        self.answer(302, Location=self.path)

    def send_large(self) -> None:
        if self.path in self.server.bodies:
            self.send_photo()
        else:
            self.answer(200, b"x" * 1000, Content_Length=str(5 << 30))

    def send_endless(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(bytes(1 << 16))

    def send_gzip(self) -> None:
        self.answer(200, b"\x1f\x8b" + bytes(100), Content_Encoding="gzip")

    def send_drip(self) -> None:
        """A body, a byte at a time."""
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self._drip()

    def send_slow(self) -> None:
        """Headers, a byte at a time."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        self._drip()

    def _drip(self) -> None:
        with suppress(OSError):
            for _ in range(200):
                self.wfile.write(b"x")
                time.sleep(0.05)
        self.close_connection = True

    def send_headers(self) -> None:
        with suppress(OSError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + b"\r\n")
        self.close_connection = True


@contextmanager
def serving() -> Iterator[ImageServer]:
    """A server for the length of a block."""
    server = ImageServer()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
