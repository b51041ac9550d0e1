"""Adaptive training sample selection matches the paper's algorithm, written with loops."""

from __future__ import annotations

import math
import statistics

import torch
from detectron2.structures import Boxes, Instances
from torchvision.ops import box_iou

from pvt_det.modeling.atss_assigner import select_anchors

BACKGROUND = 7
STRIDES = (8, 16, 32, 64)


def anchors_of(height, width):
    """Create one anchor of 8 × stride per position of each level."""
    levels = []
    for stride in STRIDES:
        y, x = torch.meshgrid(torch.arange(0, height, stride), torch.arange(0, width, stride), indexing="ij")
        centers = torch.stack([x, y], dim=-1).reshape(-1, 2).float()
        levels.append(torch.cat([centers - 4 * stride, centers + 4 * stride], dim=1))
    return levels


def image_with(boxes):
    return Instances((1, 1), gt_boxes=Boxes(boxes), gt_classes=torch.arange(len(boxes)) % BACKGROUND)


def center(box):
    x0, y0, x1, y1 = box.tolist()
    return (x0 + x1) / 2, (y0 + y1) / 2


def expected(levels, boxes, size, topk):
    """Return the label of each anchor and the index of its box, by algorithm 1 of the paper."""
    rows = torch.cat(levels)
    iou = box_iou(boxes, rows)
    labels = [BACKGROUND if x < size[1] and y < size[0] else -1 for x, y in map(center, rows)]
    matches, best = [0] * len(rows), [-1.0] * len(rows)
    for g, box in enumerate(boxes):
        candidates, start = [], 0
        for level in levels:
            usable = [start + i for i in range(len(level)) if labels[start + i] != -1]
            candidates += sorted(usable, key=lambda i: math.dist(center(rows[i]), center(box)))[:topk]
            start += len(level)
        values = [iou[g, i].item() for i in candidates]
        threshold = statistics.mean(values) + statistics.stdev(values)
        for i, value in zip(candidates, values, strict=True):
            (x, y), (x0, y0, x1, y1) = center(rows[i]), box.tolist()
            is_inside = min(x - x0, y - y0, x1 - x, y1 - y) > 0.01
            if is_inside and value >= threshold and value > best[i]:
                labels[i], matches[i], best[i] = g % BACKGROUND, g, value
    return torch.tensor(labels), torch.tensor(matches)


def test_labels_match_the_algorithm():
    levels = anchors_of(128, 192)
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(12, 2, generator=generator) * torch.tensor([150.0, 90.0])
    crowd = torch.cat([corner, corner + 3 + 60 * torch.rand(12, 2, generator=generator)], dim=1)
    # The second image ends within the batch: the coarsest level has 2 of 6 positions inside it.
    images, sizes = [crowd, crowd[:4] * 0.5, crowd[:0]], [(128, 192), (64, 96), (96, 64)]
    labels, boxes = select_anchors(levels, list(map(image_with, images)), sizes, topk=9, background=BACKGROUND)
    assert labels.shape == boxes.shape[:2] == (3, sum(map(len, levels)))
    assert set(labels[2].tolist()) == {-1, BACKGROUND}
    for got, got_boxes, image, size in zip(labels[:2], boxes, images, sizes, strict=False):
        wanted, match = expected(levels, image, size, topk=9)
        assert torch.equal(got, wanted)
        positive = (wanted >= 0) & (wanted != BACKGROUND)
        assert positive.sum() > len(image)
        assert torch.equal(got_boxes[positive], image[match[positive]])


def test_an_anchor_of_several_boxes_belongs_to_the_one_it_overlaps_most():
    levels = anchors_of(64, 64)
    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0], [4.0, 4.0, 62.0, 62.0]])
    labels, matched = select_anchors(levels, [image_with(boxes)], [(64, 64)], topk=9, background=BACKGROUND)
    middle = 4 * 8 + 4  # the position (32, 32) of the finest level, whose anchor is the first box
    assert labels[0, middle] == 0
    assert matched[0, middle].tolist() == [0.0, 0.0, 64.0, 64.0]
