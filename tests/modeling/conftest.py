"""Fixtures that build detectors and small batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import nn

from pvt_det.config import load_config
from pvt_det.config.architecture import HEADS

CONFIGS = Path(__file__).parents[2] / "configs"
NUM_CLASSES = 3


def make_batch(sizes, num_boxes=3, masks="polygon", seed=0) -> list[dict]:
    """Create random images of the given sizes, with boxes and masks."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for height, width in sizes:
        scale = torch.tensor([width, height])
        corner = torch.rand(num_boxes, 2, generator=generator) * scale * 0.6
        boxes = torch.cat([corner, corner + (0.2 + 0.2 * torch.rand(num_boxes, 2, generator=generator)) * scale], dim=1)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.randint(0, NUM_CLASSES, (num_boxes,), generator=generator)
        instances.gt_masks = _masks(boxes, height, width, masks)
        image = torch.randint(0, 256, (3, height, width), generator=generator).float()
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


def _masks(boxes, height, width, kind):
    if kind == "polygon":
        return PolygonMasks([[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes.tolist()])
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    return BitMasks(masks)


def build(name: str, *overrides: str) -> nn.Module:
    """Build the detector of `configs/<name>.yaml` for three classes, with random weights, on the CPU."""
    classes = [word for part in HEADS for word in (f"MODEL.{part}.NUM_CLASSES", str(NUM_CLASSES))]
    cfg = load_config(CONFIGS / f"{name}.yaml", ["MODEL.DEVICE", "cpu", *classes, *overrides])
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.fixture(name="make_batch")
def _make_batch():
    return make_batch


@pytest.fixture(name="build")
def _build():
    return build


@pytest.fixture(autouse=True)
def _one_thread():
    """Use one thread, because other tests run at the same time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
