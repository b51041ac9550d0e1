"""Detect objects in large images tile by tile, so that small objects are not lost by downscaling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import batched_nms

from pvt_det.config.architecture import head_key
from pvt_det.errors import ConfigError
from pvt_det.inference.pixels import Image, Prepared, load_pixels
from pvt_det.inference.predictions import Detections
from pvt_det.inference.predictor import Predictor
from pvt_det.structures.masks import RunLengthMasks

# A box within this distance of a tile's edge, in pixels, is considered cut by it.
_EDGE_MARGIN = 1.0


class TiledPredictor:
    """Runs a detector on overlapping tiles of an image, and on the whole image to find large objects.

    Detections that are cut by a tile's edge are dropped, because the neighboring tile or the whole image contains the
    complete object. The remaining detections are merged by non-maximum suppression within each class, with the
    threshold of the model.

    Args:
        predictor: The detector. It processes up to its batch size of tiles at a time.
        tile: Side of the tiles in pixels, at least 32. Images that fit into one tile are not split.
        overlap: Minimum overlap of neighboring tiles as a fraction of the tile, in [0, 1). It should be larger than
            the objects.

    Attributes:
        preparation: Function that returns the pixels of an image unchanged, since only tiles are resized.

    Raises:
        ConfigError: An argument is out of range.
    """

    def __init__(self, predictor: Predictor, tile: int, overlap: float = 0.2) -> None:
        if tile < 32:
            raise ConfigError(f"tile {tile}: expected at least 32 pixels.")
        if not 0 <= overlap < 1:
            raise ConfigError(f"overlap {overlap}: expected a fraction of the tile, at least 0 and less than 1.")
        self.predictor = predictor
        self.preparation = _unchanged
        self.tile = tile
        self.overlap = overlap
        cfg = predictor.cfg
        self.nms_threshold = cfg.MODEL[head_key(cfg)].NMS_THRESH_TEST

    def __call__(self, images: Sequence[Image | Prepared]) -> list[Detections]:
        """Find objects in images.

        Args:
            images: File paths, Pillow images, or `H×W×3` uint8 arrays in RGB order; or prepared images.

        Returns:
            The detections in each image, with the same fields as those of `Predictor`.
        """
        return [self._find(image, number) for number, image in enumerate(images)]

    def _find(self, image: Image | Prepared, number: int) -> Detections:
        if isinstance(image, Prepared):
            pixels, image = image.record["pixels"].numpy(), image.image
        else:
            pixels = load_pixels(image, f"image {number}")
        height, width = pixels.shape[:2]
        if max(height, width) <= self.tile:
            return Detections.of(self.predictor(pixels), self.predictor.class_names, image)
        corners = [(left, top) for top in self._starts(height) for left in self._starts(width)]
        tiles = [pixels[top : top + self.tile, left : left + self.tile] for left, top in corners]
        whole, *parts = self.predictor([pixels, *tiles])
        views: list[tuple[Instances, tuple[int, int]]] = [(whole, (0, 0))]
        for part, corner in zip(parts, corners, strict=True):
            views.append((part[_uncut(part, corner, (height, width))], corner))
        merged = _merge(views, (height, width), self.nms_threshold)
        return Detections.of(merged, self.predictor.class_names, image)

    def _starts(self, length: int) -> list[int]:
        """Return the first pixel of each tile along a side, evenly spaced."""
        if length <= self.tile:
            return [0]
        step = self.tile * (1 - self.overlap)
        count = math.ceil((length - self.tile) / step) + 1
        return [round(number * (length - self.tile) / (count - 1)) for number in range(count)]


def _unchanged(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    # Tensors are sent between processes through shared memory.
    return {"pixels": torch.from_numpy(pixels), "height": pixels.shape[0], "width": pixels.shape[1]}


def _uncut(detections: Instances, corner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return an `N` bool mask of the detections that do not touch a tile edge inside the image."""
    (left, top), (height, width) = corner, size
    tile_height, tile_width = detections.image_size
    x1, y1, x2, y2 = detections.pred_boxes.tensor.unbind(1)
    cut = torch.zeros(len(detections), dtype=torch.bool)
    for is_inside, touches in (
        (left > 0, x1 <= _EDGE_MARGIN),
        (top > 0, y1 <= _EDGE_MARGIN),
        (left + tile_width < width, x2 >= tile_width - _EDGE_MARGIN),
        (top + tile_height < height, y2 >= tile_height - _EDGE_MARGIN),
    ):
        if is_inside:
            cut |= touches
    return ~cut


def _merge(
    views: Sequence[tuple[Instances, tuple[int, int]]], size: tuple[int, int], nms_threshold: float
) -> Instances:
    """Merge the detections of all views, given with their corners, in image coordinates and by descending score."""
    boxes = torch.cat([found.pred_boxes.tensor + torch.tensor([*corner, *corner]) for found, corner in views])
    scores = torch.cat([found.scores for found, _ in views])
    classes = torch.cat([found.pred_classes for found, _ in views])
    kept = batched_nms(boxes, scores, classes, nms_threshold)
    merged = Instances(size, pred_boxes=Boxes(boxes[kept]), scores=scores[kept], pred_classes=classes[kept])
    if views[0][0].has("pred_masks"):
        owners = [(found, number, corner) for found, corner in views for number in range(len(found))]
        masks = [_place(found.pred_masks[number], corner, size) for found, number, corner in (owners[k] for k in kept)]
        merged.pred_masks = RunLengthMasks.cat([RunLengthMasks([], size), *masks])
    return merged


def _place(mask: Tensor, corner: tuple[int, int], size: tuple[int, int]) -> RunLengthMasks:
    """Pad a tile's `H×W` mask to the image of `size`."""
    (left, top), (height, width) = corner, size
    right, bottom = width - left - mask.shape[1], height - top - mask.shape[0]
    return RunLengthMasks.encode(F.pad(mask.to(torch.uint8), (left, right, top, bottom))[None])
