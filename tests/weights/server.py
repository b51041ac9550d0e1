"""A local file server that can fail on demand."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pvt_det.weights.catalog import Remote

CONTENT = bytes(range(256)) * 20_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
REMOTE = Remote("https://weights.test/a/model.pth", "model.pth")


class Server(http.server.ThreadingHTTPServer):
    """A server of one file at every path. It records the requested ranges and paths.

    `headers` replace or add response headers; None leaves one out. With `ignores_condition`, a range is sent although
    the file has changed. `pause` is the time in seconds between two bytes.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag = '"one"'
        self.kind = "application/octet-stream"
        self.status = 200
        self.headers: dict[str, str | None] = {}
        self.ignores_condition = False
        self.pause = 0.0
        self.cut_after: list[int] = []
        self.redirect = ""
        self.requested_ranges: list[str] = []
        self.requested_paths: list[str] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that close the connection."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._reply(self.server.content, 200, None)

    def do_GET(self) -> None:
        server = self.server
        byte_range = self.headers.get("Range", "")
        server.requested_ranges.append(byte_range)
        server.requested_paths.append(self.path)
        if server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        if server.status >= 300:
            self.send_error(server.status)
            return
        matches = server.ignores_condition or self.headers.get("If-Range") == server.etag
        start = int(byte_range[6:-1]) if byte_range and matches else 0
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        span = f"bytes {start}-{len(server.content) - 1}/{len(server.content)}" if start else None
        self._reply(body, 206 if start else server.status, span)
        self._send(body[: server.cut_after.pop(0)] if server.cut_after else body)

    def _reply(self, body: bytes, status: int, span: str | None) -> None:
        headers = {
            "Content-Type": self.server.kind,
            "Content-Length": str(len(body)),
            "Content-Range": span,
            "ETag": self.server.etag,
            **self.server.headers,
        }
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def _send(self, body: bytes) -> None:
        if not self.server.pause:
            self.wfile.write(body)
            return
        for byte in body:
            self.wfile.write(bytes([byte]))
            time.sleep(self.server.pause)

    def log_message(self, *_: object) -> None: ...


class Rewriting:
    """Sends requests for https://weights.test to the local server."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def open(self, request: urllib.request.Request, data: None = None, timeout: float = 5) -> Any:
        request.full_url = request.full_url.replace("https://weights.test", self.base)
        return self.opener.open(request, timeout=timeout)


@contextmanager
def running_server() -> Iterator[Server]:
    """Run a server in a thread."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
