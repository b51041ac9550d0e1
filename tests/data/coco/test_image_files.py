"""Check of many image files: headers are read once, and again only if a file has changed."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pvt_det.data.coco import image_files
from pvt_det.data.coco.image_files import image_faults
from pvt_det.data.images import read_header

W, H = 40, 30


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Write images that were last changed long ago, and remember the sizes of even a few."""
    monkeypatch.setenv("PVT_DET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_files, "_MANY", 1)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        write(folder / f"{number}.jpg")
    return folder


def write(path, size=(W, H), **options):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    os.utime(path, (1e9, 1e9))


@pytest.fixture
def headers(monkeypatch):
    """Return the list of image files that were opened."""
    opened, read = [], image_files._jpeg_size
    monkeypatch.setattr(image_files, "_jpeg_size", lambda path: opened.append(Path(path).name) or read(path))
    return opened


def faults(root, names=("0.jpg", "1.jpg", "2.jpg"), **options):
    return image_faults(root, names, [(W, H)] * len(names), **{"decode": False} | options)


def test_unchanged_files_are_not_opened_again(root, headers):
    assert faults(root) == {}
    assert sorted(headers) == ["0.jpg", "1.jpg", "2.jpg"]
    assert faults(root) == {}
    assert len(headers) == 3
    write(root / "1.jpg", (H, W))
    os.utime(root / "1.jpg", (1e9, 1e9 + 1))
    os.utime(root / "2.jpg")
    (root / "0.jpg").unlink()
    found = faults(root)
    assert list(found) == [0, 1]
    assert found[0] == f"image {root / '0.jpg'} does not exist"
    assert "1.jpg is 30x40 (after EXIF rotation), but its annotation says 40x30" in found[1]
    assert headers[3:] == ["1.jpg", "2.jpg"]
    # The third has changed too recently to be remembered.
    assert faults(root)[1] == found[1]
    assert headers[5:] == ["2.jpg"]


def test_expected_size_is_compared_with_the_remembered_one(root, headers):
    faults(root)
    assert list(image_faults(root, ["0.jpg"], [(W, H + 1)], decode=False)) == [0]
    assert len(headers) == 3


def test_faults_are_found_each_time(root, headers):
    (root / "0.jpg").write_bytes(b"")
    os.utime(root / "0.jpg", (1e9, 1e9))
    for _ in range(2):
        assert list(faults(root)) == [0]
    assert headers.count("0.jpg") == 2
    assert faults(root, decode=True)[0] == f"image {root / '0.jpg'} is empty (0 bytes): replace it"
    assert len(headers) == 4


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_files_are_read_in_threads_once_reading_waits(root, monkeypatch, seconds):
    """Threads would take turns with Python code, so they only pay off for a disk or network that is slow."""
    monkeypatch.setattr(image_files, "_FILES_AT_A_TIME", 1)
    readers, read = [], image_files._jpeg_size

    def read_slowly(path):
        readers.append(threading.current_thread())
        time.sleep(seconds)
        return read(path)

    monkeypatch.setattr(image_files, "_jpeg_size", read_slowly)
    (root / "2.jpg").write_bytes(b"")
    assert list(faults(root)) == [2]
    assert [reader is threading.main_thread() for reader in readers] == [True, not seconds, not seconds]


def test_damaged_memory_is_written_again(root, headers, tmp_path, caplog):
    faults(root)
    (memory,) = (tmp_path / "cache/images").glob("*.safetensors")
    memory.write_bytes(memory.read_bytes()[:-3])
    assert faults(root) == {}
    assert f"{memory} is damaged" in caplog.text
    assert faults(root) == {}
    assert len(headers) == 6


def test_without_a_cache_folder_all_files_are_read(root, headers, tmp_path, caplog):
    (tmp_path / "cache").write_text("in the way")
    assert faults(root) == faults(root) == {}
    assert "Every start reads all image files" in caplog.text
    assert len(headers) == 6


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {}),
        ("a.jpg", {"progressive": True}),
        ("a.jpg", {"icc_profile": bytes(9000)}),
        ("a.jpg", {"comment": b"x" * 5000}),
        ("a.jpg", {"exif": Image.Exif()}),
        ("a.jpg", {"exif": {274: 6}}),
        ("a.jpg", {"xmp": b'<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'}),
        ("a.png", {}),
        ("a.webp", {}),
    ],
)
def test_sizes_are_those_of_the_slow_reader(tmp_path, name, options):
    if isinstance(options.get("exif"), dict):
        exif = Image.Exif()
        exif.update(options["exif"])
        options = {"exif": exif}
    path = tmp_path / name
    write(path, **options)
    expected = read_header(path)
    assert image_faults(tmp_path, [name], [expected], decode=False) == {}
    assert image_files._jpeg_size(str(path)) in (None, expected)
    if options == {} and name == "a.jpg":
        assert image_files._jpeg_size(str(path)) == expected
    path.write_bytes(path.read_bytes()[:-100])
    assert list(image_faults(tmp_path, [name], [expected], decode=False)) == [0]
