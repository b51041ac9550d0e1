"""Weight files are read exactly. Broken and unsafe files are refused with a reason, and no code runs."""

from __future__ import annotations

import argparse
import io
import os
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from pvt_det.errors import CheckpointError
from pvt_det.weights import save_checkpoint, save_safetensors
from pvt_det.weights.reader import read_tensors
from tests.weights.files import ARRAYS, TENSORS, write_pickle


def same(found: dict[str, Tensor], wanted: dict[str, Tensor] = TENSORS) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in wanted.items()
    )


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "state_dict_ema", "model_state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files(tmp_path: Path, wrapper: str | None, zipped: bool) -> None:
    content = {wrapper: TENSORS, "epoch": 3, "optimizer": {"state": {0: {"m": torch.zeros(2)}}}} if wrapper else TENSORS
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert same(read_tensors(tmp_path / "x.pth"))


def test_ema_weights_are_preferred_as_in_timm(tmp_path: Path) -> None:
    plain = {k: torch.zeros_like(v) for k, v in TENSORS.items()}
    torch.save({"state_dict": plain, "state_dict_ema": TENSORS}, tmp_path / "x.pth")
    assert same(read_tensors(tmp_path / "x.pth"))


def test_safetensors_files_without_checksum(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / "x.safetensors")
    assert same(read_tensors(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("wrapper", [None, "model", "blobs"])
def test_detectron2_pickles(tmp_path: Path, protocol: int, wrapper: str | None) -> None:
    content = {wrapper: ARRAYS, "__author__": "someone", "matching_heuristics": True} if wrapper else ARRAYS
    found = read_tensors(write_pickle(tmp_path / "x.pkl", content, protocol))
    assert same(found, {k: torch.from_numpy(v) for k, v in ARRAYS.items()})
    found["a.weight"].add_(1)


def test_arrays_in_big_endian_order(tmp_path: Path) -> None:
    content = {name: array.astype(array.dtype.newbyteorder(">")) for name, array in ARRAYS.items()}
    found = read_tensors(write_pickle(tmp_path / "x.pkl", content, protocol=5))
    assert same(found, {k: torch.from_numpy(v) for k, v in ARRAYS.items()})


def test_python_2_pickle(tmp_path: Path) -> None:
    """cPickle wrote `{"conv1_w": numpy.arange(2, dtype="float32")}` with the array's bytes as a string."""
    data = np.arange(2, dtype="<f4").tobytes()
    dtype = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02t"
    raw = b"\x80\x02}U\x07conv1_w" + array + dtype + b"\x89U" + bytes([len(data)]) + data + b"tbs."
    (tmp_path / "x.pkl").write_bytes(raw)
    assert read_tensors(tmp_path / "x.pkl")["conv1_w"].tolist() == [0.0, 1.0]


def test_entries_that_are_not_tensors_are_skipped_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pvt_det")
    torch.save({"model": {**TENSORS, "note": "hello", "words": np.array(["a", "b"])}}, tmp_path / "x.pth")
    assert same(read_tensors(tmp_path / "x.pth"))
    assert "2 entries that are not tensors: note, words" in caplog.text


def test_harmless_objects_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("mmengine.logging.history_buffer")
    monkeypatch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
    monkeypatch.setitem(sys.modules, "mmengine.logging", types.ModuleType("mmengine.logging"))
    monkeypatch.setitem(sys.modules, "mmengine.logging.history_buffer", module)
    module.HistoryBuffer = type("HistoryBuffer", (), {"__module__": module.__name__})
    buffer = module.HistoryBuffer()
    buffer.history = np.ones(3)
    content = {
        "state_dict": TENSORS,
        "args": argparse.Namespace(lr=0.1, output_dir="somewhere"),
        "message_hub": {"log_scalars": {"loss": buffer}, "seen": np.float64(3), "n": np.int64(4)},
    }
    torch.save(content, tmp_path / "x.pth")
    assert same(read_tensors(tmp_path / "x.pth"))


def test_pickle_with_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.")
    with pytest.raises(CheckpointError, match="rot13"):
        read_tensors(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"\n\n <html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01", "not a checkpoint"),
        (b"PK\x03\x04 cut off", "broken or cut short"),
        (b"\x80\x02}q\x00(X\x01", "broken or cut short"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}", "broken or cut short"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{", "broken or cut short"),
    ],
)
def test_wrong_content(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as error:
        read_tensors(tmp_path / "x.pth")
    assert str(tmp_path / "x.pth") in str(error.value)


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": {"a": 1}}, {"a": "b"}, TENSORS["a.weight"]])
def test_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: holds (no tensors|a \w+\. Expected a dictionary)"):
        read_tensors(tmp_path / "x.pth")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "x.pth", "No such file"), (tmp_path, "directory")):
        with pytest.raises(CheckpointError, match=reason):
            read_tensors(path)


def test_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "x.pth")
    with (
        zipfile.ZipFile(tmp_path / "x.pth") as old,
        zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(CheckpointError, match="compressed"):
        read_tensors(tmp_path / "y.pth")


def test_saving_a_view_does_not_save_its_storage(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x.pth", {"a": torch.zeros(1_000_000)[:2]})
    assert (tmp_path / "x.pth").stat().st_size < 10_000


def test_saving_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_safetensors(tmp_path / "deep/x.safetensors", TENSORS, {})
    before = (tmp_path / "deep/x.safetensors").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_safetensors(tmp_path / "deep/x.safetensors", {"b": torch.ones(3)}, {})
    assert (tmp_path / "deep/x.safetensors").read_bytes() == before
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.safetensors"]


def test_safetensors_metadata_is_kept(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "x.safetensors", TENSORS, {"source": "here"})
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata()["source"] == "here"
    assert same(safetensors.torch.load(io.BytesIO((tmp_path / "x.safetensors").read_bytes()).getvalue()))


@pytest.mark.parametrize("part", [b"a.weight", b'"F16"', b"[2,3]", b"test"])
def test_safetensors_checksum_covers_names_dtypes_shapes_and_metadata(tmp_path: Path, part: bytes) -> None:
    save_safetensors(tmp_path / "x.safetensors", TENSORS, {"who": "test"})
    content = (tmp_path / "x.safetensors").read_bytes()
    other = {b"a.weight": b"c.weight", b'"F16"': b'"I16"', b"[2,3]": b"[3,2]", b"test": b"best"}[part]
    assert content.count(part) == 1
    (tmp_path / "x.safetensors").write_bytes(content.replace(part, other))
    with pytest.raises(CheckpointError, match="damaged"):
        read_tensors(tmp_path / "x.safetensors")
