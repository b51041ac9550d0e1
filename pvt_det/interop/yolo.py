"""Write detections as YOLO label files, which annotation tools and `pvt-det inspect` read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pvt_det.inference.formats import DetectionFormat
from pvt_det.interop.outlines import joined, outlines

YOLO_NAME, LABELS_NAME, CLASSES_NAME = "yolo", "labels", "classes.txt"


class YoloFiles(DetectionFormat):
    """Writes `yolo/labels/NAME.txt` for each image or frame, and the class names to `yolo/classes.txt`.

    A line is `class x_center y_center width height score`, or `class x1 y1 x2 y2 … score` for a detection with a mask.
    Coordinates are fractions of the width and height of the image. An image without detections has an empty file.
    """

    def write(self, folder: Path, images: Iterable[dict[str, Any]], class_names: Sequence[str]) -> None:
        """Write the label files of all images.

        Args:
            folder: The output folder of the prediction.
            images: The images as in `predictions.part.jsonl`.
            class_names: Class names, by class index.

        Raises:
            OSError: A file cannot be written.
        """
        root = folder / YOLO_NAME
        root.mkdir(exist_ok=True)
        (root / CLASSES_NAME).write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
        for image in images:
            file = root / LABELS_NAME / f"{image['name']}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            size = image["width"], image["height"]
            lines = (_line(detection, size) for detection in image["detections"])
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _line(detection: dict[str, Any], size: tuple[int, int]) -> str:
    x, y, width, height = detection["bbox"]
    points: NDArray[np.float64] = np.array([[x + width / 2, y + height / 2], [width, height]])
    if "segmentation" in detection:
        parts = outlines(detection["segmentation"])
        # A line without points would be invalid, so that an empty mask becomes its box.
        corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
        points = joined(chain.from_iterable(parts)) if parts else corners
    values = np.ravel(points / size).clip(0, 1)
    return " ".join([str(detection["category_id"] - 1), *(f"{v:.6f}" for v in values), f"{detection['score']:.6f}"])
