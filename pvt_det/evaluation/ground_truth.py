"""Ground truth of a data set in the form that hotcoco and pycocotools need."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import hotcoco
import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO

from pvt_det.data.coco.annotations import CocoData
from pvt_det.data.coco.cache import load_annotations
from pvt_det.errors import DataError
from pvt_det.utils.files import write_atomically

if TYPE_CHECKING:  # `compare` also reads results of classifiers, without Detectron2
    from detectron2.data.catalog import Metadata

# COCO's limit on detections per image, and the smallest one used here.
COCO_MAX_DETECTIONS = 100
_IMAGE_KEYS = ("id", "file_name", "width", "height")


@dataclass(frozen=True)
class GroundTruth(CocoData):
    """Checked annotations, convertible for the evaluators.

    Annotation ids are not used. For pycocotools the objects are renumbered from 1, because it treats a match with id 0
    as no match.
    """

    @property
    def image_ids(self) -> set[int]:
        """Ids of all images."""
        return {image["id"] for image in self.images}

    @property
    def category_ids(self) -> npt.NDArray[np.int64]:
        """Category id of every contiguous class index."""
        return np.array([category["id"] for category in self.categories], dtype=np.int64)

    def with_masks(self) -> GroundTruth:
        """Return the ground truth without the objects that have no mask."""
        return replace(self, annotations=[a for a in self.annotations if a.get("segmentation")])

    def hotcoco(self, *, masks: bool = False) -> hotcoco.COCO:
        """Convert to a hotcoco data set.

        Args:
            masks: Whether to include the masks. Every object must then have one, see `with_masks`.

        Returns:
            The data set.
        """
        annotations = self.annotations
        return hotcoco.COCO.from_arrays(
            # Evaluation needs no other keys, and hotcoco rejects some types of values.
            [{"file_name": "", **{key: i[key] for key in i if key in _IMAGE_KEYS}} for i in self.images],
            [{key: category[key] for key in ("id", "name")} for category in self.categories],
            np.array([a["image_id"] for a in annotations], dtype=np.int64),
            np.array([a["category_id"] for a in annotations], dtype=np.int64),
            np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4),
            area=np.array([a["area"] for a in annotations], dtype=np.float64),
            iscrowd=np.array([a["iscrowd"] for a in annotations], dtype=np.int64),
            segmentation=[a["segmentation"] for a in annotations] if masks else None,
        )

    def pycocotools(self) -> COCO:
        """Convert to a pycocotools data set."""
        api = COCO()
        api.dataset = {
            "info": {},
            "images": self.images,
            "categories": self.categories,
            "annotations": [{**a, "id": number} for number, a in enumerate(self.annotations, start=1)],
        }
        api.createIndex()
        return api


def load_ground_truth(metadata: Metadata) -> GroundTruth:
    """Load the checked ground truth of a registered data set.

    Args:
        metadata: Metadata with `coco_source` (if this package registered the data set) or `json_file`.

    Returns:
        The ground truth.

    Raises:
        DataError: If the annotations cannot be used.
    """
    source = metadata.get("coco_source")
    if source is not None:
        data = source.load()
        return GroundTruth(data.images, data.annotations, data.categories)
    return check_ground_truth(metadata.json_file)


def check_ground_truth(json_file: str | Path) -> GroundTruth:
    """Read and check an annotation file, as for a registered data set.

    Args:
        json_file: A file in COCO's instances format. Images may be outside the file's folder.

    Returns:
        The ground truth.

    Raises:
        DataError: If the file cannot be read, or has problems that cannot be fixed.
    """
    data, findings = load_annotations(json_file, allow_outside=True)
    findings.raise_if_refused(str(json_file), "stop")
    return GroundTruth(data.images, data.annotations, data.categories)


def write_ground_truth(path: Path, truth: GroundTruth, left_out: Iterable[int], *, masks: bool) -> None:
    """Write the ground truth of an evaluation, so that reports and comparisons use exactly the same.

    Args:
        path: The JSON file to write, in COCO's instances format. Its folder must exist.
        truth: The ground truth of the evaluated images.
        left_out: Ids of images that could not be read and are not part of `truth`.
        masks: Whether to write the masks.
    """
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd", *(("segmentation",) if masks else ()))
    content = {
        "info": {"description": "checked ground truth of an evaluation", "unreadable_images": sorted(left_out)},
        "images": [{key: image[key] for key in _IMAGE_KEYS if key in image} for image in truth.images],
        "categories": [{"id": category["id"], "name": category["name"]} for category in truth.categories],
        "annotations": [
            {"id": number, **{key: a[key] for key in keys if key in a}}
            for number, a in enumerate(truth.annotations, start=1)
        ],
    }
    write_atomically(path, json.dumps(content))


def read_ground_truth(json_file: str | Path) -> GroundTruth:
    """Read the ground truth that `write_ground_truth` wrote.

    Args:
        json_file: The file.

    Returns:
        The ground truth.

    Raises:
        DataError: If the file cannot be read, or is not in COCO's instances format.
    """
    try:
        data = json.loads(Path(json_file).read_bytes())
        return GroundTruth(data["images"], data["annotations"], data["categories"])
    except OSError as error:
        raise DataError(f"ground truth {json_file} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"ground truth {json_file} is not in COCO's instances format ({error!r}).") from error
