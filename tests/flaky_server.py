"""An HTTP server on loopback for a folder of files, whose connections break when and as often as they are told to."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FlakyServer:
    """Serves `folder` until the block ends. `asked`: (path, first byte) of every GET.

    `cuts`: how many more answers break off in their middle; `ranges`: whether it heeds Range; `stamped`: whether it
    says a version; `statuses`: what the next requests are answered with instead; `lies`: the files that come with a
    byte changed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cuts, self.ranges, self.stamped = 0, True, True
        self.statuses: list[int] = []
        self.lies: set[str] = set()
        self.asked: list[tuple[str, int]] = []
        self.sent = 0
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Answer, self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, name: str) -> bool:
        """Use one of a count up."""
        with self.lock:
            left = getattr(self, name)
            setattr(self, name, max(0, left - 1))
            return left > 0


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: FlakyServer, *request: object) -> None:
        self.flaky = server
        super().__init__(*request)  # type: ignore[arg-type]  # what socketserver hands on

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        flaky, name = self.flaky, self.path.partition("?")[0].lstrip("/")
        path = flaky.folder / name
        if flaky.statuses or not path.is_file():
            self.send_response(flaky.statuses.pop(0) if flaky.statuses else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = path.read_bytes()
        if name in flaky.lies:
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if flaky.ranges else None
        first = int(asked[1]) if asked else 0
        part = content[first : int(asked[2]) + 1 if asked and asked[2] else len(content)]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        if flaky.stamped:
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if not body:
            return
        flaky.asked.append((name, first))
        cut = name.endswith(".tar") and flaky.take("cuts")
        sent = part[: len(part) // 2] if cut else part
        flaky.sent += len(sent)
        self.wfile.write(sent)
        if cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)


@contextmanager
def serving(folder: Path) -> Iterator[FlakyServer]:
    """A server for the length of a block."""
    server = FlakyServer(folder)
    try:
        yield server
    finally:
        server.close()
