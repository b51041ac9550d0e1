"""Cascade Mask R-CNN: training, few RoIs, given boxes. Parity: `tests/weights/test_mmdet_parity.py`."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from pvt_det.errors import NumericError

SMALL = ("MODEL.PVT.VARIANT", "pvt_v2_b0", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.CONV_DIM", "32")
SMALL += ("MODEL.ROI_BOX_HEAD.FC_DIM", "64", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32")
SMALL += ("MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "20")


@pytest.fixture
def model(build):
    return build("cascade_mask_rcnn_pvt_v2_b2", *SMALL)


def features():
    return {f"p{level}": torch.randn(1, 32, 2 ** (7 - level), 2 ** (7 - level)) for level in range(2, 6)}


def test_each_stage_has_heads_of_its_own(model):
    heads = model.roi_heads
    assert [type(head) for head in heads.box_head] == [FastRCNNConvFCHead] * 3
    assert [type(head) for head in heads.mask_head] == [MaskRCNNConvUpsampleHead] * 3
    assert [type(layer.norm) for layer in heads.box_head[2].conv_norm_relus] == [nn.SyncBatchNorm] * 4
    assert [predictor.bbox_pred.out_features for predictor in heads.box_predictor] == [4 * 3] * 3
    factors = [predictor.box2box_transform.weights for predictor in heads.box_predictor]
    deviations = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
    for got, wanted in zip(factors, deviations, strict=True):
        assert [1 / factor for factor in got] == pytest.approx(wanted)


def test_training_lowers_the_loss(model, make_batch):
    batch = make_batch([(64, 96)])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    totals = []
    with EventStorage():
        for _ in range(8):
            losses = model(batch)
            total = sum(losses.values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            totals.append(total.item())
    assert set(losses) >= {f"loss_{part}_stage{stage}" for part in ("cls", "box_reg", "mask") for stage in range(3)}
    assert totals[-1] < 0.7 * totals[0]


@pytest.mark.parametrize("number", [0, 1])
def test_training_with_hardly_any_rois(model, make_batch, number):
    heads = model.roi_heads
    boxes = Boxes(torch.tensor([[1.0, 1.0, 30.0, 30.0]])[:number])
    proposals = [Instances((64, 64), proposal_boxes=boxes, objectness_logits=torch.zeros(number))]
    targets = [make_batch([(64, 64)], num_boxes=0)[0]["instances"]]
    with EventStorage():
        _, losses = heads(None, features(), proposals, targets)
    sum(losses.values()).backward()
    assert all((loss > 0) == (number > 0 and "cls" in name) for name, loss in losses.items())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in heads.parameters())
    assert all(buffer.isfinite().all() for buffer in heads.buffers())


@torch.no_grad()
def test_masks_of_given_boxes_are_those_of_the_detections(model, make_batch):
    model.eval()
    batch = make_batch([(97, 130)])
    (found,) = model.inference(batch, do_postprocess=False)
    given = Instances(found.image_size, pred_boxes=found.pred_boxes, pred_classes=found.pred_classes)
    (again,) = model.inference(batch, [given], do_postprocess=False)
    assert found.pred_masks.shape == (len(found), 1, 28, 28)
    torch.testing.assert_close(again.pred_masks, found.pred_masks)


@torch.no_grad()
def test_given_boxes_are_not_rounded_under_autocast(model, make_batch):
    model.eval()
    seen = []
    for level in model.roi_heads.mask_pooler.level_poolers:
        level.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    given = Instances((97, 130), pred_boxes=Boxes(torch.tensor([[3.3, 5.5, 90.0, 80.0]])))
    given.pred_classes = torch.tensor([1])
    with torch.autocast("cpu", torch.bfloat16):
        model.inference(make_batch([(97, 130)]), [given], do_postprocess=False)
    assert set(seen) == {(torch.float32, torch.float32)}


@torch.no_grad()
def test_nan_in_a_stage_is_an_error(model):
    model.eval().roi_heads.box_predictor[1].bbox_pred.bias[0] = torch.nan
    proposals = [Instances((64, 64), proposal_boxes=Boxes(torch.tensor([[1.0, 1.0, 30.0, 30.0]])))]
    with pytest.raises(NumericError, match="scores or boxes"):
        model.roi_heads(None, features(), proposals)
