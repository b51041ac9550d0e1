"""ATSS and GFL: losses, gradients and detections. `weights/test_mmdet_parity.py` compares them with MMDetection."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, ImageList
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torchvision.ops import box_iou

from pvt_det.modeling.atss import centerness_of
from pvt_det.modeling.gfl import Box2BoxTransformIntegral

SIZES = [(97, 130), (64, 200)]
NAMES = ["atss_pvt_v2_b2_3x", "gfl_pvt_v2_b2_3x"]
TINY = ("MODEL.PVT.VARIANT", "pvt_v2_b0", "MODEL.PVT.DROP_PATH_RATE", "0.0", "MODEL.FPN.OUT_CHANNELS", "64")


def losses(model, batch, autocast=False):
    with EventStorage(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model(batch)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("num_boxes", [3, 0])
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(build, make_batch, name, autocast, num_boxes):
    model = build(name, *TINY)
    result = losses(model, make_batch(SIZES, num_boxes), autocast)
    assert {value.dtype for value in result.values()} == {torch.float32}
    sum(result.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        # Only some levels have positive anchors, and so gradients of their scales.
        assert parameter.grad.any() or not num_boxes or key.startswith("head.scales"), key
    assert model.head.scales[0].grad.abs() > 0 or not num_boxes


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_the_whole_batch_on_several_processes(build, make_batch, monkeypatch, name):
    """Two processes, each with half of the batch, compute the same mean loss as one process with the whole batch."""
    model = build(name, *TINY)
    batch = make_batch([(64, 64)] * 2)
    whole = losses(model, batch)
    shares = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda means: shares.append(means.clone()))
    for item in batch:
        losses(model, [item])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda means: means.copy_(sum(shares)))
    halves = [losses(model, [item]) for item in batch]
    for key, value in whole.items():
        torch.testing.assert_close((halves[0][key] + halves[1][key]) / 2, value, rtol=1e-4, atol=1e-6)
    with torch.no_grad():  # validation losses are those of the process
        alone = losses(model, batch)
    torch.testing.assert_close(alone, {key: value.detach() for key, value in whole.items()})


@pytest.mark.parametrize("size", [(1, 1), (37, 211), (5000, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_odd_sizes_train_and_predict(build, make_batch, name, size):
    model = build(name, *TINY)
    assert all(value.isfinite() for value in losses(model, make_batch([size], num_boxes=0)).values())
    with torch.no_grad():
        assert len(model.eval()(make_batch([size], num_boxes=0))) == 1


@pytest.mark.parametrize("name", NAMES)
def test_autocast_scores_and_boxes_are_close_to_fp32(build, make_batch, name):
    model = build(name, *TINY).eval()
    with torch.no_grad():
        model.head.cls_score.bias.fill_(0.0)
        exact = model(make_batch([(97, 130)]))[0]["instances"]
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(make_batch([(97, 130)]))[0]["instances"]
    assert rough.scores.dtype == rough.pred_boxes.tensor.dtype == torch.float32
    torch.testing.assert_close(rough.scores[:20], exact.scores[:20], rtol=0, atol=0.02)


def test_start_of_training(build):
    """All scores of a new detector are 0.01, scales are 1, and each position has one anchor."""
    for name in NAMES:
        model = build(name, *TINY)
        assert F.sigmoid(model.head.cls_score.bias).allclose(torch.tensor(0.01))
        assert [scale.item() for scale in model.head.scales] == [1.0] * 5
        assert model.anchor_generator.num_anchors == [1] * 5
        assert model.head.cls_subnet[0].bias is None


def test_padding_of_the_batch_has_no_labels(build, make_batch):
    """The padding of an image that is alone, up to a multiple of 32, is background as in MMDetection."""
    model = build(NAMES[0], *TINY)
    batch = make_batch([(40, 64), (96, 128)], num_boxes=0)
    images = model.preprocess_image(batch)
    features = [model.backbone(images.tensor)[level] for level in model.head_in_features]
    labels, _ = model.label_anchors(model.build_anchors(features), [item["instances"] for item in batch], images)
    finest = labels[0, : 12 * 16].reshape(12, 16)
    assert (finest[:8, :8] == model.num_classes).all()
    assert (finest[8:] == -1).all()
    assert (finest[:, 8:] == -1).all()
    assert (labels[1] == model.num_classes).all()


def test_centerness():
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).expand(3, 4)
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [3.0, 0.0, 8.0, 8.0], [3.0, 2.0, 8.0, 10.0]])
    torch.testing.assert_close(centerness_of(anchors, boxes), torch.tensor([1.0, 0.5, 12**-0.5]))


def test_detections_are_ranked_by_score_times_centerness(build):
    """The threshold applies to the class score alone."""
    model = build(NAMES[0], *TINY, "MODEL.ATSS.SCORE_THRESH_TEST", "0.5").eval()
    model.max_detections_per_image = 2
    features = [torch.empty(1, 1, 4, 4)] * 5
    logits = [torch.full((1, 3, 4, 4), -10.0) for _ in features]
    centerness = [torch.zeros(1, 1, 4, 4) for _ in features]
    for x, (score, quality) in enumerate([(0.9, 0.2), (0.8, 0.9), (0.4, 1 - 1e-6), (0.6, 0.7)]):
        logits[0][0, 1, 0, x] = torch.tensor(score).logit()
        centerness[0][0, 0, 0, x] = torch.tensor(quality).logit()
    deltas = [torch.full((1, 4, 4, 4), -3.0) for _ in features]  # small boxes, which do not overlap
    with torch.no_grad():
        (found,) = model.forward_inference(
            ImageList(torch.empty(0), [(32, 32)]), features, [logits, deltas, centerness]
        )
    assert found.scores.tolist() == pytest.approx([0.72, 0.42])
    assert found.pred_classes.tolist() == [1, 1]


def test_distributions_become_boxes():
    transform = Box2BoxTransformIntegral(16)
    logits = torch.full((2, 4, 17), -100.0)
    logits[0, torch.arange(4), torch.tensor([0, 3, 16, 5])] = 100.0
    logits[1, :, 2:4] = 100.0  # between 2 and 3
    cells = torch.tensor([[28.0, 44.0, 36.0, 52.0]]).expand(2, 4)  # stride 8 around (32, 48)
    expected = torch.tensor([[32.0, 24.0, 160.0, 88.0], [12.0, 28.0, 52.0, 68.0]])
    torch.testing.assert_close(transform.apply_deltas(logits.flatten(1), cells), expected)
    assert transform.get_deltas(cells, expected)[0].tolist() == [0.0, 3.0, 16.0, 5.0]


def test_quality_focal_loss_has_the_iou_of_the_predicted_box_as_its_target(build, make_batch):
    """Equation 2 of the paper on all scores, for the anchors that are positive."""
    model = build(NAMES[1], *TINY)
    batch = make_batch([(96, 128)])
    with torch.no_grad():
        model.head.cls_score.weight.mul_(20)
        model.head.bbox_pred.weight.mul_(20)
    images = model.preprocess_image(batch)
    maps = model.backbone(images.tensor)
    features = [maps[level] for level in model.head_in_features]
    logits, sides = model._transpose(model.head(features))
    anchors = model.build_anchors(features)
    labels, boxes = model.label_anchors(anchors, [batch[0]["instances"]], images)
    with EventStorage():
        got = model.losses(model.cells_of(anchors), logits, sides, labels, boxes)["loss_cls"]

    x, label = torch.cat(logits, dim=1)[0], labels[0]
    predicted = model.box2box_transform.apply_deltas(
        torch.cat(sides, dim=1)[0], Boxes.cat(model.cells_of(anchors)).tensor
    )
    target = torch.zeros_like(x)
    positive = (label != model.num_classes).nonzero()[:, 0]
    target[positive, label[positive]] = box_iou(predicted[positive], boxes[0, positive]).diagonal().detach()
    assert len(positive) > 5
    assert 0.05 < target[positive].amax() < 1
    p = x.sigmoid()
    loss = -((target - p).abs() ** 2) * ((1 - target) * (1 - p).log() + target * p.log())
    torch.testing.assert_close(got, loss.sum() / len(positive), rtol=1e-4, atol=1e-6)
