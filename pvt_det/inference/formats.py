"""The interface of formats of other tools, in which a prediction can also be written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pvt_det.inference.sources import Source
from pvt_det.utils.visualizer import Picture


class DetectionFormat(ABC):
    """Writes the detections of a run in the format of another tool, in addition to COCO json."""

    def add(self, folder: Path, source: Source, pixels: Picture, frame: int | None) -> None:
        """Receive an image that is not a file, while it is in memory. By default, nothing is done.

        Args:
            folder: The output folder of the prediction.
            source: The image, or the video of the frame.
            pixels: `H×W×3` uint8 RGB image.
            frame: Number of the frame in its video, from 1. None for an image.
        """
        return

    @abstractmethod
    def write(self, folder: Path, images: Iterable[dict[str, Any]], class_names: Sequence[str]) -> None:
        """Write the detections of all images, at the end of a run.

        Args:
            folder: The output folder of the prediction.
            images: The images as in `predictions.part.jsonl`: dicts with `file_name`, `name`, `height`, `width`,
                `detections` in COCO's results format and, for a frame of a video, `frame` and `time`.
            class_names: Class names, by class index. The category id of a detection is the class index plus 1.
        """
