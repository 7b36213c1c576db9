"""The photos of one folder over HTTP on loopback: `python -m benchmarks.data.photo_server FOLDER` prints its port."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Photos(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    photos: dict[str, bytes] = {}

    def do_GET(self) -> None:
        """A photo by its name; what follows a question mark tells rows apart."""
        body = self.photos.get(self.path.partition("?")[0].lstrip("/"))
        self.send_response(200 if body is not None else 404)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def main() -> None:
    """Serve until killed."""
    _Photos.photos = {path.name: path.read_bytes() for path in Path(sys.argv[1]).glob("*.jpg")}
    with ThreadingHTTPServer(("127.0.0.1", 0), _Photos) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
