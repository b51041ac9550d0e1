"""Detections of an image in compact form, and writing them in COCO's results format."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.structures import Instances

from pvt_det.errors import DataError, diverged
from pvt_det.evaluation.ground_truth import GroundTruth
from pvt_det.structures.masks import RunLengthMasks
from pvt_det.utils.files import write_json_list


@dataclass(frozen=True)
class Detections:
    """Detections of one image.

    Attributes:
        image_id: Image id in the annotation file.
        boxes: Boxes `N×4` as x, y, width and height in pixels.
        scores: Scores `N` in [0, 1].
        classes: Contiguous class indices `N`, from 0.
        masks: `N` masks in COCO's compressed run-length encoding, or None for a model without masks.
        size: Height and width of the image in pixels.
    """

    image_id: int
    boxes: npt.NDArray[np.floating[Any]]
    scores: npt.NDArray[np.floating[Any]]
    classes: npt.NDArray[np.int64]
    masks: list[bytes] | None
    size: tuple[int, int]

    def with_score(self, minimum: float) -> Detections:
        """Return the detections with at least this score.

        Args:
            minimum: The score, 0 to 1.
        """
        kept = self.scores >= minimum
        masks = None if self.masks is None else list(compress(self.masks, kept))
        return replace(self, boxes=self.boxes[kept], scores=self.scores[kept], classes=self.classes[kept], masks=masks)

    def rles(self) -> list[dict[str, Any]]:
        """Return the masks in the format of pycocotools, `{"size": …, "counts": …}`."""
        size = list(self.size)
        return [{"size": size, "counts": counts} for counts in self.masks or ()]


def pack_detections(instances: Instances, image_id: int, name: str = "") -> Detections:
    """Convert the model's output for one image.

    Args:
        instances: The output of the model. Masks are `RunLengthMasks`, or a bool tensor `N×H×W`, which is run-length
            encoded.
        image_id: Image id in the annotation file.
        name: Name of the image in messages. "" names it by its id.

    Returns:
        The detections, on the CPU.

    Raises:
        NumericError: If a box or score is NaN or infinite.
    """
    boxes = instances.pred_boxes.tensor.detach().float().cpu().numpy().copy()
    scores = instances.scores.detach().float().cpu().numpy()
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise diverged(f"image {name or image_id}: the model predicts boxes or scores")
    boxes[:, 2:] -= boxes[:, :2]
    masks = _runs(instances.pred_masks) if instances.has("pred_masks") else None
    return Detections(image_id, boxes, scores, instances.pred_classes.cpu().numpy(), masks, instances.image_size)


def _runs(masks: torch.Tensor | RunLengthMasks) -> list[bytes]:
    return (masks if isinstance(masks, RunLengthMasks) else RunLengthMasks.encode(masks)).counts


def write_results(path: Path, detections: Iterable[Detections], category_ids: npt.NDArray[np.int64]) -> None:
    """Write detections in COCO's results format. The file is written atomically.

    Args:
        path: The JSON file to write. Its folder is created if needed.
        detections: Detections of all images.
        category_ids: Category id in the annotation file of every contiguous class index.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_list(
        path,
        ({"image_id": image.image_id, **result} for image in detections for result in as_json(image, category_ids)),
    )


def read_results(path: Path, truth: GroundTruth) -> list[Detections]:
    """Read detections that `write_results` wrote.

    Args:
        path: The JSON file.
        truth: Ground truth of the images, which defines the size of each image and the order of the categories.

    Returns:
        Detections of the images that have any, in the order of the file.

    Raises:
        DataError: If the file cannot be read, or names an unknown image or category.
    """
    classes = {category: number for number, category in enumerate(truth.category_ids.tolist())}
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth.images}
    by_image: dict[int, list[dict[str, Any]]] = {}
    try:
        for result in json.loads(path.read_bytes()):
            by_image.setdefault(result["image_id"], []).append(result)
        return [
            Detections(
                image,
                np.array([result["bbox"] for result in found], dtype=np.float64),
                np.array([result["score"] for result in found], dtype=np.float64),
                np.array([classes[result["category_id"]] for result in found], dtype=np.int64),
                [r["segmentation"]["counts"].encode() for r in found] if "segmentation" in found[0] else None,
                sizes[image],
            )
            for image, found in by_image.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"Results {path} cannot be read ({error!r}).") from error


def as_json(image: Detections, category_ids: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """Convert the detections of an image to COCO's results format, without `image_id`.

    Args:
        image: The detections.
        category_ids: Category id in the annotation file of every contiguous class index.
    """
    columns = (category_ids[image.classes].tolist(), image.boxes.tolist(), image.scores.tolist())
    results = [
        {"category_id": category, "bbox": box, "score": score} for category, box, score in zip(*columns, strict=True)
    ]
    if image.masks is not None:
        size = list(image.size)
        for result, counts in zip(results, image.masks, strict=True):
            result["segmentation"] = {"size": size, "counts": counts.decode("ascii")}
    return results
