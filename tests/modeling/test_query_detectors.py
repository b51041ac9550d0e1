"""RT-DETRv2, DETR and Sparse R-CNN in this package's training, evaluation and prediction."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from pvt_det.api import train
from pvt_det.config import load_config
from pvt_det.errors import ConfigError, Interrupted
from pvt_det.inference.predictor import Predictor
from pvt_det.inference.trunks import detector_trunk
from pvt_det.modeling import set_losses
from pvt_det.modeling.query_detector import QueryDetector
from pvt_det.modeling.set_losses import SetLosses
from pvt_det.models.complexity import count_gmacs
from pvt_det.solver.build import build_optimizer
from pvt_det.utils import extras
from tests.drills import tiny
from tests.tiny_runs import stop_in

HEADS = {
    "rt_detr_pvt_small": {
        "MODEL.RT_DETR.HIDDEN_DIM": 32,
        "MODEL.RT_DETR.NUM_QUERIES": 20,
        "MODEL.RT_DETR.FEEDFORWARD_DIM": 32,
        "MODEL.RT_DETR.DECODER_LAYERS": 1,
        "SOLVER.EMA.ENABLED": False,
    },
    "detr_pvt_small": {
        "MODEL.DETR.HIDDEN_DIM": 32,
        "MODEL.DETR.NUM_QUERIES": 20,
        "MODEL.DETR.FEEDFORWARD_DIM": 32,
        "MODEL.DETR.ENCODER_LAYERS": 1,
        "MODEL.DETR.DECODER_LAYERS": 2,
    },
    "sparse_rcnn_pvt_v2_b2": {
        "MODEL.SPARSE_RCNN.NUM_PROPOSALS": 20,
        "MODEL.SPARSE_RCNN.FEEDFORWARD_DIM": 32,
        "MODEL.SPARSE_RCNN.NUM_STAGES": 2,
        "MODEL.SPARSE_RCNN.DYNAMIC_DIM": 8,
    },
}
NEEDS_TRANSFORMERS = pytest.mark.skipif(find_spec("transformers") is None, reason="needs the extra detr")
HEADS_HERE = [pytest.param(head, marks=NEEDS_TRANSFORMERS) if "rt_detr" in head else head for head in HEADS]
SHORT = {"SOLVER.MAX_ITER": 2, "SOLVER.AMP.ENABLED": True, "SEED": 3, "INPUT.CROP_BRANCH.SIZE": (32, 48)}


def config(head, folder, output, **changes):
    return tiny.tiny_config(head, folder, output, HEADS[head] | SHORT | changes)


@pytest.mark.parametrize("head", HEADS_HERE)
def test_training_resumes_exactly_and_the_run_predicts(head, shapes, tmp_path, saved_weights, monkeypatch):
    """The run is trained with AMP and evaluated. The resumed run has the same weights, bit for bit."""
    data = shapes.parent
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    val = tiny.shapes_keys(data, "VAL")
    results = train(config(head, data, whole, **val))
    assert 0 <= results["bbox"]["AP"] <= 100
    with monkeypatch.context() as patch:
        stop_in(patch, 1)
        with pytest.raises(Interrupted):
            train(config(head, data, parts))
    torch.manual_seed(99)
    train(config(head, data, parts), resume=True, resume_command="pvt-det train --resume")
    first, second = saved_weights(whole / "model_final.pth"), saved_weights(parts / "model_final.pth")
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert any(name.startswith("backbone.bottom_up.patch_embed1.") for name in first)

    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    plain = Predictor(whole, device="cpu", score_threshold=0.0)
    found = plain(image)
    assert plain.class_names == ("circle", "square", "triangle", "star")
    assert len(found) > 10
    assert found.pred_boxes.tensor.max() <= 80
    assert (found.scores.diff() <= 0).all()
    assert len(Predictor(whole, device="cpu", score_threshold=float(found.scores[9]))(image)) < 10
    views = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 96)"]
    assert len(Predictor(whole, device="cpu", score_threshold=0.0, overrides=views)(image)) > 0
    trunk, _ = detector_trunk(str(whole), "", image)
    assert hasattr(trunk, "block1")


@pytest.mark.parametrize("head", HEADS_HERE)
def test_trunk_learns_at_its_own_rate(head, shapes, tmp_path):
    cfg = config(head, shapes.parent, tmp_path, **{"SOLVER.BACKBONE_MULTIPLIER": 0.1, "SOLVER.BASE_LR": 1e-3})
    model = build_model(cfg)
    rates = {id(p): group["lr"] for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(1e-4 if "bottom_up" in name else 1e-3), name


@pytest.mark.parametrize("head", HEADS_HERE)
def test_operations_can_be_counted(head, shapes, tmp_path):
    """As `pvt-det compare` does. Nearly all of it is the trunk, 0.57 GMACs at 224 pixels."""
    model = build_model(config(head, shapes.parent, tmp_path))
    assert 0.04 < count_gmacs(model, [{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}]) < 0.1


class TwoQueries(QueryDetector):
    """Has two queries, whose logits and boxes are given."""

    def predict(self, features, sizes):
        return torch.tensor([[[2.0, 1.0], [-3.0, 3.0]]]), torch.tensor([[[1.0, 1, 5, 5], [2, 2, 99, 9]]])

    def losses(self, features, sizes, targets):
        return {}


def two_queries(repo_root, **changes):
    cfg = load_config(
        repo_root / "configs/detr_pvt_small.yaml", ["MODEL.DEVICE", "cpu", "MODEL.PVT.VARIANT", "pvt_v2_b0"]
    )
    return TwoQueries(**TwoQueries.common_arguments(cfg, "DETR") | changes).eval()


def test_detections_are_ranked_over_queries_and_classes(repo_root):
    model = two_queries(repo_root, score_threshold=0.5, max_detections=3)
    instances = model([{"image": torch.zeros(3, 10, 20, dtype=torch.uint8), "height": 20, "width": 40}])[0]["instances"]
    assert instances.pred_classes.tolist() == [1, 0, 1]
    assert instances.scores.tolist() == pytest.approx([1 / (1 + math.exp(-x)) for x in (3, 2, 1)])
    # Scaled to the size of the results, and clipped to them.
    assert instances.pred_boxes.tensor.tolist() == [[4, 4, 40, 18], [2, 2, 10, 10], [2, 2, 10, 10]]
    assert len(two_queries(repo_root, score_threshold=0.9)([{"image": torch.zeros(3, 10, 20)}])[0]["instances"]) == 1


def test_detr_ranks_each_query_once(repo_root, tmp_path, shapes):
    model = build_model(config("detr_pvt_small", shapes.parent, tmp_path))
    # Three classes and the background, which is the best of the second query.
    logits = torch.tensor([[[0.0, 3.0, 1.0, 0.0], [1.0, 0.0, 0.0, 6.0], [2.0, 1.0, 0.0, 0.0]]])
    scores, classes, queries = model.rank(logits)
    assert (classes.tolist(), queries.tolist()) == ([[1, 0, 0]], [[0, 2, 1]])
    assert scores[0, 0].item() == pytest.approx(math.exp(3) / (2 + math.exp(3) + math.exp(1)))


# --- matching --------------------------------------------------------------------------------------------------------
FOCAL = SetLosses(class_weight=2.0, l1_weight=5.0, giou_weight=2.0, background_weight=None, l1_format="xyxy")
SIZE = torch.tensor([[100.0, 50, 100, 50]])


def objects(*boxes):
    return [Instances((50, 100), gt_boxes=Boxes(torch.tensor(boxes)), gt_classes=torch.arange(len(boxes)))]


def test_each_object_is_matched_with_the_nearest_query_in_each_layer():
    near, far = [10.0, 10, 30, 30], [60.0, 10, 90, 40]
    boxes = torch.tensor([[[near, far, [0.0, 0, 5, 5]]], [[far, [0.0, 0, 5, 5], near]]])
    layer, image, query, target = FOCAL.match(torch.zeros(2, 1, 3, 2), boxes, SIZE, objects(near, far))
    assert list(zip(layer.tolist(), query.tolist(), target.tolist(), strict=True)) == [
        (0, 0, 0),
        (0, 1, 1),
        (1, 0, 1),
        (1, 2, 0),
    ]
    assert image.tolist() == [0] * 4


def test_more_objects_than_queries_and_no_objects():
    boxes = torch.tensor([[[[10.0, 10, 30, 30]]]])
    losses = FOCAL(torch.zeros(1, 1, 1, 2), boxes, SIZE, objects([60.0, 10, 90, 40], [10.0, 10, 30, 30]))
    assert losses["loss_box_reg"] == 0  # the query is matched with its own object
    none = FOCAL(torch.zeros(1, 1, 1, 2), boxes, SIZE, [objects([0.0, 0, 1, 1])[0][:0]])
    assert (none["loss_box_reg"], none["loss_giou"]) == (0, 0)
    assert none["loss_cls"].item() == pytest.approx(2 * 2 * 0.75 * 0.25 * math.log(2))


def test_predictions_that_are_not_finite_give_losses_that_are_not():
    boxes = torch.tensor([[[[10.0, 10, 30, 30], [math.nan] * 4]]])
    losses = FOCAL(torch.full((1, 1, 2, 2), math.nan), boxes, SIZE, objects([10.0, 10, 30, 30], [1.0, 1, 2, 2]))
    assert not any(bool(value.isfinite()) for value in losses.values())


def test_missing_scipy_is_explained(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    expected = "Training DETR or Sparse R-CNN needs scipy, which is missing. Run pip install 'pvt_det[detr]'"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        FOCAL.match(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 4), SIZE, objects([1.0, 1, 2, 2]))


@pytest.mark.parametrize(
    ("head", "key", "value", "message"),
    [
        (
            "detr_pvt_small",
            "MODEL.DETR.IN_FEATURES",
            "['stage3', 'stage4']",
            "expected one or more of stage4, each once",
        ),
        ("detr_pvt_small", "MODEL.DETR.HIDDEN_DIM", "30", "HIDDEN_DIM, 30"),
        ("detr_pvt_small", "MODEL.DETR.BACKGROUND_WEIGHT", "0", "BACKGROUND_WEIGHT = 0.0: expected a number, above 0"),
        ("sparse_rcnn_pvt_v2_b2", "MODEL.SPARSE_RCNN.NUM_HEADS", "7", "NUM_HEADS = 7: expected a divisor of"),
        ("sparse_rcnn_pvt_v2_b2", "MODEL.SPARSE_RCNN.IN_FEATURES", "['p2', 'p4']", "each has half the size"),
        ("sparse_rcnn_pvt_v2_b2", "MODEL.BACKBONE.NAME", "build_pvt_backbone", "IN_FEATURES.*stage1"),
    ],
)
def test_wrong_values_are_explained(head, key, value, message):
    with pytest.raises(ConfigError, match=message):
        load_config(head, [key, value])


def test_losses_are_divided_by_the_objects_of_all_processes(monkeypatch):
    """With 1 object here and 3 in the other process, the mean is 2, by which DDP's averaged gradients are divided."""
    logits, boxes = torch.zeros(1, 1, 3, 2, requires_grad=True), torch.rand(1, 1, 3, 4).cumsum(3) * 20
    alone = FOCAL(logits, boxes, SIZE, objects([10.0, 10, 30, 30]))
    monkeypatch.setattr(set_losses.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda counts: counts.add_(3))
    shared = FOCAL(logits, boxes, SIZE, objects([10.0, 10, 30, 30]))
    with torch.no_grad():  # processes may have different numbers of validation images
        unshared = FOCAL(logits, boxes, SIZE, objects([10.0, 10, 30, 30]))
    for name, value in alone.items():
        torch.testing.assert_close(shared[name] * 2, value)
        torch.testing.assert_close(unshared[name], value)
