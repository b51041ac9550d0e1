"""Write detections as LabelMe files, to correct them by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pvt_det.inference.formats import DetectionFormat
from pvt_det.inference.sources import Source
from pvt_det.inference.urls import is_url
from pvt_det.interop.outlines import joined, outlines
from pvt_det.utils.visualizer import Picture

LABELME_NAME = "labelme"
_VERSION = "5.5.0"  # of LabelMe, whose later versions read the same format
_QUALITY = 95


class LabelMeFiles(DetectionFormat):
    """Writes `labelme/NAME.json` for each image or frame, with a rectangle or polygons for each detection.

    The files refer to the images by relative paths. Frames of videos and images from the network are saved beside them.
    A mask of several parts becomes polygons with the same `group_id`. The score is saved as `score`.
    """

    def add(self, folder: Path, source: Source, pixels: Picture, frame: int | None) -> None:
        """Save the image.

        Args:
            folder: The output folder of the prediction.
            source: The image, or the video of the frame.
            pixels: `H×W×3` uint8 RGB image.
            frame: Number of the frame in its video, from 1. None for an image.

        Raises:
            OSError: The file cannot be written.
        """
        file = folder / LABELME_NAME / f"{source.output_name(frame)}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, quality=_QUALITY)

    def write(self, folder: Path, images: Iterable[dict[str, Any]], class_names: Sequence[str]) -> None:
        """Write the files of all images.

        Args:
            folder: The output folder of the prediction.
            images: The images as in `predictions.part.jsonl`.
            class_names: Class names, by class index.

        Raises:
            OSError: A file cannot be written.
        """
        for image in images:
            file = folder / LABELME_NAME / f"{image['name']}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            saved = file.with_name(file.name.removesuffix(".json") + ".jpg")
            is_file = "frame" not in image and not is_url(image["file_name"])
            content = {
                "version": _VERSION,
                "flags": {},
                "shapes": list(_shapes(image["detections"], class_names)),
                "imagePath": os.path.relpath(image["file_name"], file.parent) if is_file else saved.name,
                "imageData": None,
                "imageHeight": image["height"],
                "imageWidth": image["width"],
            }
            text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
            file.write_bytes(text.encode("utf-8", errors="backslashreplace"))


def _shapes(detections: Sequence[dict[str, Any]], class_names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, detection in enumerate(detections, start=1):
        parts = outlines(detection["segmentation"]) if "segmentation" in detection else []
        x, y, width, height = detection["bbox"]
        polygons = [joined(rings).tolist() for rings in parts] or [[[x, y], [x + width, y + height]]]
        for points in polygons:
            yield {
                "label": class_names[detection["category_id"] - 1],
                "points": points,
                "group_id": number if len(polygons) > 1 else None,
                "description": "",
                "shape_type": "polygon" if parts else "rectangle",
                "flags": {},
                "mask": None,
                "score": detection["score"],
            }
