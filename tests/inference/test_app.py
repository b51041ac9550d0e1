"""Tests of the web page of `pvt-det app`: results, limits, what it does not reveal, and its use in a browser."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import struct
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pvt_det.errors import ConfigError
from pvt_det.inference import app
from pvt_det.inference.app import launched, load_model
from pvt_det.inference.predictor import Predictor
from pvt_det.inference.segmentor import Segmentor
from tests.chromium import find_chromium, open_page
from tests.command_line import run_command

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")

NAMES = ["<img src=x onerror=alert(1)>", "a & b", "**bold**", "${c}{{d}}"]


@pytest.fixture
def no_gradio(monkeypatch):
    monkeypatch.setattr("pvt_det.utils.extras.find_spec", lambda name: None)


def test_missing_gradio_is_named_before_the_model_is_loaded(no_gradio, tmp_path):
    with pytest.raises(ConfigError, match=r"needs gradio, which is missing.*pip install 'pvt_det\[app\]'"):
        run_command("app", [str(tmp_path)])


def test_port_out_of_range_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--port 0: expected 1 to 65535"):
        run_command("app", [str(tmp_path), "--port", "0"])


@pytest.fixture
def gradio_client():
    return pytest.importorskip("gradio_client", reason="Gradio (pip install gradio) is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Counting:
    """Counts how often a model runs."""

    def __init__(self, model):
        self.runs, self._run = 0, model._run
        model._run = self

    def __call__(self, records):
        self.runs += 1
        return self._run(records)


@pytest.fixture(scope="module")
def detector(untrained_run):
    return load_model(str(untrained_run), overrides=["DATASETS.CLASS_NAMES", str(NAMES)], device="cpu")


@pytest.fixture(scope="module")
def url(detector):
    """Address of the page of a detector, with a small limit for uploads."""
    pytest.importorskip("gradio", reason="Gradio (pip install gradio) is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "MAX_UPLOAD", "200kb")
        with launched(detector, port=free_port()) as address:
            yield address


@pytest.fixture
def image(shapes) -> Path:
    return sorted((shapes / "val").iterdir())[0]


@pytest.fixture
def client(gradio_client, url, tmp_path):
    return gradio_client.Client(url, verbose=False, download_files=tmp_path, analytics_enabled=False)


def files_of(result) -> dict[str, Path]:
    return {Path(file).suffix: Path(file) for file in result[2]}


def test_moving_the_threshold_filters_without_running_the_model(client, gradio_client, detector, untrained_run, image):
    counting = Counting(detector)
    first = client.predict(gradio_client.handle_file(image), 0.5, api_name="/predict")
    content = json.loads(files_of(first)[".json"].read_text())
    expected = Predictor(untrained_run, device="cpu")(image)
    assert 2 < len(expected) < 100
    boxes = np.array([each["bbox"] for each in content["annotations"]])
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(boxes, expected.pred_boxes.tensor.numpy(), atol=1e-3)
    assert [each["category_id"] - 1 for each in content["annotations"]] == expected.pred_classes.tolist()
    assert [each["name"] for each in content["categories"]] == NAMES
    assert content["images"] == [{"id": 1, "file_name": image.name, "width": 64, "height": 64}]
    assert sum(int(part.split()[0]) for part in first[1].split(", ")) == len(expected)
    assert Image.open(first[0]).size == (640, 640)
    score = float(expected.scores[1]) - 1e-4
    second = client.predict(score, api_name="/show")
    kept = json.loads(files_of(second)[".json"].read_text())["annotations"]
    assert [each["score"] for each in kept] == pytest.approx(expected.scores[:2].tolist())
    lowest = client.predict(0.05, api_name="/show")
    assert len(json.loads(files_of(lowest)[".json"].read_text())["annotations"]) > len(expected)
    assert counting.runs == 1
    assert client.predict(1.0, api_name="/show")[1] == "no objects"


def test_segmentor_gives_its_label_map(gradio_client, segmentor_run, image, tmp_path):
    pytest.importorskip("gradio", reason="Gradio (pip install gradio) is not installed")
    with launched(load_model(str(segmentor_run), device="cpu"), port=free_port()) as address:
        client = gradio_client.Client(address, verbose=False, download_files=tmp_path, analytics_enabled=False)
        result = client.predict(gradio_client.handle_file(image), 0.5, api_name="/predict")
    labels = Segmentor(segmentor_run, device="cpu")(image)
    files = files_of(result)
    assert np.array_equal(np.asarray(Image.open(files[".png"])), labels)
    content = json.loads(files[".json"].read_text())
    assert content["shares"] == pytest.approx(labels.shares())
    assert content["categories"][0] == {"id": 0, "name": "background"}
    name, share = next(iter(labels.shares().items()))
    assert result[1].startswith(f"{name} {share:.0%}")


def bomb(path: Path) -> Path:
    """Write a small PNG file of 400 megapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 20001 * 100)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [("text.jpg", "is not an image"), ("empty.jpg", "is empty (0 bytes)"), ("bomb.png", "is too large (")],
)
def test_unusable_images_give_a_message_without_paths(client, gradio_client, tmp_path, name, message):
    file = tmp_path / name
    file.write_bytes(b"words" if name == "text.jpg" else b"")
    if name == "bomb.png":
        bomb(file)
    picture, text, files = client.predict(gradio_client.handle_file(file), 0.5, api_name="/predict")
    assert text.startswith(f"image {name} {message}")
    assert "/" not in text.replace("supported: ", "")
    assert (picture, files) == (None, None)


def get(address: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(address) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_files_of_the_machine_cannot_be_read(url, client, untrained_run, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64)).save(secret)
    config = untrained_run / "config.yaml"
    for file in ("/etc/passwd", str(secret), str(config), "pyproject.toml"):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/"):
            for name in (
                file,
                f"{'../' * 12}{file.lstrip('/')}",
                file.replace("/", "%2F"),
                f"{tempfile.gettempdir()}/..{file}",
            ):
                status, body = get(f"{url}{route}{name}")
                assert status >= 400, (route, name)
                assert b"root:" not in body
                assert b"MODEL" not in body
    _, (uploaded,) = upload(url, 10)
    assert "a.png is not an image" in call(url, {"path": uploaded})
    assert call(url, {"path": str(secret)}).startswith("event: error")
    assert call(url, {"path": str(config)}).startswith("event: error")


def call(url: str, file: dict[str, str]) -> str:
    """Run the model on a file that was not uploaded, as a program and not as the page does; return the events."""
    body = json.dumps({"data": [{**file, "meta": {"_type": "gradio.FileData"}}, 0.5]}).encode()
    request = urllib.request.Request(f"{url}gradio_api/call/predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        event = json.load(answer)["event_id"]
    return get(f"{url}gradio_api/call/predict/{event}")[1].decode()


def test_addresses_within_the_network_are_not_fetched(url):
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.png"
        for given in ({"path": address}, {"path": "a.png", "url": address}):
            assert call(url, given).startswith("event: error")
        server.shutdown()
    assert requests == []


def upload(url: str, size: int) -> tuple[int, list[str]]:
    """Upload zeros and return the status and the paths."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    request = urllib.request.Request(
        f"{url}gradio_api/upload",
        head + b"0" * size + b"\r\n--x--\r\n",
        {"Content-Type": "multipart/form-data; boundary=x"},
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, []


def test_large_uploads_are_refused(url):
    assert upload(url, 190_000)[0] == 200
    assert upload(url, 210_000) == (413, [])


def test_busy_port_is_reported(detector, url):
    port = int(url.rstrip("/").rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"cannot be served on 127.0.0.1, port {port}"), launched(detector, port=port):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_command_serves_until_ctrl_c_and_removes_uploads(untrained_run, host, capfd, monkeypatch, tmp_path):
    pytest.importorskip("gradio", reason="Gradio (pip install gradio) is not installed")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setattr(urllib.request, "urlopen", urllib.request.build_opener(urllib.request.ProxyHandler({})).open)
    port, answers, before = free_port(), [], signal.getsignal(signal.SIGINT)

    def visit():
        for _ in range(600):
            try:
                answers.append(get(f"http://127.0.0.1:{port}/")[0])
                break
            except OSError:
                time.sleep(0.1)
        answers.append(get(f"http://127.0.0.1:{port}/gradio_api/file=/etc/passwd")[0])
        answers.append([path.name[:8] for path in tmp_path.iterdir()])
        while signal.getsignal(signal.SIGINT) is before:  # the command does not handle signals yet
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    visitor = threading.Thread(target=visit)
    visitor.start()
    assert run_command("app", [untrained_run, "--device", "cpu", "--host", host, "--port", port]) == 0
    visitor.join()
    assert answers[:2] == [200, 403]
    assert "pvt_det_" in answers[2]
    assert not list(tmp_path.glob("pvt_det_app_*"))
    shown = capfd.readouterr()
    assert f":{port}/ in a browser. Ctrl-C ends it." in shown.out
    assert ("warning: the page asks for no password" in shown.err) == (host == "0.0.0.0")
    assert "Traceback" not in shown.err


@pytest.mark.slow
def test_page_in_a_browser(url, detector, image, tmp_path):
    program = find_chromium()
    if program is None:
        pytest.skip("needs Chromium")
    with open_page(program, url, tmp_path) as page:
        page.upload("#image input[type=file]", image)
        text = page.wait("document.querySelector('#result textarea')?.value")
        assert NAMES[0] in text  # as text, not as markup
        assert page.evaluate("document.querySelectorAll('img[onerror]').length") == 0
        source = page.wait("document.querySelector('#picture img')?.src")
        assert page.wait("document.querySelector('#picture img').naturalWidth") == 640
        labels = page.evaluate("[...document.querySelectorAll('#picture button')].map(each => each.ariaLabel).join()")
        assert "share" not in labels.lower()
        link = page.wait("document.querySelector('#files a[href]')?.href")
        counting = Counting(detector)
        page.evaluate("document.querySelector('#threshold input[type=range]').focus()")
        page.press("Home")
        more = page.wait(f"(v => v != {json.dumps(text)} && v)(document.querySelector('#result textarea').value)")
        assert page.wait(f"document.querySelector('#picture img').src != {json.dumps(source)}")
        counts = [sum(int(part.split()[0]) for part in shown.split(", ")) for shown in (text, more)]
        assert counts[0] < counts[1]
        assert counting.runs == 0
        assert page.wait(f"document.querySelector('#files a[href]').href != {json.dumps(link)}")
        page.evaluate("document.querySelector('#files a[href]').click()")
        file = tmp_path / f"{image.stem}.json"
        for _ in range(300):
            if file.exists():
                break
            page.evaluate("new Promise(done => setTimeout(done, 100))")
        assert len(json.loads(file.read_text())["annotations"]) == counts[1]
        broken = tmp_path / "broken.jpg"
        broken.write_bytes(b"no image")
        page.evaluate("document.querySelector('#image button[aria-label]').click()")  # removes the first image
        page.upload("#image input[type=file]", broken)
        message = page.wait("(v => v.startsWith('image') && v)(document.querySelector('#result textarea').value)")
        assert message.startswith("image broken.jpg is not an image")
        assert page.evaluate("document.body.innerText.includes('Traceback')") is False
        requested = [e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"]
    outside = [address for address in requested if not address.startswith((url, "data:", "blob:"))]
    assert outside == []
    assert not [event for event in page.events if event["method"] == "Page.javascriptDialogOpening"]
