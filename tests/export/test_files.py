"""Exported files match the model, for any batch and image size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pvt_det.errors import ConfigError
from pvt_det.export import files
from pvt_det.export.check import Parity, compare, run_eager
from pvt_det.export.graphs import build_graph
from pvt_det.models import create_model
from tools import run_onnx as runner

EXAMPLE = torch.zeros(2, 3, 200, 140, dtype=torch.uint8)


def images(number: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (number, 3, height, width), dtype=np.uint8)


def check(model: nn.Module, kinds: tuple[files.Kind, ...], folder: Path) -> None:
    for kind in kinds:
        graph = build_graph(model, kind=kind)
        program = files.trace(graph, EXAMPLE)
        path = folder / ("model.onnx" if kind == "onnx" else f"{kind}.pt2")
        files.write(program, path, kind, graph.outputs, {"task": "test"})
        function = files.open_file(path, kind, graph.outputs)
        parity = Parity()
        for batch in (images(1, 97, 130), images(3, 90, 200)):
            expected, got = run_eager(model, batch, bgr=False), function(batch)
            assert expected.keys() == got.keys()
            compare(expected, got, parity, images=len(batch), limit=100, threshold=0.05)
        parity.require(kind)
        assert parity.detections > 50 or "boxes" not in expected


def test_semantic_fpn(build, tmp_path):
    check(build("semantic_fpn_pvt_tiny"), ("onnx", "program"), tmp_path)


def test_classifier_with_a_class_token(tmp_path):
    graph = build_graph(create_model("pvt_tiny", num_classes=5))
    files.write(files.trace(graph, EXAMPLE), tmp_path / "c.pt2", "program", graph.outputs, {})
    function = files.open_file(tmp_path / "c.pt2", "program", graph.outputs)
    for batch in (images(1, 40, 64), images(3, 100, 33)):
        expected = run_eager(graph, batch, bgr=False)["scores"]
        np.testing.assert_allclose(function(batch)["scores"], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["retinanet_pvt_tiny", "mask_rcnn_pvt_tiny"])
def test_detectors(build, config, tmp_path):
    check(build(config, small=True), ("onnx", "program"), tmp_path)
    import onnx

    model = onnx.load(tmp_path / "model.onnx")
    assert any(node.op_type == "NonMaxSuppression" for node in model.graph.node)
    assert {p.key: p.value for p in model.metadata_props}["task"] == "test"
    extra = {files.METADATA_NAME: ""}
    torch.export.load(tmp_path / "program.pt2", extra_files=extra)
    assert json.loads(extra[files.METADATA_NAME]) == {"task": "test"}


def test_compile_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"no-such-compiler was not found\. Install"):
        files.require_compiler()


def test_run_onnx_needs_no_torch(capsys):
    """`tools/run_onnx.py` resizes images and pastes masks without this package, torch or Detectron2."""
    assert runner.fit(np.zeros((300, 600, 3), np.uint8), 100, 150).shape == (75, 150, 3)
    assert runner.crop(np.zeros((300, 600, 3), np.uint8), 224).shape == (224, 224, 3)
    mask = np.ones((28, 28), np.float32)
    pasted = runner.paste(mask, np.array([10, 20, 30, 60], np.float32), (80, 50))
    assert pasted.shape == (80, 50)
    assert pasted[22:58, 12:28].all()
    assert not pasted[:19].any()
    assert not pasted[:, 32:].any()
    assert runner.main([__file__, "a.jpg"]) == 4
    assert f"error: {__file__} cannot be used: " in capsys.readouterr().err
    source = Path(runner.__file__).read_text()
    assert "pvt_det" not in source.replace("pvt-det", "")
    assert "torch" not in source
    assert "detectron2" not in source.lower()
