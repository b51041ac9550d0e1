"""What `PanopticPredictor` returns: a map of segments that can be counted, drawn and saved."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pvt_det.inference.pixels import Image
from pvt_det.inference.predictions import (
    describe_counts,
    describe_shares,
    drawing_width,
    original_pixels,
    write_picture,
)
from pvt_det.utils.colors import class_colors, object_colors
from pvt_det.utils.visualizer import Picture, draw_regions

__all__ = ["PanopticSegments"]

_MAX_SHOWN = 255  # segments that are drawn on one image
_NONE = 255


class PanopticSegments:
    """The segments of an image: each object, and the pixels of each class without objects, such as sky.

    It refers to the image that was passed to the predictor, without a copy, and reads a file again to draw it.

    Args:
        ids: Id of the segment of each pixel, `H×W` int32; 0 for no segment.
        segments_info: A dict for each segment, the objects first, by descending score:

            - `id`: the value in `ids`, from 1;
            - `category_id`: the class index;
            - `isthing`: whether the segment is an object;
            - `score`: the score of an object, 0 to 1. Other segments have none.
            - `area`: the number of pixels;
            - `bbox`: the smallest box around the segment, [x, y, width, height] in pixels.
        class_names: Class names, by class index: the classes of objects, then the others.
        thing_count: Number of classes of objects.
        image: The image, as passed to the predictor. None if it is not known.
    """

    def __init__(
        self,
        ids: NDArray[np.int32],
        segments_info: Sequence[Mapping[str, Any]],
        class_names: Sequence[str] = (),
        thing_count: int = 0,
        image: Image | None = None,
    ) -> None:
        self.ids = ids
        self.segments_info = [dict(info) for info in segments_info]
        self.class_names = tuple(class_names)
        self.thing_count = thing_count
        self._image = image

    def __len__(self) -> int:
        return len(self.segments_info)

    def __repr__(self) -> str:
        return f"PanopticSegments({self.describe()})"

    def counts(self) -> dict[str, int]:
        """Return the number of objects of each class that was found, by class name."""
        classes = [info["category_id"] for info in self.segments_info if info["isthing"]]
        return {self.class_names[index]: classes.count(index) for index in sorted(set(classes))}

    def shares(self) -> dict[str, float]:
        """Return the fraction of the pixels of each class without objects, by class name, the largest first."""
        found = [info for info in self.segments_info if not info["isthing"]]
        found.sort(key=lambda info: -info["area"])
        return {self.class_names[info["category_id"]]: info["area"] / self.ids.size for info in found}

    def describe(self) -> str:
        """Return the number of objects of each class and the shares of the others, such as "2 cat; sky 45%"."""
        counts, shares = self.counts(), self.shares()
        parts = ([describe_counts(counts)] if counts else []) + ([describe_shares(shares)] if shares else [])
        return "; ".join(parts) or "no segments"

    def keep_classes(self, classes: Sequence[int]) -> PanopticSegments:
        """Return the segments of some classes. The pixels of the others have no segment.

        Args:
            classes: Indices of the classes to keep.
        """
        kept = [info for info in self.segments_info if info["category_id"] in classes]
        ids = np.where(np.isin(self.ids, [info["id"] for info in kept]), self.ids, 0)
        return PanopticSegments(ids, kept, self.class_names, self.thing_count, self._image)

    def plot(self, width: int | None = None) -> Picture:
        """Draw the segments and their names on the image, as `pvt-det predict` does.

        Args:
            width: Width of the drawing in pixels. None keeps the width of the image, but enlarges small images to 640
                pixels.

        Returns:
            The drawing, `H×W×3` uint8 RGB.

        Raises:
            ConfigError: The image is not known.
            DataError: The image file cannot be read any more, or has a different size than the map.
        """
        return draw_segments(original_pixels(self._image, (self.ids.shape[0], self.ids.shape[1])), self, width)

    def save(self, path: str | os.PathLike[str], width: int | None = None) -> Path:
        """Draw the segments on the image as `plot` does, and write the drawing.

        Args:
            path: Image file to write, such as "found.jpg". Its folder is created if it does not exist.
            width: Width of the drawing in pixels. None keeps the width of the image, but enlarges small images to 640
                pixels.

        Returns:
            The path of the file.

        Raises:
            ConfigError: The image is not known, or the path has no suffix of an image format.
            DataError: The image file cannot be read any more, or has a different size than the map.
        """
        return write_picture(self.plot(width), Path(path))


def measured(ids: NDArray[np.int32], infos: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add area and box to segments. Segments without a pixel are left out.

    Args:
        ids: Id of the segment of each pixel, `H×W`.
        infos: A dict with an `id` for each segment.
    """
    found = []
    for info in infos:
        mask = (ids == info["id"]).view(np.uint8)
        if area := cv2.countNonZero(mask):
            found.append({**info, "area": area, "bbox": list(cv2.boundingRect(mask))})
    return found


def draw_segments(
    pixels: Picture, found: PanopticSegments, width: int | None = None, *, distinct: bool = True
) -> Picture:
    """Draw at most 255 segments on their image, the largest ones.

    Args:
        pixels: `H×W×3` uint8 RGB image.
        found: The segments of the image.
        width: Width of the drawing in pixels. None keeps the width of the image, but enlarges small images to 640
            pixels.
        distinct: Whether neighboring objects of one class have different colors, which would flicker in a video.
    """
    shown = sorted(found.segments_info, key=lambda info: -info["area"])[:_MAX_SHOWN]
    table = np.full(int(found.ids.max(initial=0)) + 1, _NONE, np.uint8)
    table[[info["id"] for info in shown]] = np.arange(len(shown))
    names = [_name(info, found.class_names) for info in shown]
    colors = _colors(shown, len(found.class_names), distinct=distinct)
    return draw_regions(pixels, table[found.ids], names, colors, width or drawing_width(pixels))


def _name(info: Mapping[str, Any], class_names: Sequence[str]) -> str:
    name = class_names[info["category_id"]]
    return f"{name} {info['score']:.0%}" if "score" in info else name


def _colors(infos: Sequence[Mapping[str, Any]], class_count: int, *, distinct: bool) -> NDArray[np.uint8]:
    """Return the colors of segments, `N×3`: those of objects differ from their neighbors'."""
    classes = [info["category_id"] for info in infos]
    colors = class_colors()[np.array(classes, int) % len(class_colors())].copy()
    things = [number for number, info in enumerate(infos) if info["isthing"]]
    boxes = np.array([infos[number]["bbox"] for number in things], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    chosen = object_colors(boxes, [classes[number] for number in things], class_count, distinct=distinct)
    for number, color in zip(things, chosen, strict=True):
        colors[number] = color
    return colors
