"""Anchor matching gives the same labels and boxes as Detectron2."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances


def image_with(boxes):
    instances = Instances((72, 100))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.arange(len(boxes)) % 3
    return instances


@pytest.mark.parametrize(
    ("thresholds", "labels", "low_quality"),
    [([0.4, 0.5], [0, -1, 1], True), ([0.4, 0.5], [0, -1, 1], False), ([0.3, 0.7], [-1, 0, 1], True)],
)
def test_targets_match_detectron2(build, thresholds, labels, low_quality):
    model = build("retinanet_pvt_v2_b0")
    model.anchor_matcher = Matcher(thresholds, labels, low_quality)
    anchors = model.anchor_generator([torch.empty(1, 1, -(-9 // 2**i), -(-13 // 2**i)) for i in range(5)])
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(40, 2, generator=generator) * torch.tensor([100, 72])
    boxes = torch.cat([corner, corner + 1 + torch.rand(40, 2, generator=generator) * 90], dim=1)
    boxes_per_image = [
        boxes[:0],
        boxes,
        boxes[:1].repeat(3, 1),  # ties between boxes
        boxes[1:3] + 5000,  # overlaps no anchor, so all anchors are equally good
        torch.cat([anchors[0].tensor[500:504], anchors[2].tensor[:2]]),
        boxes[:0],
        boxes[3:5],
    ]
    images = [image_with(boxes) for boxes in boxes_per_image]
    ours, theirs = model.label_anchors(anchors, images), RetinaNet.label_anchors(model, anchors, images)
    for got, expected in zip((*ours[0], *ours[1]), (*theirs[0], *theirs[1]), strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
    classes = [set(labels.tolist()) for labels in ours[0]]
    assert classes[0] == classes[5] == {model.num_classes}
    assert classes[1] == {-1, 0, 1, 2, model.num_classes}
