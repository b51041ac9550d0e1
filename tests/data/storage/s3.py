"""A local S3 server (moto) behind a proxy that delays, fails, cuts and refuses requests."""

from __future__ import annotations

import http.client
import http.server
import random
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

BUCKET = "bucket"
_EXPIRED = (
    b'<?xml version="1.0"?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message>'
    b"<AWSAccessKeyId>AKIASECRET</AWSAccessKeyId></Error>"
)


@dataclass
class Fault:
    """What happens to requests whose path matches `pattern`: "500", "slow", "cut" or "expired".

    It happens to a random `share` of them, and at most `times` times.
    """

    pattern: str
    kind: str
    times: int = 10**9
    share: float = 1.0


@dataclass
class LocalStore:
    """The store. `requests` has the method and path of every request since it was cleared."""

    endpoint: str
    client: object
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(0))  # not that of a run in this process

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=name, Body=content)

    def upload(self, folder: Path, prefix: str) -> str:
        """Upload a folder, and return its URL."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def take_fault(self, path: str) -> str:
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, path) and self._random.random() < fault.share:
                fault.times -= 1
                return fault.kind
        return ""


def start_proxy(moto_port: int) -> tuple[http.server.ThreadingHTTPServer, LocalStore]:
    """Start the proxy in a thread."""
    import boto3

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            store.requests.append((self.command, self.path))
            fault = store.take_fault(self.path)
            if fault == "slow":
                time.sleep(2)
            if fault in ("500", "expired"):
                status, content, headers = (500, b"", []) if fault == "500" else (400, _EXPIRED, [])
            else:
                upstream = http.client.HTTPConnection("127.0.0.1", moto_port)
                upstream.request(self.command, self.path, body, dict(self.headers))
                response = upstream.getresponse()
                status, content, headers = response.status, response.read(), response.getheaders()
                upstream.close()
            hop = ("connection", "server", "date", "transfer-encoding")
            length = {name.lower(): value for name, value in headers}.get("content-length", str(len(content)))
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in (*hop, "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if fault == "cut":
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            elif self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = _forward  # noqa: N815

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{moto_port}", **keys)
    client.create_bucket(Bucket=BUCKET)
    store = LocalStore(f"http://127.0.0.1:{server.server_port}", client)
    return server, store
