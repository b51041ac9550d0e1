"""Exported detectors without NMS match the model, for any batch and image size."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from pvt_det.config import load_config
from pvt_det.deployment import files
from pvt_det.deployment.check import Parity, compare, run_eager
from pvt_det.deployment.graphs import build_graph
from pvt_det.runtimes.backends import BACKENDS

EXAMPLE = torch.zeros(2, 3, 200, 140, dtype=torch.uint8)
TINY = {
    "rt_detr_pvt_small": (
        *("MODEL.RT_DETR.HIDDEN_DIM", "16", "MODEL.RT_DETR.NUM_HEADS", "2", "MODEL.RT_DETR.FEEDFORWARD_DIM", "32"),
        *("MODEL.RT_DETR.NUM_QUERIES", "20", "MODEL.RT_DETR.DECODER_LAYERS", "1", "MODEL.RT_DETR.NUM_CLASSES", "5"),
        *("MODEL.RT_DETR.IN_FEATURES", "['p3', 'p4', 'p5']"),
    ),
    "detr_pvt_small": (
        *("MODEL.DETR.HIDDEN_DIM", "16", "MODEL.DETR.NUM_HEADS", "2", "MODEL.DETR.FEEDFORWARD_DIM", "32"),
        *("MODEL.DETR.ENCODER_LAYERS", "1", "MODEL.DETR.DECODER_LAYERS", "1", "MODEL.DETR.NUM_CLASSES", "5"),
        *("MODEL.DETR.IN_FEATURES", "['p5']"),
    ),
    "sparse_rcnn_pvt_v2_b2": (
        *("MODEL.SPARSE_RCNN.NUM_PROPOSALS", "20", "MODEL.SPARSE_RCNN.NUM_STAGES", "2"),
        *("MODEL.SPARSE_RCNN.FEEDFORWARD_DIM", "32", "MODEL.SPARSE_RCNN.DYNAMIC_DIM", "8"),
        *("MODEL.SPARSE_RCNN.NUM_CLASSES", "5", "MODEL.SPARSE_RCNN.IN_FEATURES", "['p2', 'p3']"),
    ),
}
NEEDS_TRANSFORMERS = pytest.mark.skipif(find_spec("transformers") is None, reason="needs the extra detr")
CONFIGS = [pytest.param(name, marks=NEEDS_TRANSFORMERS) if "rt_detr" in name else name for name in TINY]


def build(config: str) -> nn.Module:
    """Build a tiny detector with random weights, so that its boxes and scores differ."""
    words = ("MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", "build_few_convolutions", *TINY[config])
    torch.manual_seed(0)
    model = build_model(load_config(config, words)).eval()
    for module in model.modules():
        if hasattr(module, "bottlenecks"):  # of RT-DETR's encoder: three of the same blocks
            module.bottlenecks = module.bottlenecks[:1]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("backbone") and parameter.dim() > 1 and "proposal_boxes" not in name:
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5)
    return model


def images(number: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (number, 3, height, width), dtype=np.uint8)


def compare_with_model(model: nn.Module, run) -> None:
    parity = Parity()
    for batch in (images(1, 97, 130), images(3, 90, 200)):
        expected = run_eager(model, batch, bgr=False)
        compare(expected, run(batch), parity, images=len(batch), limit=300, threshold=0.0)
    assert not parity.missing
    assert parity.box < 0.01
    assert parity.score < 1e-4
    assert parity.detections > 50


@pytest.mark.parametrize("config", CONFIGS)
def test_graph_matches_the_model(config):
    model = build(config)
    graph = build_graph(model)

    def run(batch):
        with torch.inference_mode():
            results = graph(torch.from_numpy(batch))
        return {name: result.numpy() for name, result in zip(graph.outputs, results, strict=True)}

    compare_with_model(model, run)


# Slow because tracing is, but only a traced program shows that no size became a constant. Without NMS, the graphs of
# both formats are the same.
@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_files_match_the_model(config, tmp_path):
    model = build(config)
    graph = build_graph(model)
    program = files.trace(graph, EXAMPLE)
    for kind, name in (("torch", "model.pt2"), ("onnx", "model.onnx")):
        files.write(program, tmp_path / name, kind, graph.outputs, {"outputs": json.dumps(graph.outputs)})
        function = BACKENDS[kind].open(tmp_path / name, outputs=graph.outputs, threads=1)
        compare_with_model(model, function)
