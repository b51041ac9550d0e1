"""Ground truth of one training image: boxes and classes as arrays, and masks as polygons or run lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.structures import BoxMode

from pvt_det.structures.rle import compress

# Mask of one object: a list of polygons, each x, y, x, y … in pixels, or COCO's compressed run lengths.
Mask = list[npt.NDArray[np.float32]] | dict[str, Any]


@dataclass(frozen=True)
class Targets:
    """Objects of one image that are used in training, without crowd regions.

    Attributes:
        boxes: Boxes, `N×4` float64: x1, y1, x2, y2 in pixels of the image.
        classes: Contiguous 0-based class ids, `N` int64.
        masks: Masks of the N objects, or None if the model does not use masks.
    """

    boxes: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    masks: list[Mask] | None


@dataclass(frozen=True)
class Labelled:
    """An image with its objects.

    Attributes:
        image: Image, `H×W×C` uint8.
        targets: Objects, with boxes and masks in pixels of the image.
    """

    image: npt.NDArray[np.uint8]
    targets: Targets


def pack_targets(annotations: list[dict[str, Any]], *, masks: bool) -> Targets:
    """Pack the annotations of a Detectron2 record into arrays, which workers read several times faster.

    Args:
        annotations: Objects of an image, the "annotations" of a Detectron2 record.
        masks: Whether to keep masks. If True, objects without a mask are left out.

    Returns:
        The objects without crowd regions.
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
