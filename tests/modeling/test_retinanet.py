"""PVTRetinaNet: losses against an independent implementation, loss normalizer, autocast, empty images."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import box_iou

SIZES = [(97, 130), (64, 200)]


def losses(model, batch, autocast=False):
    with EventStorage(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model(batch)


# --- an independent RetinaNet loss -----------------------------------------------------------------------------------
def anchors_of(height, width, stride):
    """Create nine anchors per position, size-major: 4 × stride × 2^(k/3), ratios height/width of 1/2, 1, 2."""
    rows = []
    for y in range(height):
        for x in range(width):
            for k in range(3):
                for ratio in (0.5, 1.0, 2.0):
                    size = 4 * stride * 2 ** (k / 3)
                    w, h = size / math.sqrt(ratio), size * math.sqrt(ratio)
                    rows.append([x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2])
    return torch.tensor(rows)


def encode(anchors, boxes):
    def centers(b):
        return (b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]

    (ac, asize), (bc, bsize) = centers(anchors), centers(boxes)
    return torch.cat([(bc - ac) / asize, (bsize / asize).log()], dim=1)


def expected_losses(model, batch, beta):
    """Compute the sums of both losses and the number of positive anchors with the formulas of the paper."""
    images = model.preprocess_image(batch).tensor
    maps = model.backbone(images)
    features = [maps[level] for level in ("p3", "p4", "p5", "p6", "p7")]
    logits, deltas = model.head(features)
    anchors = torch.cat([anchors_of(*f.shape[-2:], 8 * 2**i) for i, f in enumerate(features)])
    focal_sum, box_sum, positives = 0.0, 0.0, 0

    def rows(outputs, n, width):
        return torch.cat([o[n].permute(1, 2, 0).reshape(-1, width) for o in outputs])

    for n, item in enumerate(batch):
        boxes, classes = item["instances"].gt_boxes.tensor, item["instances"].gt_classes
        x, d = rows(logits, n, model.num_classes), rows(deltas, n, 4)
        target = torch.zeros_like(x)
        counted = torch.ones(len(anchors), dtype=torch.bool)
        if len(boxes):
            iou = box_iou(boxes, anchors)
            best, match = iou.max(dim=0)
            positive = best >= 0.5
            positive |= (iou == iou.max(dim=1, keepdim=True).values).any(dim=0)
            counted = positive | (best < 0.4)
            target[positive, classes[match[positive]]] = 1
            error = (d[positive] - encode(anchors[positive], boxes[match[positive]])).abs()
            if beta:
                error = torch.where(error < beta, 0.5 * error**2 / beta, error - 0.5 * beta)
            box_sum = box_sum + error.sum()
            positives += int(positive.sum())
        p = x.sigmoid()
        focal = -0.25 * target * (1 - p) ** 2 * p.log() - 0.75 * (1 - target) * p**2 * (1 - p).log()
        focal_sum = focal_sum + focal[counted].sum()
    return focal_sum, box_sum, positives


@pytest.mark.parametrize("num_boxes", [3, 0])
@pytest.mark.parametrize("recipe", ["", "_d2"])
def test_losses_match_the_formulas_of_the_paper(build, make_batch, num_boxes, recipe):
    model = build(f"retinanet_pvt_tiny{recipe}", "MODEL.PVT.DROP_PATH_RATE", "0.0")
    batch = make_batch(SIZES, num_boxes)
    with torch.no_grad():
        model.head.bbox_pred.weight.mul_(20)  # so that deltas and scores differ
        model.head.cls_score.weight.mul_(20)
    with EventStorage() as storage:
        ours = model(batch)
    focal_sum, box_sum, positives = expected_losses(model, batch, beta=0.1 if recipe else 0.0)
    assert storage.latest()["num_pos_anchors"] == (positives / len(batch), 0)
    normalizer = 0.9 * 100 + 0.1 * max(positives, 1) if recipe else max(positives, 1)
    assert positives > 10 or num_boxes == 0
    torch.testing.assert_close(ours["loss_cls"], focal_sum / normalizer, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours["loss_box_reg"], torch.as_tensor(box_sum / normalizer), rtol=1e-5, atol=1e-6)


def test_moving_average_matches_detectron2(build, make_batch):
    """With the same weights, losses match Detectron2's in each step, up to rounding in its TorchScript."""
    model = build("retinanet_pvt_v2_b0", "MODEL.RETINANET.LOSS_NORMALIZER", "ema", "MODEL.PVT.DROP_PATH_RATE", "0")
    theirs = build("retinanet_pvt_v2_b0", "MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.PVT.DROP_PATH_RATE", "0")
    assert type(theirs) is META_ARCH_REGISTRY.get("RetinaNet")
    theirs.load_state_dict({k: v for k, v in model.state_dict().items() if k != "loss_normalizer"})
    for step in range(3):
        batch = make_batch(SIZES, seed=step)
        torch.testing.assert_close(losses(model, batch), losses(theirs, batch), rtol=1e-5, atol=1e-6)
    assert float(model.loss_normalizer) == pytest.approx(theirs.loss_normalizer, rel=1e-6)


def test_moving_average_is_saved_and_not_updated_in_validation(build, make_batch):
    overrides = ("MODEL.RETINANET.LOSS_NORMALIZER", "ema", "MODEL.PVT.DROP_PATH_RATE", "0")
    model, resumed = (build("retinanet_pvt_v2_b0", *overrides) for _ in range(2))
    losses(model, make_batch(SIZES))
    assert float(model.loss_normalizer) != 100
    saved = model.loss_normalizer.clone()
    with torch.no_grad():
        losses(model, make_batch(SIZES))
    assert torch.equal(model.loss_normalizer, saved)
    resumed.load_state_dict(model.state_dict())
    batch = make_batch(SIZES, seed=1)
    torch.testing.assert_close(losses(model, batch), losses(resumed, batch), rtol=0, atol=0)


@pytest.mark.parametrize("normalizer", ["ema", "batch"])
def test_positive_anchors_are_counted_over_all_processes(build, make_batch, monkeypatch, normalizer):
    """Two processes, each with half of the batch, compute the same mean loss as one process with the whole batch."""
    arguments = ("retinanet_pvt_v2_b0", "MODEL.RETINANET.LOSS_NORMALIZER", normalizer, "MODEL.PVT.DROP_PATH_RATE", "0")
    batch = make_batch([(64, 64)] * 2)
    whole = losses(build(*arguments), batch)
    counts = [expected_losses(build(*arguments), [item], 0.0)[2] for item in batch]
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.fill_(sum(counts)))
    halves = [losses(build(*arguments), [item]) for item in batch]
    for name, value in whole.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("num_boxes", [3, 0])
def test_every_parameter_gets_a_gradient(build, make_batch, autocast, num_boxes):
    model = build("retinanet_pvt_tiny")
    result = losses(model, make_batch(SIZES, num_boxes), autocast)
    assert {value.dtype for value in result.values()} == {torch.float32}
    sum(result.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    if num_boxes:
        assert all(p.grad.any() for name, p in model.named_parameters())


def test_autocast_scores_are_close_to_fp32(build, make_batch):
    model = build("retinanet_pvt_tiny", "MODEL.PVT.DROP_PATH_RATE", "0.0").eval()
    with torch.no_grad():
        model.head.cls_score.bias.fill_(0.0)
    batch = make_batch([(97, 130)])
    with torch.no_grad():
        exact = model(batch)[0]["instances"]
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(batch)[0]["instances"]
    assert rough.scores.dtype == rough.pred_boxes.tensor.dtype == torch.float32
    assert len(rough) == len(exact) == 100
    torch.testing.assert_close(rough.scores, exact.scores, rtol=0, atol=0.02)


@pytest.mark.parametrize("size", [(1, 1), (37, 211), (5000, 1)])
def test_odd_sizes_train_and_predict(build, make_batch, size):
    model = build("retinanet_pvt_v2_b0")
    batch = make_batch([size], num_boxes=0)
    assert all(value.isfinite() for value in losses(model, batch).values())
    with torch.no_grad():
        assert len(model.eval()(batch)) == 1


def test_prior_probability_and_number_of_anchors(build):
    """All scores of a new detector are 0.01, and each position has nine anchors."""
    model = build("retinanet_pvt_v2_b0")
    assert F.sigmoid(model.head.cls_score.bias).allclose(torch.tensor(0.01))
    assert model.anchor_generator.num_anchors == [9] * 5


def test_anchors_are_created_on_the_device_of_the_features(build):
    """They are not copied from the CPU, which would synchronize with a GPU. Tested with the meta device."""

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **kwargs or {})

    names = []
    model = build("retinanet_pvt_v2_b0")
    features = [torch.empty(1, 1, 13 - i, 9 + i) for i in range(5)]
    for anchors, theirs in zip(model.build_anchors(features), model.anchor_generator(features), strict=True):
        assert torch.equal(anchors.tensor, theirs.tensor)
    model.anchor_generator.to("meta")
    meta_features = [level.to("meta") for level in features]
    with Calls():
        anchors = model.build_anchors(meta_features)
    assert {level.device.type for level in anchors} == {"meta"}
    assert "aten.arange.start_step" in names
    assert not any("copy" in name for name in names)
