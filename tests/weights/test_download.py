"""Files are downloaded once and verified, or an error says what to do."""

from __future__ import annotations

import json
import multiprocessing
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pvt_det.errors import CheckpointError
from pvt_det.weights import download
from pvt_det.weights.catalog import CATALOG, CLASSIFIERS, Remote
from pvt_det.weights.download import fetch
from pvt_det.weights.transfer import TransferError
from tests.weights.server import CONTENT, DIGEST, REMOTE, Rewriting, Server, running_server


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PVT_DET_CACHE", str(folder))
    return folder


def files(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_file_is_downloaded_once_and_its_hash_recorded(server: Server, cache: Path) -> None:
    opener = Rewriting(server.server_port)
    path = fetch(REMOTE, opener)
    assert path == cache / "model.pth"
    assert path.read_bytes() == CONTENT
    assert json.loads((cache / "sha256.json").read_text()) == {"model.pth": DIGEST}
    assert fetch(REMOTE, opener) == path
    assert server.requested_ranges == [""]
    assert files(cache) == ["model.pth", "sha256.json"]


def test_interrupted_download_is_resumed(server: Server, cache: Path) -> None:
    server.cut_after = [1_000_000, 2_000_000]
    assert fetch(REMOTE, Rewriting(server.server_port)).read_bytes() == CONTENT
    assert server.requested_ranges == ["", "bytes=1000000-", "bytes=3000000-"]
    assert files(cache) == ["model.pth", "sha256.json"]


def test_failed_download_is_resumed_by_the_next_run(server: Server, cache: Path) -> None:
    server.cut_after = [100, 100, 100]
    with pytest.raises(CheckpointError, match=r"connection closed after 300 of .* put it at .*model\.pth"):
        fetch(REMOTE, Rewriting(server.server_port))
    assert files(cache) == ["model.pth.part", "model.pth.part.json"]
    assert fetch(REMOTE, Rewriting(server.server_port)).read_bytes() == CONTENT
    assert server.requested_ranges[3] == "bytes=300-"


def test_file_that_changed_on_the_server_is_downloaded_again(server: Server, cache: Path) -> None:
    server.cut_after = [100, 100, 100]
    with pytest.raises(CheckpointError):
        fetch(REMOTE, Rewriting(server.server_port))
    server.content, server.etag = CONTENT[::-1], '"two"'
    assert fetch(REMOTE, Rewriting(server.server_port)).read_bytes() == CONTENT[::-1]


def test_partial_file_longer_than_the_file(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "model.pth.part").write_bytes(CONTENT + b"more")
    version = {"url": REMOTE.url, "etag": '"one"', "modified": "", "length": None}
    (cache / "model.pth.part.json").write_text(json.dumps(version))
    assert fetch(REMOTE, Rewriting(server.server_port)).read_bytes() == CONTENT


def test_partial_file_of_an_unknown_version_is_downloaded_again(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "model.pth.part").write_bytes(b"garbage")
    assert fetch(REMOTE, Rewriting(server.server_port)).read_bytes() == CONTENT
    assert server.requested_ranges == [""]


@pytest.mark.parametrize("digits", [8, 64])
def test_published_hash_is_verified(server: Server, cache: Path, digits: int) -> None:
    good = Remote(REMOTE.url, "good.pth", DIGEST[:digits])
    assert fetch(good, Rewriting(server.server_port)).is_file()
    bad = Remote(REMOTE.url, "bad.pth", "0" * digits)
    with pytest.raises(CheckpointError, match=rf"has SHA-256 {DIGEST}, expected 00000000.*deleted"):
        fetch(bad, Rewriting(server.server_port))
    assert files(cache) == ["good.pth", "sha256.json"]


def test_recorded_hash_is_verified_on_every_use(server: Server, cache: Path) -> None:
    path = fetch(REMOTE, Rewriting(server.server_port))
    changed = bytearray(CONTENT)
    changed[5] ^= 1
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match=r"its SHA-256 is .* recorded in .*sha256\.json is .* Delete it"):
        fetch(REMOTE, Rewriting(server.server_port))


def test_manually_placed_file_is_used_and_verified(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "model.pth").write_bytes(CONTENT)
    assert fetch(REMOTE, Rewriting(server.server_port)) == cache / "model.pth"
    assert server.requested_ranges == []
    with pytest.raises(CheckpointError, match="published is 12345678…"):
        fetch(Remote(REMOTE.url, "model.pth", "12345678"), Rewriting(server.server_port))


def test_offline_error_names_url_and_cache_path(cache: Path) -> None:
    class Offline:
        def open(self, *_: object, **__: object) -> Any:
            raise urllib.error.URLError("Name or service not known")

    with pytest.raises(CheckpointError) as error:
        fetch(REMOTE, Offline())
    for part in (REMOTE.url, "Name or service not known", f"put it at {cache / 'model.pth'}"):
        assert part in str(error.value)


@pytest.mark.parametrize("status", [404, 403, 500])
def test_http_error_is_reported(server: Server, cache: Path, status: int) -> None:
    server.status = status
    with pytest.raises(CheckpointError, match=f"the server returned {status}"):
        fetch(REMOTE, Rewriting(server.server_port))
    assert files(cache) == []


def test_web_page_is_refused(server: Server, cache: Path) -> None:
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(CheckpointError, match="sent a web page"):
        fetch(REMOTE, Rewriting(server.server_port))
    assert files(cache) == []


def test_plain_http_requires_the_full_hash(server: Server, cache: Path) -> None:
    url = f"http://127.0.0.1:{server.server_port}/model.pth"
    with pytest.raises(CheckpointError, match="plain http can be tampered with"):
        fetch(Remote(url, "model.pth", DIGEST[:8]))
    assert server.requested_ranges == []
    assert fetch(Remote(url, "model.pth", DIGEST)).read_bytes() == CONTENT


def test_redirect_to_plain_http_is_not_followed(server: Server, cache: Path) -> None:
    opener = download.default_opener(REMOTE)
    server.redirect = f"http://127.0.0.1:{server.server_port}/elsewhere"
    with pytest.raises(TransferError, match="redirects to plain http"):
        opener.open(urllib.request.Request(f"http://127.0.0.1:{server.server_port}/"), timeout=5)
    assert len(server.requested_ranges) == 1


def test_cache_folder_that_is_not_writable(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PVT_DET_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CheckpointError, match="cannot be written"):
        fetch(REMOTE, Rewriting(server.server_port))


def _fetch_in_process(port: int, cache: str) -> None:
    import os

    os.environ["PVT_DET_CACHE"] = cache

    fetch(REMOTE, Rewriting(port))


def test_concurrent_processes_download_once(server: Server, cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fetch_in_process, args=(server.server_port, str(cache))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert server.requested_ranges == [""]
    assert (cache / "model.pth").read_bytes() == CONTENT


def test_default_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PVT_DET_CACHE")
    assert download.cache_folder() == Path.home() / ".cache/pvt_det"


def test_catalog_is_consistent() -> None:
    paths = [remote.cache_path for remote in CATALOG.values()]
    assert len(set(paths)) == len(paths)
    for name, remote in CATALOG.items():
        assert remote.url.startswith("https://"), name
        assert remote.url.endswith(Path(remote.cache_path).name), name
        assert remote.sha256 == "" or (len(remote.sha256) == 8 and int(remote.sha256, 16) >= 0), name
    for name in CLASSIFIERS:
        assert CATALOG[name].cache_path == f"{name}.pth"
    assert CATALOG["retinanet_pvt-t_fpn_1x_coco"].sha256 == "17b566bd"
    assert CATALOG["resnet50"].sha256 == "0676ba61"
