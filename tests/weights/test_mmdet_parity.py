"""A converted MMDetection checkpoint computes the same outputs as in MMDetection.

`golden/mmdet_reference.json` holds the key names of MMDetection's detectors and samples of their outputs for weights
that can be regenerated. It was written by `make_mmdet_reference.py`.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.roi_heads import fast_rcnn
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from pvt_det.config import load_config
from pvt_det.modeling.cascade import PVTCascadeROIHeads
from tests.command_line import run_command
from tests.weights import make_mmdet_reference as maker

HERE = Path(__file__).parent
REFERENCE = json.loads((HERE / "golden/mmdet_reference.json").read_text())
TOLERANCE = 1e-4
ADAPTIVE = ["atss_pvt_v2_b0", "gfl_pvt_v2_b0"]
CASCADE = ["cascade_mask_rcnn_pvt_v2_b0"]


def write_config(name: str, folder: Path) -> Path:
    """Write the config of a recorded detector. Some have been recorded with smaller parts than published."""
    path = folder / "config.yaml"
    published, changes = name, []
    if name in ADAPTIVE + CASCADE:
        published = name.replace("b0", "b2_3x" if name in ADAPTIVE else "b2")
        changes += ["    VARIANT: pvt_v2_b0"]
    if name in CASCADE:
        changes += ["  ROI_BOX_HEAD: {CONV_DIM: 64, FC_DIM: 128}", "  ROI_MASK_HEAD: {CONV_DIM: 64}"]
    lines = [f"_BASE_: {published}", "MODEL:", "  DEVICE: cpu", "  PVT:", "    EMBED_NORM_EPS: 1.0e-6"]
    path.write_text("\n".join([*lines, "    DROP_PATH_RATE: 0.0", *changes, ""]))
    return path


@pytest.fixture(scope="module", params=list(REFERENCE["cases"]))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Return our detector with weights converted from MMDetection's layout, and MMDetection's outputs."""
    name = request.param
    record = REFERENCE["cases"][name]
    folder = tmp_path_factory.mktemp(name)
    weights = maker.seeded_weights(name, record["keys"])
    torch.save({"state_dict": weights, "meta": {"mmdet_version": "3.3.0"}}, folder / "mmdet.pth")
    config = write_config(name, folder)
    options = ["--config-file", str(config), "--output", str(folder / "ours.pth")]
    assert run_command("convert", [str(folder / "mmdet.pth"), *options]) == 0
    model = build_model(load_config(config)).eval()
    converted = torch.load(folder / "ours.pth", weights_only=True)["model"]
    model.load_state_dict(model.state_dict() | converted)
    assert set(model.state_dict()) - set(converted) <= {"loss_normalizer"}
    return name, model, record


def to_mmdet_order(t: Tensor) -> Tensor:
    """Reorder channels from Detectron2's (3 sizes, 3 ratios, …) to MMDetection's (3 ratios, 3 sizes, …)."""
    n, c, h, w = t.shape
    return t.reshape(n, 3, 3, c // 9, h, w).transpose(1, 2).reshape(n, c, h, w)


def same_order(t: Tensor) -> Tensor:
    return t


@torch.no_grad()
def run(model: nn.Module, height: int, width: int) -> dict[str, Tensor]:
    assert model.input_format == "RGB"
    images: ImageList = model.preprocess_image([{"image": maker.image(height, width)}])
    maps = model.backbone.bottom_up(images.tensor)
    pyramid = list(model.backbone(images.tensor).values())
    # The FPN reads some of stage1 … stage4 or res2 … res5.
    first = 1 if "stage4" in maps else 2
    out = {f"backbone{int(name[-1]) - first}": m for name, m in maps.items()}
    out |= {f"fpn{i}": p for i, p in enumerate(pyramid)}
    is_dense = isinstance(model, DenseDetector)
    outputs = (model.head if is_dense else model.proposal_generator.rpn_head)(pyramid)
    order = to_mmdet_order if isinstance(model, RetinaNet) else same_order
    for name, levels in zip(("scores", "deltas", "centerness"), outputs, strict=False):
        out |= {f"{name}{i}": order(level) for i, level in enumerate(levels)}
    if hasattr(model, "roi_heads") and isinstance(model.roi_heads, PVTCascadeROIHeads):
        out |= run_cascade(model.roi_heads, model.backbone(images.tensor), height, width)
    elif not is_dense:
        heads, proposals = model.roi_heads, [Boxes(maker.boxes(height, width))]
        box_features = heads.box_head(heads.box_pooler(pyramid[:4], proposals))
        out["box_scores"], out["box_deltas"] = heads.box_predictor(box_features)
        out["masks"] = heads.mask_head.layers(heads.mask_pooler(pyramid[:4], proposals))
    return out


def run_cascade(heads: PVTCascadeROIHeads, features: dict[str, Tensor], height: int, width: int) -> dict[str, Tensor]:
    size = (height, width)
    proposals = Instances(size, proposal_boxes=Boxes(maker.boxes(*size)))
    # The boxes and scores that non-maximum suppression is given.
    with mock.patch.object(fast_rcnn, "fast_rcnn_inference", lambda boxes, scores, *_: ((boxes, scores), None)):
        (boxes,), (scores,) = heads._forward_box(features, [proposals])
    corners = Boxes(boxes.reshape(-1, 4))
    corners.clip(size)  # as `fast_rcnn_inference` does
    true_boxes, classes = maker.truth(*size)
    given = Instances(size, pred_boxes=Boxes(true_boxes), pred_classes=classes)
    (found,) = heads.forward_with_given_boxes(features, [given])
    return {"box_scores": scores, "boxes": corners.tensor.view_as(boxes), "masks": found.pred_masks[:, 0]}


@pytest.mark.parametrize("size", ["200x250", "320x416"])
def test_outputs_before_nms_match_mmdetection(case: tuple, size: str) -> None:
    name, model, record = case
    wanted = record["outputs"][size]
    got = run(model, *map(int, size.split("x")))
    assert set(wanted) - set(got) <= {"backbone0"}
    for key, value in got.items():
        sample = wanted[key]
        assert list(value.shape) == sample["shape"], key
        n, flat = value.numel(), value.flatten().double()
        values = flat[[(j * n) // maker.SAMPLES for j in range(maker.SAMPLES)]]
        error = (values - torch.tensor(sample["values"])).abs().max().item()
        print(f"{name} {key}: standard deviation {value.std():.3g}, difference {error:.2g}")
        assert error < TOLERANCE, key
        assert flat.mean().item() == pytest.approx(sample["mean"], abs=TOLERANCE), key
        assert flat.std().item() == pytest.approx(sample["std"], abs=TOLERANCE), key


def test_anchors_match_mmdetection_in_converted_order(case: tuple) -> None:
    _, model, record = case
    is_dense = isinstance(model, DenseDetector)
    generator = model.anchor_generator if is_dense else model.proposal_generator.anchor_generator
    for ours, theirs in zip(generator.cell_anchors, record["anchors"], strict=True):
        wanted = torch.tensor(theirs)
        if isinstance(model, RetinaNet):
            wanted = wanted.reshape(3, -1, 4).transpose(0, 1).reshape(-1, 4)
        torch.testing.assert_close(ours, wanted, atol=1e-3, rtol=0)


def print_losses(name: str, losses: dict[str, float], wanted: dict[str, float]) -> None:
    for key, value in losses.items():
        print(f"{name} {key}: {value:.6g}, difference {abs(value - wanted[key]):.2g}")


@pytest.mark.parametrize("case", ADAPTIVE, indirect=True)
def test_losses_match_mmdetection(case: tuple) -> None:
    """The images of the batch have different sizes, so that the smaller one is padded."""
    name, model, record = case
    batch = []
    for size in maker.SIZES:
        boxes, classes = maker.truth(*size)
        batch.append({"image": maker.image(*size), "instances": Instances(size, gt_boxes=Boxes(boxes))})
        batch[-1]["instances"].gt_classes = classes
    model.train()
    with EventStorage():
        losses = {key.replace("box_reg", "bbox"): loss.item() for key, loss in model(batch).items()}
    model.eval()
    print_losses(name, losses, record["losses"])
    assert losses == pytest.approx(record["losses"], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("case", CASCADE, indirect=True)
def test_losses_of_a_cascade_match_mmdetection(case: tuple) -> None:
    """All proposals are sampled in each stage, because they are few."""
    name, model, record = case
    images = model.preprocess_image([{"image": maker.image(*size)} for size in maker.SIZES])
    proposals, targets = [], []
    for size in maker.SIZES:
        boxes = maker.noisy_boxes(*size)
        proposals.append(Instances(size, proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(len(boxes))))
        boxes, classes = maker.truth(*size)
        masks = BitMasks(maker.ellipses(*size))
        targets.append(Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes, gt_masks=masks))
    heads = copy.deepcopy(model.roi_heads).train()
    with torch.no_grad(), EventStorage():
        _, losses = heads(images, model.backbone(images.tensor), proposals, targets)
    got = {f"s{key[-1]}.{key[:-7].replace('box_reg', 'bbox')}": loss.item() for key, loss in losses.items()}
    print_losses(name, got, record["losses"])
    assert got == pytest.approx(record["losses"], rel=1e-4)


@pytest.mark.parametrize("case", ADAPTIVE, indirect=True)
@pytest.mark.parametrize("size", ["200x250", "320x416"])
def test_candidates_for_suppression_match_mmdetection(case: tuple, size: str) -> None:
    """MMDetection clips boxes to the image before non-maximum suppression, Detectron2 afterwards."""
    _, model, record = case
    height, width = map(int, size.split("x"))
    model.test_score_thresh, model.test_topk_candidates = maker.CANDIDATE_SCORE, 1_000_000
    model.test_nms_thresh, model.max_detections_per_image = 1.0, 1_000_000
    with torch.no_grad():
        found = model([{"image": maker.image(height, width)}])[0]["instances"]
    wanted = record["candidates"][size]
    boxes = found.pred_boxes.tensor
    assert len(found) == wanted["number"]
    assert found.scores.double().sum().item() == pytest.approx(wanted["score_sum"], rel=1e-5)
    torch.testing.assert_close(boxes.double().sum(dim=0), torch.tensor(wanted["box_sum"]).double(), rtol=1e-5, atol=0.1)
    first = slice(len(wanted["scores"]))
    assert found.scores[first].tolist() == pytest.approx(wanted["scores"], abs=1e-5)
    assert found.pred_classes[first].tolist() == wanted["labels"]
    torch.testing.assert_close(boxes[first], torch.tensor(wanted["boxes"]), atol=5e-3, rtol=0)
