"""A download is the whole file of one version, or an error. Shared folders are signed, and verified on request."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from pvt_det.errors import CheckpointError, ConfigError
from pvt_det.inference.predictor import Predictor
from pvt_det.weights import transfer
from pvt_det.weights.catalog import Remote, hub_file
from pvt_det.weights.download import fetch
from tests.command_line import run_command
from tests.weights.server import CONTENT, DIGEST, REMOTE, Rewriting, Server, running_server

NEW = CONTENT[::-1]


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("PVT_DET_CACHE", str(folder))
    return folder


def get(server: Server, remote: Remote = REMOTE) -> Path:
    return fetch(remote, Rewriting(server.server_port))


def refusal(server: Server, remote: Remote = REMOTE) -> str:
    with pytest.raises(CheckpointError) as error:
        get(server, remote)
    message = str(error.value)
    assert remote.url in message
    assert message.isprintable()
    return message


def interrupt(server: Server) -> None:
    """Start a download that ends after 300 bytes, and is resumed by the next one."""
    server.cut_after = [100, 100, 100]
    assert "connection closed after 300 of" in refusal(server)
    server.requested_ranges.clear()


@pytest.mark.parametrize("header", ["ETag", "Last-Modified", "both"])
def test_F71_part_of_another_version_is_not_appended(server, cache, header):
    """A server that ignores If-Range sends the end of the new file."""
    old = {"ETag": '"one"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    new = {"ETag": '"two"', "Last-Modified": "Tue, 02 Jan 2024 00:00:00 GMT"}
    names = list(old) if header == "both" else [header]
    server.headers = dict.fromkeys(old) | {name: old[name] for name in names}
    server.etag = server.headers["ETag"] or server.headers["Last-Modified"]
    interrupt(server)
    server.content, server.ignores_condition = NEW, True
    server.headers = dict.fromkeys(old) | {name: new[name] for name in names}
    assert get(server).read_bytes() == NEW
    assert server.requested_ranges == ["bytes=300-", ""]
    assert json.loads((cache / "sha256.json").read_text()) == {"model.pth": hashlib.sha256(NEW).hexdigest()}


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": None},
        {"Last-Modified": "Tue, 02 Jan 2024 00:00:00 GMT"},
        {"Content-Range": None},
        {"Content-Range": "bytes 0-99/5120000"},
        {"Content-Range": f"bytes 300-{len(CONTENT)}/{len(CONTENT) + 1}"},
        {"Content-Range": "bytes 300-x/y"},
        {"Content-Range": "9" * 5000},
    ],
    ids=["no etag", "new date", "no range", "other start", "other size", "text", "digits"],
)
def test_F71_response_that_is_not_the_rest_of_the_file(server, headers):
    interrupt(server)
    server.ignores_condition = True

    def once(original=server.RequestHandlerClass._reply):
        def reply(handler, body, status, span):
            server.headers = headers if status == 206 else {}
            original(handler, body, status, span)

        return reply

    server.RequestHandlerClass = type("Once", (server.RequestHandlerClass,), {"_reply": once()})
    assert get(server).read_bytes() == CONTENT
    assert server.requested_ranges == ["bytes=300-", ""]


@pytest.mark.parametrize("length", [None, "", "-5", "1e6", "9" * 5000, "5, 6"])
def test_F71_body_of_unknown_length_needs_a_hash(server, cache, length):
    server.headers = {"Content-Length": length}
    server.cut_after = [1000] * 9
    assert "does not state the size of the file" in refusal(server)
    assert not list(cache.glob("model.pth*"))
    hashed = Remote(REMOTE.url, "model.pth", DIGEST)
    assert f"expected {DIGEST}. It was deleted" in refusal(server, hashed)
    server.cut_after = []
    assert get(server, hashed).read_bytes() == CONTENT


ODD = {
    "folded etag": {"ETag": '"a\r\n b"'},
    "long etag": {"ETag": '"' + "x" * 5000 + '"'},
    "latin etag": {"ETag": '"\xe9"'},
    "weak etag": {"ETag": 'W/"one"'},
    "type": {"Content-Type": ";;;=\x01"},
    "date": {"Last-Modified": "\x1b[2J"},
    "range": {"Content-Range": "bytes x"},
}


@pytest.mark.parametrize("headers", ODD.values(), ids=ODD)
def test_F71_odd_headers_are_survived(server, headers):
    server.headers = headers
    server.cut_after = [1000]
    assert get(server).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"Content-Encoding": "gzip\x1b"}, 200, "in the encoding"),
        ({}, 204, "returned 204"),
        ({}, 206, "a part of the file, which was not requested"),
        ({}, 599, "returned 599"),
    ],
)
def test_F71_reply_that_is_not_the_file(server, cache, headers, status, reason):
    server.headers, server.status = headers, status
    assert reason in refusal(server)
    assert not list(cache.glob("model.pth*"))


@pytest.mark.parametrize("location", ["http://[::1/x", "http://127.0.0.1:port/", "http://127.0.0.1:1/\x7f", "//"])
def test_F71_odd_redirect_is_an_error_without_a_traceback(server, location):
    server.redirect = location
    assert "cannot be downloaded" in refusal(server)


def test_F71_slow_download_ends_at_the_deadline_and_is_resumed(server, cache, monkeypatch):
    monkeypatch.setattr(transfer, "DEADLINE", 0.5)
    server.pause = 0.01
    start = time.monotonic()
    assert "it took longer than" in refusal(server)
    assert time.monotonic() - start < 5
    assert 0 < (cache / "model.pth.part").stat().st_size < 1000
    server.pause = 0.0
    monkeypatch.undo()
    monkeypatch.setenv("PVT_DET_CACHE", str(cache))
    assert get(server).read_bytes() == CONTENT
    assert server.requested_ranges[1].startswith("bytes=")


def test_F71_download_of_one_file_does_not_wait_for_another(server, cache):
    with FileLock(cache / ".other.pth.lock"):
        assert get(server).read_bytes() == CONTENT
    other = Remote("https://weights.test/b/other.pth", "other.pth")
    assert get(server, other).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"model.pth": 7}', b'{"model.pth": "short"}'],
    ids=["empty", "cut", "list", "binary", "nested", "number", "short"],
)
def test_F71_damaged_record_file_is_written_again(server, cache, content, caplog):
    get(server)
    (cache / "sha256.json").write_bytes(content)
    assert get(server).read_bytes() == CONTENT
    assert "sha256.json is damaged" in caplog.text
    assert json.loads((cache / "sha256.json").read_text()) == {"model.pth": DIGEST}
    caplog.clear()
    get(server)
    assert "damaged" not in caplog.text


def test_F71_hashes_that_can_be_read_are_kept(server, cache):
    get(server)
    (cache / "sha256.json").write_text(json.dumps({"model.pth": DIGEST, "other.pth": None, "third.pth": "0" * 64}))
    get(server)
    assert json.loads((cache / "sha256.json").read_text()) == {"model.pth": DIGEST, "third.pth": "0" * 64}


def test_F71_deleted_file_is_downloaded_and_recorded_again(server, cache, caplog):
    get(server)
    server.content = NEW
    (cache / "model.pth").write_bytes(b"damaged")
    assert "Delete it to download" in refusal(server)
    (cache / "model.pth").unlink()
    assert get(server).read_bytes() == NEW
    assert "is not the same file as at its last download" in caplog.text
    assert get(server).read_bytes() == NEW


def test_range_that_is_never_satisfiable_is_an_error(server, cache):
    """The server refuses the rest of the file in the last attempt."""
    server.cut_after = [100, 100]

    def shrink(start: str) -> None:
        if start == "bytes=200-":
            server.status = 416

    class Ranges(list):
        def append(self, value: str) -> None:
            super().append(value)
            shrink(value)

    server.requested_ranges = Ranges()
    assert "the server returned 416" in refusal(server)
    assert server.requested_ranges == ["", "bytes=100-", "bytes=200-", ""]


@pytest.fixture
def hub(server, monkeypatch) -> Server:
    """Serve the file as the Hugging Face Hub does, for `huggingface_hub`."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    template = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    server.headers = {"X-Repo-Commit": "c" * 40, "ETag": f'"{DIGEST}"'}
    return server


def test_F71_hub_file_is_downloaded_by_its_library_and_verified(hub, cache):
    remote = hub_file("ada/cells", "weights/model.safetensors")
    path = fetch(remote)
    assert path == cache / "hf/ada/cells/weights/model.safetensors"
    assert path.read_bytes() == CONTENT
    files = [path for path in hub.requested_paths if path.startswith("/ada/")]
    assert files == [f"/ada/cells/resolve/{'c' * 40}/weights/model.safetensors"]
    assert json.loads((cache / "sha256.json").read_text()) == {remote.cache_path: DIGEST}
    assert fetch(remote) == path
    assert [path for path in hub.requested_paths if path.startswith("/ada/")] == files

    other = hub_file("ada/other", "model.safetensors")
    hub.content = NEW
    with pytest.raises(CheckpointError, match=rf"has SHA-256 {hashlib.sha256(NEW).hexdigest()}, expected {DIGEST}"):
        fetch(other)
    assert not (cache / other.cache_path).exists()


def test_F71_hub_error_names_the_file(hub):
    hub.headers = {}
    with pytest.raises(
        CheckpointError, match=r"huggingface\.co/ada/none/.* cannot be downloaded .* put it at"
    ) as error:
        fetch(hub_file("ada/none"))
    assert "\n" not in str(error.value)


RESULTS = {
    **{"config_file": "mine.yaml", "model": "RetinaNet pvt_tiny", "recipe": "adamw", "dataset": "shapes_val"},
    **{"parameters": 1, "metrics": {}, "results_file": "", "annotations": ""},
}


@pytest.fixture
def keys(tmp_path):
    """Make a pair of keys as the help of `pvt-det card` says, and return the private and the public one."""

    def make(name: str) -> tuple[Path, Path]:
        private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}-public.pem"
        subprocess.run(f"openssl ecparam -name prime256v1 -genkey -noout -out {private}".split(), check=True)
        subprocess.run(f"openssl ec -in {private} -pubout -out {public}".split(), check=True, capture_output=True)
        return private, public

    return make


@pytest.fixture
def share(untrained_run, tmp_path):
    """Run `pvt-det card` on a trained detector, and return the folder to share."""

    def write(*options: object) -> Path:
        (untrained_run / "results.json").write_text(json.dumps(RESULTS))
        folder = tmp_path / "share"
        assert run_command("card", [untrained_run, "--output", folder, *options]) == 0
        return folder

    return write


def load(folder: Path, public_key: Path | str) -> Predictor:
    return Predictor(folder, folder / "model.safetensors", device="cpu", public_key=public_key)


def test_F82_card_lists_the_digest_of_every_file(share, tmp_path):
    (tmp_path / "share").mkdir()
    (tmp_path / "share/mine.onnx").write_bytes(b"exported")
    folder = share()
    card = (folder / "README.md").read_text()
    for name in ("config.yaml", "mine.onnx", "model.safetensors"):
        content = (folder / name).read_bytes()
        assert f"| {name} | {len(content):,} | {hashlib.sha256(content).hexdigest()} |" in card
    assert card.count("README.md |") == 0


def test_F82_signed_folder_is_verified_before_it_is_read(share, keys, tmp_path, caplog):
    pytest.importorskip("model_signing", exc_type=ImportError)
    private, public = keys("mine")
    folder = share("--sign", private)
    assert (folder / "model.sig").is_file()
    moved = folder.rename(tmp_path / "moved")
    (moved / ".cache/huggingface").mkdir(parents=True)
    (moved / ".cache/huggingface/x").write_text("written by a download")
    assert load(moved, public).class_names == ("circle", "square", "triangle", "star")
    assert "its signature is not verified. Add --public-key" not in caplog.text
    load(moved, "")
    assert "its signature is not verified. Add --public-key" in caplog.text

    def refused(match: str) -> None:
        with pytest.raises(CheckpointError, match=match):
            load(moved, public)

    for name in ("config.yaml", "README.md", "model.safetensors"):
        content = (moved / name).read_bytes()
        (moved / name).write_bytes(content[:-1] + b"!")
        refused(f"does not match: .*{name}")
        (moved / name).write_bytes(content)
    (moved / "extra.yaml").write_text("")
    refused("does not match: .*extra.yaml")
    (moved / "extra.yaml").unlink()
    signature = (moved / "model.sig").read_text()
    for damaged in ("", "{", "[" * 100_000, "{}", signature[:-20], signature.replace('"payload"', '"other"')):
        (moved / "model.sig").write_text(damaged)
        refused("does not match")
    (moved / "model.sig").unlink()
    refused("is not signed")
    (moved / "model.sig").write_text(signature)
    with pytest.raises(CheckpointError, match="does not match: Key mismatch"):
        load(moved, keys("other")[1])
    load(moved, public)


def test_F82_commands_verify_the_folder(share, keys, tmp_path):
    pytest.importorskip("model_signing", exc_type=ImportError)
    private, public = keys("mine")
    folder = share("--sign", private)
    (folder / "config.yaml").write_text("SEED: 1\n")
    words = ["--config-file", folder, "--weights", folder / "model.safetensors", "--public-key", public]
    photo = tmp_path / "photo.jpg"
    from PIL import Image

    Image.new("RGB", (64, 64)).save(photo)
    onnx = ["--output", tmp_path / "x.onnx"]
    for name, more in (("predict", [photo]), ("eval", []), ("export", onnx), ("explain", [photo])):
        with pytest.raises(CheckpointError, match=r"does not match: .*config\.yaml"):
            run_command(name, [*more, *words])
    training = ["retinanet_pvt_v2_b0", "--public-key", public]
    with pytest.raises(CheckpointError, match=r"does not match: .*config\.yaml"):
        run_command("train", [*training, "MODEL.WEIGHTS", folder / "model.safetensors"])
    with pytest.raises(ConfigError, match=r"--public-key has no effect without MODEL\.WEIGHTS"):
        run_command("train", [*training, "MODEL.WEIGHTS", ""])
    words[3] = tmp_path / "elsewhere.safetensors"
    with pytest.raises(ConfigError, match="must be files in one signed folder"):
        run_command("eval", words)


def test_F82_card_written_again_drops_the_old_signature(share, keys):
    pytest.importorskip("model_signing", exc_type=ImportError)
    private, public = keys("mine")
    folder = share("--sign", private)
    share()
    assert not (folder / "model.sig").exists()
    share("--sign", private)
    load(folder, public)


def test_F82_unusable_keys_are_refused_before_the_card_is_written(share, keys, tmp_path):
    pytest.importorskip("model_signing", exc_type=ImportError)
    private, public = keys("mine")
    (tmp_path / "text.pem").write_text("no key")
    subprocess.run(["openssl", "genrsa", "-out", tmp_path / "rsa.pem", "2048"], check=True, capture_output=True)
    for name in ("none.pem", "text.pem", "rsa.pem", public.name):
        with pytest.raises(ConfigError, match=f"{name} .*Expected a PEM file of an elliptic-curve key"):
            share("--sign", tmp_path / name)
    assert not (tmp_path / "share").exists()
    (tmp_path / "share").mkdir()
    inside = private.rename(tmp_path / "share/private.pem")
    with pytest.raises(ConfigError, match="is in the folder to share"):
        share("--sign", inside)


def test_F82_missing_package_is_named(share, keys, tmp_path, monkeypatch):
    monkeypatch.setattr("pvt_det.utils.extras.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"A signature needs model_signing and OpenSSL, .*pip install 'pvt_det\[signing\]'"
    ):
        share("--sign", tmp_path / "key.pem")
    with pytest.raises(ConfigError, match=r"A signature needs model_signing"):
        load(share(), tmp_path / "key.pem")
