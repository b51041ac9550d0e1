"""R-CNN heads: losses with and without autocast, MMDetection matching, fp32 pooling."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.utils.events import EventStorage

from pvt_det.errors import ConfigError
from pvt_det.modeling.roi_heads import BestProposalMatcher

SIZES = [(97, 130), (64, 160)]
# For speed, use fewer proposals and smaller heads than published. The code paths are the same.
SMALL = ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "100")
SMALL += ("MODEL.ROI_BOX_HEAD.FC_DIM", "64", "MODEL.ROI_BOX_HEAD.CONV_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32")


def losses(model, batch, autocast=False):
    with EventStorage(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model(batch)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["mask_rcnn_pvt_tiny", "cascade_mask_rcnn_pvt_v2_b2", "faster_rcnn_pvt_small"])
def test_every_parameter_gets_a_gradient(build, make_batch, name, autocast):
    model = build(name, *SMALL)
    result = losses(model, make_batch(SIZES), autocast)
    assert {value.dtype for value in result.values()} == {torch.float32}
    assert all(value.isfinite() and value > 0 for value in result.values())
    sum(result.values()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", ["mask_rcnn_pvt_tiny", "cascade_mask_rcnn_pvt_v2_b2"])
def test_images_without_objects(build, make_batch, name):
    model = build(name, *SMALL)
    mixed = make_batch(SIZES[:1]) + make_batch(SIZES[1:], num_boxes=0)
    for batch in (make_batch(SIZES, num_boxes=0), mixed):
        model.zero_grad()
        result = losses(model, batch)
        sum(result.values()).backward()
        assert all(value.isfinite() for value in result.values())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    empty = losses(model, make_batch(SIZES, num_boxes=0))
    assert all(value == 0 for key, value in empty.items() if "loss_mask" in key or "loss_box_reg" in key)
    assert empty["loss_rpn_loc"] == 0


def test_polygon_and_bitmask_losses_agree(build, make_batch):
    values = []
    for kind in ("polygon", "bitmask"):
        torch.manual_seed(0)
        model = build("mask_rcnn_pvt_v2_b0", *SMALL, "INPUT.MASK_FORMAT", kind, "MODEL.PVT.DROP_PATH_RATE", "0")
        with torch.no_grad():  # otherwise all masks are near 0.5, whatever the ground truth
            model.roi_heads.mask_head.predictor.weight.mul_(1000)
        values.append(float(losses(model, make_batch(SIZES, masks=kind))["loss_mask"].detach()))
    assert abs(values[0] - math.log(2)) > 0.1
    assert values[0] == pytest.approx(values[1], rel=0.05)


@pytest.mark.parametrize("size", [(1, 1), (37, 211)])
def test_odd_sizes_predict(build, make_batch, size):
    model = build("mask_rcnn_pvt_v2_b0", *SMALL).eval()
    with torch.no_grad():
        found = model(make_batch([size], num_boxes=0))[0]["instances"]
    assert found.pred_masks.shape == (len(found), *size)


def test_autocast_does_not_round_coordinates(build, make_batch):
    """Detectron2's heads cast boxes to the dtype of the features. Ours pool in fp32."""
    model = build("mask_rcnn_pvt_v2_b0", *SMALL).eval()
    seen = []
    pooler = model.roi_heads.box_pooler
    for level in pooler.level_poolers:
        level.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(make_batch([(97, 130)]))[0]["instances"]
    assert len(seen) == 4
    assert {dtype for pair in seen for dtype in pair} == {torch.float32}
    assert found.scores.dtype == torch.float32


# --- matching --------------------------------------------------------------------------------------------------------
def test_best_proposal_of_a_box_is_matched_with_that_box():
    iou = torch.tensor(
        [
            [0.9, 0.6, 0.1, 0.55],
            [0.8, 0.2, 0.1, 0.00],
            [0.0, 0.0, 0.4, 0.00],
        ]
    )
    matches, labels = Matcher([0.5], [0, 1])(iou)
    assert (matches.tolist(), labels.tolist()) == ([0, 0, 2, 0], [1, 1, 0, 1])
    matches, labels = BestProposalMatcher(0.5, boxes_appended=False)(iou)
    # Proposal 0 is the best of boxes 0 and 1, so it is matched with box 1. Box 2's best is below the threshold.
    assert (matches.tolist(), labels.tolist()) == ([1, 0, 2, 0], [1, 1, 0, 1])


def test_appended_boxes_match_themselves_and_are_not_best_proposals():
    proposals = torch.tensor([[0.9, 0.6], [0.8, 0.2]])
    boxes = torch.tensor([[1.0, 0.7], [0.7, 1.0]])
    matches, labels = BestProposalMatcher(0.5, boxes_appended=True)(torch.cat([proposals, boxes], dim=1))
    assert matches.tolist() == [1, 0, 0, 1]
    assert labels.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("appended", [True, False])
def test_matching_without_boxes_or_proposals(appended):
    matches, labels = BestProposalMatcher(0.5, appended)(torch.zeros(0, 5))
    assert matches.tolist() == labels.tolist() == [0] * 5
    matches, labels = BestProposalMatcher(0.5, appended)(torch.eye(2) if appended else torch.zeros(2, 0))
    assert matches.tolist() == ([0, 1] if appended else [])


def test_random_matches_agree_with_a_plain_implementation():
    """Each proposal is matched with its best box, then each box with its best proposals above the threshold."""
    for seed in range(50):
        iou = torch.rand(4, 20, generator=torch.Generator().manual_seed(seed))
        expected = iou.argmax(dim=0)
        for box in range(4):
            if iou[box].max() >= 0.5:
                expected[iou[box] == iou[box].max()] = box
        matches, labels = BestProposalMatcher(0.5, boxes_appended=False)(iou)
        assert torch.equal(matches, expected)
        assert torch.equal(labels == 1, iou.max(dim=0).values >= 0.5)


def test_config_selects_the_matcher(build):
    key = "MODEL.ROI_HEADS.ALLOW_LOW_QUALITY_MATCHES"
    assert type(build("mask_rcnn_pvt_v2_b0").roi_heads.proposal_matcher) is BestProposalMatcher
    assert type(build("mask_rcnn_pvt_v2_b0", key, "False").roi_heads.proposal_matcher) is Matcher
    with pytest.raises(ConfigError, match=key):
        build("cascade_mask_rcnn_pvt_small", key, "True")
    with pytest.raises(ConfigError, match="IOU_THRESHOLDS"):
        build(
            "mask_rcnn_pvt_v2_b0",
            "MODEL.ROI_HEADS.IOU_THRESHOLDS",
            "[0.3, 0.5]",
            "MODEL.ROI_HEADS.IOU_LABELS",
            "[0, -1, 1]",
        )
