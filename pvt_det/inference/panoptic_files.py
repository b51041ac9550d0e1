"""Write segments in COCO's panoptic format: PNG files of segment ids, and a JSON file that describes the segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pvt_det.evaluation.panoptic import id_to_rgb
from pvt_det.inference.files import OutputFiles
from pvt_det.inference.journal import Journal
from pvt_det.inference.segments import PanopticSegments, draw_segments
from pvt_det.inference.sources import Source
from pvt_det.inference.tables import write_panoptic
from pvt_det.run_folder import PANOPTIC_NAME
from pvt_det.utils.colors import class_colors
from pvt_det.utils.visualizer import Picture


class PanopticFiles(OutputFiles[PanopticSegments]):
    """The output folder of a panoptic segmentation.

    `panoptic/NAME.png` contains the id of the segment of each pixel as a color, id = R + 256 G + 256² B, and
    `panoptic.json` describes the segments.

    Args:
        journal: The predictions so far, in the folder to write to. The folder is created if it does not exist.
        class_names: Class names, by class index: the classes of objects, then the others. The category id is the class
            index plus 1.
        thing_count: Number of classes of objects.
        pictures: Whether to draw the segments.
        settings: What else the predictions depend on, as JSON values. A run can only be resumed with the same.
        folder: Folder for all but the tables, `images.json` and so on. None takes that of the journal.

    Raises:
        ConfigError: The folder cannot be created or written, or belongs to a run or an evaluation.
    """

    def __init__(
        self,
        journal: Journal,
        class_names: tuple[str, ...],
        thing_count: int,
        *,
        pictures: bool,
        settings: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        super().__init__(journal, class_names, pictures=pictures, settings=settings, folder=folder)
        self.thing_count = thing_count

    @property
    def masks(self) -> Path:
        """Folder of the PNG files."""
        return (self.folder / PANOPTIC_NAME).with_suffix("")

    def keep_classes(self, prediction: PanopticSegments, classes: Sequence[int]) -> PanopticSegments:
        """Return the segments of some classes.

        Args:
            prediction: The segments of an image.
            classes: Indices of the classes to keep.
        """
        return prediction.keep_classes(classes)

    def save(
        self, source: Source, pixels: Picture | None, prediction: PanopticSegments, frame: int | None = None
    ) -> list[dict[str, Any]]:
        """Save the segment ids as `panoptic/NAME.png`.

        Args:
            source: The image, or the video of the frame.
            pixels: Not used.
            prediction: The segments of the image.
            frame: Number of the frame in its video, from 1. None for an image.

        Returns:
            The segments as COCO's `segments_info`.
        """
        write_ids(prediction.ids, self.masks / f"{source.output_name(frame)}.png")
        return coco_segments(prediction)

    def draw(self, pixels: Picture, prediction: PanopticSegments, *, in_video: bool = False) -> Picture:
        """Draw at most 255 segments on their image, the largest ones. Small images are enlarged.

        Args:
            pixels: `H×W×3` uint8 RGB image.
            prediction: The segments of the image.
            in_video: Whether the image is a frame of a video. Then an object has the color of its class.
        """
        return draw_segments(pixels, prediction, distinct=not in_video)

    def describe(self, prediction: PanopticSegments) -> str:
        """Return the number of objects of each class and the shares of the others, such as "2 cat; sky 45%".

        Args:
            prediction: The segments of an image.
        """
        return prediction.describe()

    def finish(self) -> None:
        """Write `panoptic.json` and `images.json`, and remove the journal."""
        names = categories(self.class_names, self.thing_count)
        write_panoptic(self.journal.path.parent, self.journal.images_so_far, names)
        super().finish()


def write_ids(ids: NDArray[np.int32], path: Path) -> Path:
    """Write segment ids as the colors of a PNG file.

    Args:
        ids: Id of the segment of each pixel, `H×W`.
        path: The file to write. Its folder is created if it does not exist.

    Returns:
        The path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(id_to_rgb(ids)).save(path)
    return path


def coco_segments(found: PanopticSegments) -> list[dict[str, Any]]:
    """Return the segments of an image as COCO's `segments_info`, with the scores of objects.

    Args:
        found: The segments. The category id is the class index plus 1.
    """
    kept = ("id", "score", "area", "bbox")
    return [
        {"category_id": info["category_id"] + 1, "iscrowd": 0, **{key: info[key] for key in kept if key in info}}
        for info in found.segments_info
    ]


def categories(class_names: Sequence[str], thing_count: int) -> list[dict[str, Any]]:
    """Return COCO's `categories` of a panoptic segmentation, with a color for tools that draw them.

    Args:
        class_names: Class names, by class index: the classes of objects, then the others.
        thing_count: Number of classes of objects.
    """
    colors = class_colors()
    return [
        {"id": index + 1, "name": name, "isthing": int(index < thing_count), "color": colors[index % 256].tolist()}
        for index, name in enumerate(class_names)
    ]
