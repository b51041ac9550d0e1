"""Files are fetched once, whole and unchanged, or the message says what to do."""

from __future__ import annotations

import hashlib
import http.server
import json
import multiprocessing
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pvt_det.errors import CheckpointError
from pvt_det.weights import download
from pvt_det.weights.catalog import CATALOG, CLASSIFIERS, Remote
from pvt_det.weights.download import fetch

CONTENT = bytes(range(256)) * 20_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """A file server on the loopback that can fail on demand and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag = '"one"'
        self.kind = "application/octet-stream"
        self.status = 200
        self.cut_after: list[int] = []
        self.redirect = ""
        self.asked: list[str] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing when a client hangs up."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range", "")
        server.asked.append(asked)
        if server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(asked[6:-1]) if asked and self.headers.get("If-Range") == server.etag else 0
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", server.kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(body[: server.cut_after.pop(0)] if server.cut_after else body)

    def log_message(self, *_: object) -> None: ...


class Rewriting:
    """Sends requests for https://weights.test to the server on the loopback."""

    def __init__(self, server: Server) -> None:
        self.base = f"http://127.0.0.1:{server.server_port}"
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def open(self, request: urllib.request.Request, data: None = None, timeout: float = 5) -> Any:
        request.full_url = request.full_url.replace("https://weights.test", self.base)
        return self.opener.open(request, timeout=timeout)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PVT_DET_CACHE", str(folder))
    return folder


REMOTE = Remote("https://weights.test/a/model.pth", "model.pth")


def files(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.name != ".lock")


def test_fetched_once_and_recorded(server: Server, cache: Path) -> None:
    opener = Rewriting(server)
    path = fetch(REMOTE, opener)
    assert path == cache / "model.pth"
    assert path.read_bytes() == CONTENT
    assert json.loads((cache / "sha256.json").read_text()) == {"model.pth": DIGEST}
    assert fetch(REMOTE, opener) == path
    assert server.asked == [""]
    assert files(cache) == ["model.pth", "sha256.json"]


def test_cut_off_and_taken_up_again(server: Server, cache: Path) -> None:
    server.cut_after = [1_000_000, 2_000_000]
    assert fetch(REMOTE, Rewriting(server)).read_bytes() == CONTENT
    assert server.asked == ["", "bytes=1000000-", "bytes=3000000-"]
    assert files(cache) == ["model.pth", "sha256.json"]


def test_cut_off_for_good_then_taken_up_by_the_next_run(server: Server, cache: Path) -> None:
    server.cut_after = [100, 100, 100]
    with pytest.raises(CheckpointError, match=r"cut off after 300 of .* put it at .*model\.pth"):
        fetch(REMOTE, Rewriting(server))
    assert files(cache) == ["model.pth.part", "model.pth.part.etag"]
    assert fetch(REMOTE, Rewriting(server)).read_bytes() == CONTENT
    assert server.asked[3] == "bytes=300-"


def test_the_file_changed_between_two_attempts(server: Server, cache: Path) -> None:
    server.cut_after = [100, 100, 100]
    with pytest.raises(CheckpointError):
        fetch(REMOTE, Rewriting(server))
    server.content, server.etag = CONTENT[::-1], '"two"'
    assert fetch(REMOTE, Rewriting(server)).read_bytes() == CONTENT[::-1]


def test_a_part_that_is_longer_than_the_file(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "model.pth.part").write_bytes(CONTENT + b"more")
    (cache / "model.pth.part.etag").write_text('"one"')
    assert fetch(REMOTE, Rewriting(server)).read_bytes() == CONTENT


def test_a_part_without_a_tag_is_started_again(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "model.pth.part").write_bytes(b"garbage")
    assert fetch(REMOTE, Rewriting(server)).read_bytes() == CONTENT
    assert server.asked == [""]


@pytest.mark.parametrize("digits", [8, 64])
def test_the_published_hash_is_checked(server: Server, cache: Path, digits: int) -> None:
    good = Remote(REMOTE.url, "good.pth", DIGEST[:digits])
    assert fetch(good, Rewriting(server)).is_file()
    bad = Remote(REMOTE.url, "bad.pth", "0" * digits)
    with pytest.raises(CheckpointError, match=rf"has SHA-256 {DIGEST}, expected 00000000.*deleted"):
        fetch(bad, Rewriting(server))
    assert files(cache) == ["good.pth", "sha256.json"]


def test_the_recorded_hash_is_checked_at_every_use(server: Server, cache: Path) -> None:
    path = fetch(REMOTE, Rewriting(server))
    changed = bytearray(CONTENT)
    changed[5] ^= 1
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match=r"its SHA-256 is .* recorded in .*sha256\.json is .* delete it"):
        fetch(REMOTE, Rewriting(server))


def test_a_file_put_there_by_hand_is_used_and_checked(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "model.pth").write_bytes(CONTENT)
    assert fetch(REMOTE, Rewriting(server)) == cache / "model.pth"
    assert server.asked == []
    with pytest.raises(CheckpointError, match="published is 12345678…"):
        fetch(Remote(REMOTE.url, "model.pth", "12345678"), Rewriting(server))


def test_without_a_network_the_message_says_what_to_fetch_and_where_to_put_it(cache: Path) -> None:
    class Offline:
        def open(self, *_: object, **__: object) -> Any:
            raise urllib.error.URLError("Name or service not known")

    with pytest.raises(CheckpointError) as error:
        fetch(REMOTE, Offline())
    for part in (REMOTE.url, "Name or service not known", f"put it at {cache / 'model.pth'}"):
        assert part in str(error.value)


@pytest.mark.parametrize("status", [404, 403, 500])
def test_the_servers_answer_is_told(server: Server, cache: Path, status: int) -> None:
    server.status = status
    with pytest.raises(CheckpointError, match=f"the server answers {status}"):
        fetch(REMOTE, Rewriting(server))
    assert files(cache) == []


def test_a_web_page_is_not_taken_for_the_file(server: Server, cache: Path) -> None:
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(CheckpointError, match="sent a web page"):
        fetch(REMOTE, Rewriting(server))
    assert files(cache) == []


def test_plain_http_needs_the_whole_hash(server: Server, cache: Path) -> None:
    url = f"http://127.0.0.1:{server.server_port}/model.pth"
    with pytest.raises(CheckpointError, match="plain http can be tampered with"):
        fetch(Remote(url, "model.pth", DIGEST[:8]))
    assert server.asked == []
    assert fetch(Remote(url, "model.pth", DIGEST)).read_bytes() == CONTENT


def test_a_redirect_to_plain_http_is_not_followed(server: Server, cache: Path) -> None:
    opener = download.default_opener(REMOTE)
    server.redirect = f"http://127.0.0.1:{server.server_port}/elsewhere"
    with pytest.raises(CheckpointError, match="plain http"):
        opener.open(urllib.request.Request(f"http://127.0.0.1:{server.server_port}/"), timeout=5)
    assert len(server.asked) == 1


def test_a_cache_folder_that_cannot_be_written(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PVT_DET_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CheckpointError, match="cannot be written"):
        fetch(REMOTE, Rewriting(server))


def test_a_torn_record_file_is_named(server: Server, cache: Path) -> None:
    fetch(REMOTE, Rewriting(server))
    (cache / "sha256.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"sha256\.json: not readable as json"):
        fetch(REMOTE, Rewriting(server))


def _fetch_in_process(port: int, cache: str) -> None:
    import os

    os.environ["PVT_DET_CACHE"] = cache

    class Here:
        server_port = port

    fetch(REMOTE, Rewriting(Here()))


def test_several_processes_fetch_it_once(server: Server, cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fetch_in_process, args=(server.server_port, str(cache))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert server.asked == [""]
    assert (cache / "model.pth").read_bytes() == CONTENT


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PVT_DET_CACHE")
    assert download.cache_folder() == Path.home() / ".cache/pvt_det"


def test_catalog_is_sound() -> None:
    places = [remote.place for remote in CATALOG.values()]
    assert len(set(places)) == len(places)
    for name, remote in CATALOG.items():
        assert remote.url.startswith("https://"), name
        assert remote.url.endswith(Path(remote.place).name), name
        assert remote.sha256 == "" or (len(remote.sha256) == 8 and int(remote.sha256, 16) >= 0), name
    for name in CLASSIFIERS:
        assert CATALOG[name].place == f"{name}.pth"
    assert CATALOG["retinanet_pvt-t_fpn_1x_coco"].sha256 == "17b566bd"
    assert CATALOG["resnet50"].sha256 == "0676ba61"
