"""Convert detections to those of the package supervision and back, to draw, count and filter them with its tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from pvt_det.errors import DataError
from pvt_det.inference.predictions import Detections
from pvt_det.structures.masks import RunLengthMasks
from pvt_det.utils.extras import require_packages

if TYPE_CHECKING:
    import supervision as sv

_CLASS_NAME = "class_name"  # supervision's annotators look for class names under this key


def to_supervision(instances: Instances, class_names: Sequence[str] = ()) -> sv.Detections:
    """Convert detections to `supervision.Detections`.

    Args:
        instances: The objects in an image, from `Predictor` or any other model of Detectron2. The fields `pred_boxes`,
            `scores` and `pred_classes` are required. `pred_masks` and `track_ids` are converted if they exist. All
            masks are decoded, which takes `N·H·W` bytes.
        class_names: Class names, by class index. If empty, those of `instances` are used if it has any.

    Returns:
        The detections with `xyxy`, `confidence`, `class_id`, `mask` and `tracker_id`, in the same order. The name of
        each object's class is in `data["class_name"]` if the class names are known.

    Raises:
        ConfigError: The package supervision is not installed.
    """
    sv = _supervision()
    names = tuple(class_names) or getattr(instances, "class_names", ())
    classes = instances.pred_classes.cpu().numpy().astype(np.int64)
    masks = instances.pred_masks if instances.has("pred_masks") else None
    if isinstance(masks, torch.Tensor):
        masks = masks.cpu()
    return sv.Detections(
        xyxy=instances.pred_boxes.tensor.detach().cpu().numpy(),
        confidence=instances.scores.detach().cpu().numpy(),
        class_id=classes,
        mask=None if masks is None else np.asarray(masks, dtype=bool),
        tracker_id=instances.track_ids.cpu().numpy() if instances.has("track_ids") else None,
        data={_CLASS_NAME: np.array(names, dtype=np.str_)[classes]} if names else {},
    )


def from_supervision(
    detections: sv.Detections, image_size: tuple[int, int], class_names: Sequence[str] = ()
) -> Detections:
    """Convert `supervision.Detections` to the detections that `Predictor` returns.

    Args:
        detections: The objects in an image. They need a confidence and a class id.
        image_size: Height and width of the image in pixels.
        class_names: Class names, by class index. If empty, they are taken from `data["class_name"]`, which names only
            the classes of the objects. The other classes are then called "class 0", "class 1" and so on.

    Returns:
        The detections in the same order, on the CPU. `mask` becomes `pred_masks`, and `tracker_id` becomes
        `track_ids`.

    Raises:
        DataError: The detections have no confidence or class id, a class id is negative or has no name, or the masks
            do not have the size of the image.
    """
    for field in ("confidence", "class_id"):
        if getattr(detections, field) is None and len(detections):
            raise DataError(f"The detections have no {field}. Expected one for each of the {len(detections)} objects.")
    classes = _array(detections.class_id, np.int64)
    fields: dict[str, Any] = {
        "pred_boxes": Boxes(torch.from_numpy(_array(detections.xyxy, np.float32).reshape(-1, 4))),
        "scores": torch.from_numpy(_array(detections.confidence, np.float32)),
        "pred_classes": torch.from_numpy(classes),
    }
    if detections.mask is not None:
        masks = np.asarray(detections.mask, dtype=bool)
        if masks.shape[1:] != tuple(image_size):
            raise DataError(f"The masks have shape {masks.shape}. Expected N x H x W with the image size {image_size}.")
        fields["pred_masks"] = RunLengthMasks.encode(torch.from_numpy(masks))
    if detections.tracker_id is not None:
        fields["track_ids"] = torch.from_numpy(_array(detections.tracker_id, np.int64))
    names = tuple(class_names) or _names(classes, detections.data.get(_CLASS_NAME))
    if len(classes) and not 0 <= classes.min() <= classes.max() < len(names):
        raise DataError(
            f"The class ids are {classes.min()} to {classes.max()}. Expected 0 to {len(names) - 1}, since there are "
            f"{len(names)} class names."
        )
    return Detections(image_size, class_names=names, **fields)


def _names(classes: np.ndarray[Any, np.dtype[np.int64]], given: Any) -> tuple[str, ...]:
    known = {} if given is None else dict(zip(classes.tolist(), map(str, given), strict=True))
    return tuple(known.get(index, f"class {index}") for index in range(classes.max(initial=-1) + 1))


def _array(values: Any, dtype: Any) -> np.ndarray[Any, Any]:
    # A copy: the detections do not change with those of supervision.
    return np.array([] if values is None else values, dtype=dtype)


def _supervision() -> Any:
    require_packages("Conversion to supervision", "supervision>=0.30", extra="supervision")
    import supervision

    return supervision
