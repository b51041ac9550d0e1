"""Tar shards of ImageNet: labels and members are bounded, and a damaged index is built again."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pvt_det.data.imagenet.folders import open_images
from pvt_det.data.storage import tar as shards
from pvt_det.errors import DataError
from pvt_det.utils.cli import run_cli
from tests.command_line import run_command
from tests.data.imagenet.fakes import add_to_tar, jpeg
from tests.faults.conftest import in_child


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PVT_DET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def write(tmp_path):
    """Write a shard with one valid sample after the given members, and return the data set's folder."""

    def build(*members: tuple[str, bytes], name: str = "train-0.tar") -> Path:
        root = tmp_path / "set"
        root.mkdir(exist_ok=True)
        with tarfile.open(root / name, "w") as tar:
            for member, content in (*members, ("ok.jpg", jpeg(1)), ("ok.cls", b"1")):
                add_to_tar(tar, member, content)
        return root

    return build


def refusal(root: Path, split: str = "train") -> str:
    with pytest.raises(DataError) as error:
        open_images(root, split)
    assert str(root / f"{split}-0.tar") in str(error.value)
    return str(error.value)


BAD_LABELS = {
    "huge": ("a.cls", b"300000000"),
    "digits": ("a.cls", b"9" * 5000),
    "float": ("a.cls", b"1.9"),
    "text": ("a.cls", b"bee"),
    "negative": ("a.cls", b"-1"),
    "underscore": ("a.cls", b"1_0"),
    "empty": ("a.cls", b""),
    "json float": ("a.json", b'{"label": 1.9}'),
    "json true": ("a.json", b'{"label": true}'),
    "json huge": ("a.json", b'{"label": 300000000}'),
    "json digits": ("a.json", b'{"label": ' + b"9" * 4000 + b"}"),
    "json more digits": ("a.json", b'{"label": ' + b"9" * 5000 + b"}"),
    "json nested": ("a.json", b"[" * 100_000),
    "json list": ("a.json", b"[1]"),
    "json without label": ("a.json", b"{}"),
}


@pytest.mark.parametrize("member", BAD_LABELS.values(), ids=BAD_LABELS)
def test_F69_label_that_is_not_a_class_index(write, member):
    root = write(("a.jpg", jpeg(2)), member)
    message, growth = in_child(lambda: refusal(root))
    assert f"{member[0]} " in message
    assert "Expected an integer from 0 to 999,999" in message
    assert len(message) < 500
    assert growth < 50 * 2**20


def test_F69_label_on_the_command_line(write, tmp_path, capsys):
    root = write(("a.jpg", jpeg(2)), ("a.cls", b"300000000"))
    words = ["--model", "pvt_v2_b0", "--data", root, "--output", tmp_path / "run", "--device", "cpu"]
    assert run_cli(lambda: run_command("train-cls", words)) == 3
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert "train-0.tar: a.cls has the label 300000000. Expected an integer from 0 to 999,999" in error
    assert "Traceback" not in error


def test_F69_label_beyond_the_classes_names_shard_and_member(write):
    root = write(("a.jpg", jpeg(2)), ("a.cls", b"7"))
    (root / "classes.txt").write_text("ant\nbee\ncat\n")
    assert "a.jpg has the label 7, but there are only 3 classes" in refusal(root)


def test_F69_label_file_is_preferred_to_other_metadata(write):
    members = [("a.json", b'{"url": "x"}'), ("a.jpg", jpeg(2)), ("a.cls", b" 2\n"), ("b.json", b'{"label": 0}')]
    images = open_images(write(*members, ("b.jpg", jpeg(3))), "train")
    assert images.labels.tolist() == [2, 0, 1]


SPARSE_SIZE = 30 * 2**30


def _sparse(name: str) -> bytes:
    """Return a tar member of GNU's sparse format with 512 bytes of data that expand to 30 GB."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"00000001000\0"  # bytes in the tar file
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"00000000000\0" + b"00000001000\0"  # one block of data, at the start
    header[483:495] = f"{SPARSE_SIZE:o}".encode().rjust(11, b"0") + b"\0"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + b"1".ljust(512, b"\0")


@pytest.mark.parametrize("name", ["a.jpg", "a.cls"])
def test_F69_sparse_member_that_expands_to_30_gigabytes(write, name):
    root = write()
    path = root / "train-0.tar"
    path.write_bytes(_sparse(name) + path.read_bytes())
    with tarfile.open(path) as tar:
        assert tar.next().size == SPARSE_SIZE  # the forged header is valid
    message, growth = in_child(lambda: refusal(root))
    assert f"{name} is a sparse file" in message
    assert growth < 50 * 2**20


def _rewritten(root: Path, change) -> Path:
    """Change the fields of the first member's header."""
    path = root / "train-0.tar"
    content = bytearray(path.read_bytes())
    change(content)
    content[148:156] = b" " * 8
    content[148:156] = f"{sum(content[:512]):06o}\0 ".encode()
    path.write_bytes(content)
    return root


BAD_SIZES = {
    "more than the file": (b"00100000000\0", "is cut short|cannot be read as a tar file"),
    "gigabytes": (b"77777777777\0", "bytes. Expected at most 268,435,456"),
    "negative": (b"\xff" * 11 + b"\x80", "negative size|cannot be read as a tar file"),
}


@pytest.mark.parametrize(("size", "reason"), BAD_SIZES.values(), ids=BAD_SIZES)
@pytest.mark.parametrize("kind", [b"0", b"x", b"L"], ids=["file", "pax", "long name"])
def test_F69_member_with_an_impossible_size(write, size, reason, kind):
    def change(content: bytearray) -> None:
        content[124:136], content[156:157] = size, kind

    root = _rewritten(write(("a.jpg", jpeg(2)), ("a.cls", b"0")), change)
    message, growth = in_child(lambda: refusal(root))
    if kind == b"0":
        assert any(part in message for part in reason.split("|")), message
    else:
        assert "cannot be read as a tar file" in message
    assert growth < 50 * 2**20


def test_F69_damaged_header_does_not_end_the_shard_early(write):
    root = write(("a.jpg", jpeg(2)), ("a.cls", b"0"))
    path = root / "train-0.tar"
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        second = tar.getmembers()[2]
    content[second.offset] ^= 1
    path.write_bytes(content)
    assert "cannot be read as a tar file, at the member after a.cls" in refusal(root)
    path.write_bytes(path.read_bytes()[: second.offset])
    assert "missing end-of-archive block" in refusal(root)


def test_F69_member_names_and_counts_are_checked(write, monkeypatch):
    assert r"'a\x1b[2J.jpg' is not valid" in refusal(write(("a\x1b[2J.jpg", jpeg(2))))
    assert "at most 255 bytes" in refusal(write(("a" * 300 + ".jpg", jpeg(2))))
    assert "a.jpg and a.png are two images with one label" in refusal(write(("a.jpg", jpeg(2)), ("a.png", jpeg(3))))
    assert "a.cls appears twice" in refusal(write(("a.cls", b"1"), ("a.cls", b"2")))
    monkeypatch.setattr(shards, "_MAX_MEMBERS", 3)
    assert "has more than 3 members. Split it" in refusal(write(("b.jpg", jpeg(2)), ("b.cls", b"0")))


def test_F69_label_list_that_is_not_text(write):
    root = write()
    (root / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"classes\.txt: cannot be read as UTF-8 text"):
        open_images(root, "train")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign", "labels", "places"])
def test_F70_damaged_index_is_built_again(write, cache, damage, caplog):
    root = write(("a.jpg", jpeg(2)), ("a.cls", b"0"))
    good = open_images(root, "train")
    (index,) = (cache / "shards").iterdir()
    content = bytearray(index.read_bytes())
    if damage == "truncated":
        index.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[content.index(b"a.jpg")] ^= 1
        index.write_bytes(content)
    elif damage == "empty":
        index.write_bytes(b"")
    else:
        arrays = dict(np.load(io.BytesIO(content)))
        if damage == "labels":
            arrays["labels"] = arrays["labels"] + 10**9
        elif damage == "places":
            arrays["places"] = arrays["places"] + 10**6
        np.savez(index, **({"x": np.zeros(3)} if damage == "foreign" else arrays))
    caplog.clear()
    again = open_images(root, "train")
    assert "the index of the shards is damaged" in caplog.text
    assert str(index) in caplog.text
    assert again.labels.tolist() == good.labels.tolist() == [0, 1]
    assert [again.read(number) for number in range(2)] == [jpeg(2), jpeg(1)]
    caplog.clear()
    open_images(root, "train")
    assert "damaged" not in caplog.text


def test_shard_that_became_shorter_is_reported(write):
    root = write()
    images = open_images(root, "train")
    path = root / "train-0.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(OSError, match=r"ok\.jpg cannot be read \(.*train-0\.tar is cut short\)"):
        images.read(0)


def test_split_is_a_word_of_the_file_name(write):
    root = write(name="trainval-0.tar")
    write(name="interval-0.tar")
    for split in ("train", "val"):
        with pytest.raises(DataError, match=f"shards such as {split}-0000.tar, found interval-0.tar, trainval-0.tar"):
            open_images(root, split)
    write(("a.jpg", jpeg(2)), ("a.json", json.dumps({"label": 0}).encode()), name="imagenet1k_val2012.tar")
    assert open_images(root, "val").labels.tolist() == [0, 1]
