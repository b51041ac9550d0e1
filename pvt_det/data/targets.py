"""The objects of one training image as arrays, and their masks in the forms that COCO has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.structures import BoxMode

from pvt_det.structures.rle import compress

# One object's mask: polygons, each of x, y, x, y … in pixels, or COCO's compressed run lengths.
Mask = list[npt.NDArray[np.float32]] | dict[str, Any]


@dataclass(frozen=True)
class Targets:
    """The objects of one image that are trained on, crowd regions left out.

    Attributes:
        boxes: `N×4` float64, x1, y1, x2, y2 in pixels of the file.
        classes: `N` int64, contiguous from 0.
        masks: N masks, or None where masks are not trained.
    """

    boxes: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    masks: list[Mask] | None


@dataclass(frozen=True)
class Labelled:
    """An image with its objects.

    Attributes:
        image: `H×W×C` uint8.
        targets: in its pixels.
    """

    image: npt.NDArray[np.uint8]
    targets: Targets


def pack_targets(annotations: list[dict[str, Any]], *, masks: bool) -> Targets:
    """Pack Detectron2's per-object dictionaries into arrays, which workers read several times faster.

    Args:
        annotations: the "annotations" of a Detectron2 record.
        masks: keep masks; objects without one are then left out.
    """
    kept = [a for a in annotations if not a.get("iscrowd", 0) and (a.get("segmentation") or not masks)]
    boxes = np.array([a["bbox"] for a in kept], dtype=np.float64).reshape(-1, 4)
    wh = np.array([a["bbox_mode"] == BoxMode.XYWH_ABS for a in kept], dtype=bool)
    boxes[wh, 2:] += boxes[wh, :2]
    classes = np.array([a["category_id"] for a in kept], dtype=np.int64)
    return Targets(boxes, classes, [_pack_mask(a["segmentation"]) for a in kept] if masks else None)


def _pack_mask(segmentation: list[Any] | dict[str, Any]) -> Mask:
    if isinstance(segmentation, dict):
        return compress(segmentation)
    return [np.asarray(polygon, dtype=np.float32) for polygon in segmentation]
