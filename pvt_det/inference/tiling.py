"""Detection in images too large to be shrunk to the model's size without losing what is small."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import batched_nms

from pvt_det.config.architecture import head_key
from pvt_det.data.images import read_image
from pvt_det.errors import ConfigError
from pvt_det.inference.base import Image, check_pixels
from pvt_det.inference.predictor import Predictor
from pvt_det.structures.masks import RunLengthMasks

# A box that comes this near to its tile's edge, in pixels, goes on beyond it.
_AT_EDGE = 1.0


class TiledPredictor:
    """Finds objects tile by tile, and the large ones in the image as a whole.

    What a tile's edge cuts is left to the neighbouring tile, which overlaps, or to the view of the whole image; what
    several views found is merged by non-maximum suppression within each class, at the model's own threshold.

    Args:
        predictor: Looks at the tiles, as many at a time as its batch size.
        tile: Side of the tiles in pixels. An image that fits into one is not cut.
        overlap: Least overlap of neighbouring tiles as a share of the tile, in [0, 1); best above the size of what is
            to be found.

    Raises:
        ConfigError: A setting is out of its range.
    """

    def __init__(self, predictor: Predictor, tile: int, overlap: float = 0.2) -> None:
        if tile < 32:
            raise ConfigError(f"tile {tile}: expected 32 pixels or more.")
        if not 0 <= overlap < 1:
            raise ConfigError(f"overlap {overlap}: expected a share of the tile, 0 or more and less than 1.")
        self.predictor = predictor
        self.tile = tile
        self.overlap = overlap
        cfg = predictor.cfg
        self.nms_threshold = cfg.MODEL[head_key(cfg)].NMS_THRESH_TEST

    def __call__(self, images: Sequence[Image]) -> list[Instances]:
        """Find objects in each image; see `Predictor`."""
        return [self._find(image, number) for number, image in enumerate(images)]

    def _find(self, image: Image, number: int) -> Instances:
        pixels = check_pixels(image, f"image {number}") if hasattr(image, "shape") else read_image(image, "RGB")
        height, width = pixels.shape[:2]
        if max(height, width) <= self.tile:
            return self.predictor(pixels)
        corners = [(left, top) for top in self._starts(height) for left in self._starts(width)]
        tiles = [pixels[top : top + self.tile, left : left + self.tile] for left, top in corners]
        whole, *parts = self.predictor([pixels, *tiles])
        views = [(whole, (0, 0))]
        for part, corner in zip(parts, corners, strict=True):
            views.append((part[_uncut(part, corner, (height, width))], corner))
        return _merge(views, (height, width), self.nms_threshold)

    def _starts(self, length: int) -> list[int]:
        """First pixels of the tiles along a side, evenly spread."""
        if length <= self.tile:
            return [0]
        step = self.tile * (1 - self.overlap)
        count = math.ceil((length - self.tile) / step) + 1
        return [round(number * (length - self.tile) / (count - 1)) for number in range(count)]


def _uncut(found: Instances, corner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Which detections of a tile do not touch an edge that lies inside the image; `N` bool."""
    (left, top), (height, width) = corner, size
    tile_height, tile_width = found.image_size
    x1, y1, x2, y2 = found.pred_boxes.tensor.unbind(1)
    cut = torch.zeros(len(found), dtype=torch.bool)
    for is_inside, touches in (
        (left > 0, x1 <= _AT_EDGE),
        (top > 0, y1 <= _AT_EDGE),
        (left + tile_width < width, x2 >= tile_width - _AT_EDGE),
        (top + tile_height < height, y2 >= tile_height - _AT_EDGE),
    ):
        if is_inside:
            cut |= touches
    return ~cut


def _merge(
    views: Sequence[tuple[Instances, tuple[int, int]]], size: tuple[int, int], nms_threshold: float
) -> Instances:
    """Detections of all views, each with its corner, as they lie in the image of `size`, best first."""
    boxes = torch.cat([found.pred_boxes.tensor + torch.tensor([*corner, *corner]) for found, corner in views])
    scores = torch.cat([found.scores for found, _ in views])
    classes = torch.cat([found.pred_classes for found, _ in views])
    kept = batched_nms(boxes, scores, classes, nms_threshold)
    merged = Instances(size, pred_boxes=Boxes(boxes[kept]), scores=scores[kept], pred_classes=classes[kept])
    if views[0][0].has("pred_masks"):
        owners = [(found, number, corner) for found, corner in views for number in range(len(found))]
        masks = [_at(found.pred_masks[number], corner, size) for found, number, corner in (owners[k] for k in kept)]
        merged.pred_masks = RunLengthMasks.cat([RunLengthMasks([], size), *masks])
    return merged


def _at(mask: Tensor, corner: tuple[int, int], size: tuple[int, int]) -> RunLengthMasks:
    """A tile's `H×W` mask in the image of `size`."""
    (left, top), (height, width) = corner, size
    right, bottom = width - left - mask.shape[1], height - top - mask.shape[0]
    return RunLengthMasks.encode(F.pad(mask.to(torch.uint8), (left, right, top, bottom))[None])
