"""Weights & Biases receives a run: offline, as read from the files that `wandb sync` would send."""

from __future__ import annotations

import json
import struct

import pytest
from detectron2.utils.events import EventStorage

pytest.importorskip("wandb", reason="needs the extra wandb")

from wandb.proto.wandb_internal_pb2 import Record

from pvt_det.engine.loggers.wandb import build_writer

_BLOCK, _HEADER = 32768, 7


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for kind in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / kind))
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path):
    """A run folder."""
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def records(path):
    """Yield the records of a .wandb file, which has LevelDB's log format."""
    data, position, whole = path.read_bytes(), _HEADER, b""
    while position + _HEADER <= len(data):
        if _BLOCK - position % _BLOCK < _HEADER:
            position += _BLOCK - position % _BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + _HEADER : position + _HEADER + size]
        position += _HEADER + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def read(folder):
    """Return the runs, metrics, config keys, artifacts and exit codes in the order in which they were written."""
    found = {"run": [], "history": [], "config": {}, "artifact": [], "exit": []}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                found["run"].append((record.run.project, record.run.display_name, record.run.run_id))
            elif kind == "history":
                row = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                found["history"].append({key: value for key, value in row.items() if not key.startswith("_")})
            elif kind == "config":
                updates = record.config.update
                found["config"] |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in updates}
            elif kind == "artifact":
                found["artifact"].append((record.artifact.type, record.artifact.manifest.contents[0].path))
            elif kind == "exit":
                found["exit"].append(record.exit.exit_code)
    return found


def write(writer, iteration, **values):
    with EventStorage(iteration) as storage:
        storage.put_scalars(smoothing_hint=False, **values)
        writer.write()


def test_run_and_its_continuation(cfg, folder):
    writer = build_writer(cfg, folder)
    write(writer, 20, total_loss=2.5)
    writer.finish("KILLED")
    writer = build_writer(cfg, folder)
    write(writer, 10, total_loss=3.5)  # repeated after a checkpoint
    (folder / "report.html").write_text("page")
    (folder / "model_best.pth").write_bytes(b"weights")
    writer.finish("FINISHED")

    found = read(folder)
    run_id = json.loads((folder / "logger_runs.json").read_text())["W&B"]
    assert set(found["run"]) == {("pvt_det", "mine", run_id)}
    assert found["history"] == [{"total_loss": 2.5, "iteration": 20}, {"total_loss": 3.5, "iteration": 10}]
    assert found["config"]["SOLVER.OPTIMIZER"] == "adamw"
    assert "SHA-256" in found["config"]["code version"]
    assert found["artifact"] == [("report", "report.html"), ("model", "model_best.pth")]
    assert found["exit"] == [1, 0]
