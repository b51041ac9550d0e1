"""Images and streams over HTTP: what a URL is, limits of size and time, and errors that name the URL."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from pvt_det.errors import DataError
from pvt_det.inference import urls
from pvt_det.inference.sources import find_sources
from pvt_det.inference.urls import Kind, find_kind, output_name, read_image_url


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


class Handler(BaseHTTPRequestHandler):
    """Sends an image, and misbehaves in several ways."""

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1].partition(".")[0].partition("?")[0]
        getattr(self, f"send_{name}")()

    def reply(self, content=b"", kind="image/png", code=200, **headers):
        self.send_response(code)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def send_image(self):
        self.reply(png(PIXELS))

    def send_secret(self):
        given = base64.b64decode(self.headers.get("Authorization", "Basic ").removeprefix("Basic "))
        self.reply(png(PIXELS)) if given == b"me:p@ss" else self.reply(code=401)

    def send_page(self):
        self.reply(b"<html>", "text/html")

    def send_broken(self):
        self.reply(b"no image")

    def send_short(self):
        self.reply(png(PIXELS)[:50], **{"Content-Length": "5000"})

    def send_large(self):
        self.reply(bytes(4096))

    def send_moved(self):
        self.reply(code=302, Location="/image.png")

    def send_tofile(self):
        self.reply(code=302, Location="file:///etc/passwd")

    def send_stream(self):
        self.reply(kind="multipart/x-mixed-replace; boundary=x")

    def send_movie(self):
        self.reply(kind="video/mp4")

    def send_drip(self):
        try:
            for letter in b"HTTP/1.0 200 OK\r\nX-Long: " + b"a" * 1000:
                self.wfile.write(bytes([letter]))
                time.sleep(0.05)
        except OSError:  # the client has left
            pass

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("name", ["image.png", "image", "moved.png"])
def test_image_is_read(server, name):
    assert np.array_equal(read_image_url(f"{server}/{name}"), PIXELS)


def test_login_is_sent_but_not_shown(server):
    url = f"{server}/secret.png".replace("http://", "http://me:p%40ss@")
    assert np.array_equal(read_image_url(url), PIXELS)
    (source,) = find_sources([url])
    assert source.shown == f"{server}/secret.png"
    with pytest.raises(DataError, match="the server returned 401 Unauthorized") as raised:
        read_image_url(url.replace("me:", "you:"))
    assert "p%40ss" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("page.png", "is of type text/html. Expected an image"),
        ("broken.png", "is not an image"),
        ("short.png", "connection closed after 50 of 5000 bytes"),
        ("missing.png", "cannot be read"),
        ("tofile.png", "302|not allowed"),
    ],
)
def test_what_is_not_an_image_is_refused(server, name, message):
    with pytest.raises(DataError, match=message) as raised:
        read_image_url(f"{server}/{name}")
    assert f"{server}/{name}" in str(raised.value)


def test_size_is_limited(server, monkeypatch):
    monkeypatch.setattr(urls, "SIZE_LIMIT", 1000)
    with pytest.raises(DataError, match=rf"{server}/large\.png is larger than"):
        read_image_url(f"{server}/large.png")


def test_time_is_limited_for_headers_that_drip(server, monkeypatch):
    monkeypatch.setattr(urls, "TIME_LIMIT", 0.4)
    start = time.monotonic()
    with pytest.raises(DataError, match=rf"{server}/drip\.png did not arrive within 0\.4 seconds"):
        read_image_url(f"{server}/drip.png")
    assert time.monotonic() - start < 2


def test_server_without_answer_is_named():
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/a\.png cannot be read \(.*refused"):
        read_image_url("http://127.0.0.1:9/a.png")


def test_kinds_of_urls(server):
    wanted = {
        "image": Kind.IMAGE,
        "page.jpg": Kind.IMAGE,  # its suffix says so, without asking
        "stream": Kind.LIVE,
        "movie.mp4": Kind.VIDEO,
    }
    assert {name: find_kind(f"{server}/{name}") for name in wanted} == wanted
    assert find_kind("rtsp://user:secret@camera/1") is Kind.LIVE
    with pytest.raises(DataError, match=r"page is of type text/html\. Expected an image, a video or a stream"):
        find_kind(f"{server}/page")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "URLs with file:// are not supported. Expected http://, https:// or rtsp://"),
        ("ftp://host/a.jpg", "ftp:// are not supported"),
        ("http://", "is not a valid URL"),
        ("http://host:port/a.jpg", "is not a valid URL"),
    ],
)
def test_other_urls_are_refused(url, message):
    with pytest.raises(DataError, match=message):
        find_sources([url])


def test_inputs_from_the_network_have_unique_safe_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_sources(["rtsp://a:b@host/live", "0", "rtsp://other/live", "http://host/%2e%2e%2fx.jpg?token=1"])
    assert [(source.shown, source.name.as_posix(), source.is_live) for source in found] == [
        ("rtsp://host/live", "live", True),
        ("camera 0", "camera_0", True),
        ("rtsp://other/live", "live_2", True),
        ("http://host/%2e%2e%2fx.jpg?token=1", "x", False),
    ]
    (tmp_path / "0").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "0/a.png")
    assert find_sources(["0"])[0].name.as_posix() == "a"
    assert output_name("http://host/") == "host"
