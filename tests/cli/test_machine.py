"""Tests of the checks of `pvt-det doctor`."""

from __future__ import annotations

import importlib.metadata
import resource
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from pvt_det.cli import machine as doctor
from pvt_det.cli.start import start

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch):
    """Sets the free space of every disk, in bytes."""
    return lambda count: monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(count, 0, count))


def test_this_machine_is_reported(capsys, tmp_path):
    code = start("doctor", ["--output", str(tmp_path)], "pvt-det doctor")
    printed = capsys.readouterr().out
    assert code == ("PROBLEM" in printed)
    for part in (f"torch {torch.__version__.split('+')[0]}", "detectron2: ", "shared memory: ", "open files: limit"):
        assert part in printed
    assert len(list(doctor.examine(tmp_path))) >= 10


@pytest.mark.parametrize(("load", "state"), [(0.5, "ok"), (0.9, "note"), (4.0, "note")])
def test_load(monkeypatch, load, state):
    monkeypatch.setattr(doctor, "busy_share", lambda: load)
    finding = doctor.load()
    assert finding.state == state
    assert f"{load:.0%}" in finding.found
    assert ("OMP_NUM_THREADS=1" in finding.fix) == (state == "note")


def test_missing_and_old_packages_are_problems_with_a_fix(monkeypatch):
    def version(name):
        if name == "hotcoco":
            raise importlib.metadata.PackageNotFoundError
        return "0.1" if name == "safetensors" else "1000"

    needs = ["hotcoco>=1.3", "safetensors>=0.5", "torch>=2", 'ruff; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs)
    found = {finding.name: finding for finding in doctor.packages()}
    assert found.keys() == {"hotcoco", "safetensors", "packages"}
    assert (found["hotcoco"].state, found["hotcoco"].found) == ("problem", "missing")
    assert found["hotcoco"].fix == "python -m pip install 'hotcoco>=1.3'"
    assert found["safetensors"].found == "0.1, expected >=0.5"


def test_without_detectron2(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert doctor.detectron2().state == "problem"
    assert doctor.detectron2().fix == "python tools/setup_env.py --here"
    assert doctor.data_sets().state == "note"


def test_small_shared_memory_is_a_problem(free, tmp_path):
    free(64 * 2**20)
    finding = doctor.shared_memory(tmp_path)
    assert (finding.state, "64 MiB free" in finding.found) == ("problem", True)
    assert "--shm-size=8g" in finding.fix
    free(8 * 2**30)
    assert doctor.shared_memory(tmp_path).state == "ok"
    assert doctor.shared_memory(tmp_path / "none").state == "note"


@pytest.mark.parametrize(
    ("limits", "state", "fix"),
    [
        ((1024, 2048), "note", "ulimit -n 2048"),
        ((1024, resource.RLIM_INFINITY), "note", "ulimit -n 4096"),
        ((65536, 65536), "ok", ""),
    ],
)
def test_low_limit_of_open_files(monkeypatch, limits, state, fix):
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    finding = doctor.open_files()
    assert (finding.state, finding.fix) == (state, fix)


def test_full_and_read_only_disks(free, tmp_path, monkeypatch):
    free(2**30)
    assert doctor.disk("disk", tmp_path / "not/yet", "move").state == "note"
    free(2**40)
    assert doctor.disk("disk", tmp_path / "not/yet", "move").state == "ok"
    (tmp_path / "file").touch()
    assert doctor.disk("disk", tmp_path / "file", "move").found == f"{tmp_path / 'file'} is a file"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert doctor.disk("disk", tmp_path, "move").state == "problem"


def test_gpu_that_torch_cannot_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert doctor.gpu().state == "note"
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "without CUDA" in doctor.gpu().found
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert doctor.gpu().state == "problem"
    assert "driver" in doctor.gpu().found


def test_downloaded_weights_and_data_sets(monkeypatch, tmp_path):
    monkeypatch.setenv("PVT_DET_CACHE", str(tmp_path))
    assert "none in" in doctor.weights().found
    place = Path(tmp_path / doctor.CATALOG["pvt_tiny"].cache_path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"x" * 2**20)
    assert doctor.weights().found == f"pvt_tiny in {tmp_path}, 1 MiB"
    assert doctor.data_sets().name == "data sets"
