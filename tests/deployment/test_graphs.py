"""The exportable graphs match Detectron2's models, also in batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pvt_det.deployment.check import Parity, compare, run_eager
from pvt_det.deployment.graphs import build_graph
from pvt_det.deployment.suppression import ABSENT, suppress
from pvt_det.errors import ConfigError, NumericError
from pvt_det.models import create_model

CONFIGS = [
    "retinanet_pvt_tiny",
    "atss_pvt_v2_b2_3x",
    "gfl_pvt_v2_b2_3x",
    "mask_rcnn_pvt_tiny",
    "cascade_mask_rcnn_pvt_small",
    "semantic_fpn_pvt_tiny",
    "panoptic_fpn_pvt_small",
]


def images(number: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (number, 3, height, width), dtype=np.uint8)


def run_graph(graph: nn.Module, batch: np.ndarray) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        results = graph(torch.from_numpy(batch))
    results = (results,) if isinstance(results, torch.Tensor) else results
    return {name: result.numpy() for name, result in zip(graph.outputs, results, strict=True)}


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
def test_graph_matches_its_model(build, config, bgr):
    model = build(config)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in weights.items()})
    graph = build_graph(model, bgr=bgr)
    # The graph shares the weights of the model, which are loaded after it is built.
    model.load_state_dict(weights)
    parity = Parity()
    for batch in (images(2, 97, 130), images(1, 90, 200)):
        expected, got = run_eager(model, batch, bgr=bgr), run_graph(graph, batch)
        assert expected.keys() == got.keys() - {"logits"}
        assert {name: values.shape for name, values in expected.items()} == {n: got[n].shape for n in expected}
        compare(expected, got, parity, images=len(batch), limit=100, threshold=0.05)
    assert not parity.missing
    assert max(parity.box, parity.score, parity.mask) < 1e-3
    assert parity.relabeled == 0
    assert parity.detections > 50 or "semantic" in config


def test_classifier_returns_probabilities():
    model = create_model("pvt_v2_b0", num_classes=5)
    graph = build_graph(model)
    scores = run_graph(graph, images(2, 40, 64))["scores"]
    assert scores.shape == (2, 5)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    assert not model.training


def test_trunk_without_classifier_is_refused():
    with pytest.raises(ConfigError, match="cannot be exported"):
        build_graph(create_model("pvt_v2_b0", num_classes=0))


def test_suppression_works_per_group_and_ignores_padding():
    boxes = torch.tensor(
        [[[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]], [[0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4]]]
    )
    scores = torch.tensor([[[0.5, 0.9, 0.1], [0.5, ABSENT, 0.2]], [[0.3, 0.2, 0.1], [ABSENT, ABSENT, ABSENT]]])
    kept = suppress(boxes.float(), scores, 0.5, 100)
    assert kept.tolist() == [
        [[False, True, True], [True, False, True]],
        [[True, False, False], [False, False, False]],
    ]
    assert not suppress(boxes.float(), torch.full_like(scores, ABSENT), 0.5, 100).any()


def test_compare_detects_differences():
    one = {
        "boxes": np.array([[0, 0, 10, 10.0], [20, 20, 30, 30]]),
        "scores": np.array([0.9, 0.5]),
        "labels": np.array([1, 2]),
        "images": np.array([0, 0]),
    }
    cases = {
        "same": ({}, 0),
        "moved": ({"boxes": one["boxes"] + 0.6}, 4),
        "nudged": ({"boxes": one["boxes"] + 0.4}, 0),
        "different class": ({"labels": np.array([1, 1])}, 2),
        "different score": ({"scores": np.array([0.9, 0.502])}, 2),
    }
    for name, (change, missing) in cases.items():
        parity = Parity()
        compare(one, {**one, **change}, parity, images=1, limit=100, threshold=0.05)
        assert len(parity.missing) == missing, name
    parity = Parity()
    few = {key: values[:1] for key, values in one.items()}
    compare(one, few, parity, images=1, limit=2, threshold=0.05)
    assert not parity.missing, "the lowest score of a full list may be missing"


def test_compare_detects_differences_of_panoptic_pixels():
    detections = {
        "boxes": np.array([[0, 0, 10, 10.0]]),
        "scores": np.array([0.9]),
        "labels": np.array([1]),
        "images": np.array([0]),
    }
    logits = np.zeros((1, 3, 2, 2), np.float32)
    labels = np.zeros((1, 8, 8), np.int64)
    one = {**detections, "semantic_logits": logits, "semantic_labels": labels}
    moved = logits.copy()
    moved[0, 1, 0, 0] = 1.0
    relabeled = labels.copy()
    relabeled[0, 0, :3] = 1
    for change, score, count in (({}, 0.0, 0), ({"semantic_logits": moved, "semantic_labels": relabeled}, 0.24, 3)):
        parity = Parity()
        compare(one, {**one, **change}, parity, images=1, limit=100, threshold=0.05)
        assert (parity.detections, parity.relabeled) == (1, count)
        assert parity.score == pytest.approx(score, abs=0.01)
    with pytest.raises(NumericError, match=r"mine\.onnx differs from the original model"):
        parity.require("mine.onnx")
