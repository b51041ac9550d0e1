"""Rasterize the masks of objects and paint them on images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from hotcoco import mask as mask_util
from numpy.typing import NDArray
from PIL import Image

from pvt_det.utils.colors import Color, contrasting

# Polygons, each a list x, y, x, y, …; or a run-length mask in COCO's format. In pixels of the original image.
Segmentation = Sequence[Any] | dict[str, Any]

_FILL = 0.45  # opacity of a region
_FAR = 1e6  # limit of polygon coordinates in pixels
_FRACTION_BITS = 4  # of polygon coordinates, for OpenCV


class Region(NamedTuple):
    """The pixels of a mask.

    Attributes:
        left: First column.
        top: First row.
        mask: The mask from there on, `h×w` uint8, 0 outside the region.
    """

    left: int
    top: int
    mask: NDArray[np.uint8]

    def fill(self, canvas: NDArray[np.uint8], color: Color) -> None:
        """Tint the region, in place.

        Args:
            canvas: The image, `H×W×3` RGB.
            color: The RGB color.
        """
        part = canvas[self.top :, self.left :][: self.mask.shape[0], : self.mask.shape[1]]
        # A table for all pixels and a masked copy are several times as fast as NumPy's indexing.
        table = np.arange(256)[:, None] * (1 - _FILL) + np.array(color) * _FILL
        cv2.copyTo(cv2.LUT(part, table.round().astype(np.uint8)[None]), self.mask, part)

    def outline(self, canvas: NDArray[np.uint8], color: Color, line: int, rim: int) -> None:
        """Draw the contours of the region as opaque lines with a contrasting rim, in place.

        Args:
            canvas: The image, `H×W×3` RGB.
            color: The RGB color of the line.
            line: Width of the line in pixels.
            rim: Width of the rim on each side of it.
        """
        contours, _ = cv2.findContours(self.mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        for width, paint in ((line + 2 * rim, contrasting(color)), (line, color)):
            cv2.drawContours(canvas, contours, -1, paint, width, cv2.LINE_8, offset=(self.left, self.top))


def rasterize(segmentation: Segmentation, scale: tuple[float, float], size: tuple[int, int]) -> Region | None:
    """Return the pixels of a mask in a resized image, or None if it has none.

    Args:
        segmentation: The mask, as polygons or run lengths.
        scale: Width and height of the resized image as multiples of those of the original image.
        size: Width and height of the resized image in pixels.
    """
    if isinstance(segmentation, dict):
        return _from_runs(segmentation, scale, size)
    return _from_polygons(segmentation, scale, size)


def _from_polygons(polygons: Sequence[Any], scale: tuple[float, float], size: tuple[int, int]) -> Region | None:
    scaled = [np.clip(np.reshape(each, (-1, 2)) * scale, -_FAR, _FAR) for each in polygons]
    corners = np.concatenate(scaled)
    area = _clipped(corners.min(axis=0), corners.max(axis=0), size)
    if area is None:
        return None
    left, top, right, bottom = area
    mask = np.zeros((bottom - top, right - left), np.uint8)
    for points in scaled:  # one at a time, because OpenCV leaves out what two polygons share
        # OpenCV's coordinates are those of pixel centers.
        fixed = np.rint((points - 0.5 - (left, top)) * 2**_FRACTION_BITS).astype(np.int32)
        cv2.fillPoly(mask, [fixed], 1, shift=_FRACTION_BITS)
    return Region(left, top, mask)


def _from_runs(rle: dict[str, Any], scale: tuple[float, float], size: tuple[int, int]) -> Region | None:
    if isinstance(rle["counts"], list):
        rle = mask_util.frPyObjects(rle, *rle["size"])
    x, y, width, height = (int(value) for value in np.ravel(mask_util.toBbox([rle])))
    area = _clipped(np.array([x, y]) * scale, np.array([x + width, y + height]) * scale, size)
    if width == 0 or area is None:
        return None
    mask = np.ascontiguousarray(mask_util.decode(rle)[y : y + height, x : x + width])
    if scale == (1, 1):
        return Region(x, y, mask)
    left, top, right, bottom = area
    pad = math.ceil(1 / min(scale)) + 1
    padded = Image.fromarray(np.pad(mask * np.uint8(255), pad))
    box = (left / scale[0] - x, top / scale[1] - y, right / scale[0] - x, bottom / scale[1] - y)
    within = (
        max(0, box[0] + pad),
        max(0, box[1] + pad),
        min(padded.width, box[2] + pad),
        min(padded.height, box[3] + pad),
    )
    resized = padded.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=within)
    return Region(left, top, (np.asarray(resized) >= 128).astype(np.uint8))


def _clipped(
    low: NDArray[np.float64], high: NDArray[np.float64], size: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Return the left, top, right and bottom of the pixels of an area inside the image, or None if there are none."""
    left, top = np.clip(np.floor(low), 0, size).astype(int).tolist()
    right, bottom = np.clip(np.ceil(high), 0, size).astype(int).tolist()
    return (left, top, right, bottom) if left < right and top < bottom else None
