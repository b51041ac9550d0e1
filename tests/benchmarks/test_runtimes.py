"""The suite `runtimes` measures every runtime on the same model."""

from __future__ import annotations

import json
import shutil

import pytest

from benchmarks import runtimes
from benchmarks.__main__ import main

pytestmark = pytest.mark.usefixtures("smallest_variant")


@pytest.fixture
def folder(mask_rcnn_run, exported, tmp_path):
    """A folder of the suite with small models, whose files the suite uses again."""
    run = tmp_path / "models/small"
    shutil.copytree(mask_rcnn_run, run)
    shutil.copy(exported / "mine.onnx", run / "model.onnx")
    shutil.copytree(exported / "mine_openvino", run / "model_openvino")
    return tmp_path / "models"


def test_all_runtimes(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runtimes, "run_in_own_process", lambda function, *arguments: function(*arguments))
    words = ["runtimes", "--models", "small.yaml", "--sizes", "2x48x64", "--repeats", "1", "--folder", folder]
    assert main([*map(str, words), "--json", str(tmp_path / "found.json")]) == 0
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    missing = runtimes.unavailable()
    assert [row["implementation"] for row in rows] == [each for each in runtimes.IMPLEMENTATIONS if each not in missing]
    assert rows[0]["speedup"] == 1
    for row in rows:
        assert row["images_per_s"] == pytest.approx(2 / row["seconds"])
        assert row["peak_mib"] > 100
        assert 0.1 < row["size_mib"] < 10
    shown = capsys.readouterr().out
    assert "Mask R-CNN" in shown
    assert "OpenVINO bf16" in shown  # measured or left out


def test_bf16_is_left_out_without_instructions_for_it(monkeypatch):
    monkeypatch.setattr(runtimes, "fastest_precision", lambda: "fp32")
    monkeypatch.setattr(runtimes, "has_fast_bf16", lambda device: True)  # as on ARM
    assert runtimes.unavailable() == ("OpenVINO bf16",)


def test_implementations_detect_the_same(folder):
    found = {
        name: runtimes.build_step(folder / "small", name, (1, 48, 64))()[0]["instances"]
        for name in runtimes.IMPLEMENTATIONS
        if name.endswith("fp32")
    }
    wanted = found.pop(runtimes.EAGER)
    assert len(wanted) > 5
    for instances in found.values():
        assert instances.pred_classes.tolist() == wanted.pred_classes.tolist()
