"""Predictions for images that visitors of the page of `pvt_det.inference.app` upload.

The model runs once for each image. Moving the score threshold only filters what it found.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL.Image

from pvt_det.errors import PvtDetError
from pvt_det.evaluation.detections import as_json, pack_detections
from pvt_det.inference.load import AnyPredictor
from pvt_det.inference.panoptic_files import categories, coco_segments, write_ids
from pvt_det.inference.predictions import Detections, LabelMap, describe_counts, describe_shares
from pvt_det.inference.predictor import Predictor
from pvt_det.inference.segments import PanopticSegments
from pvt_det.structures.masks import RunLengthMasks
from pvt_det.utils.files import write_atomically

# Drawing, description and files to download.
Shown: TypeAlias = tuple[Path | None, str, list[str] | None]


@dataclass(frozen=True)
class Found:
    """What the model found in an uploaded image.

    Attributes:
        path: The uploaded file.
        prediction: All detections above the threshold of the config, the label map, or the segments.
        folder: Folder for the files to download.
    """

    path: Path
    prediction: Detections | LabelMap | PanopticSegments
    folder: Path


class Results:
    """Runs the model and prepares what the page shows.

    Args:
        model: The model.
        folder: Folder for the results, which must exist.

    Attributes:
        lowest_score: The lowest score threshold that has an effect, 0 to 1.
    """

    def __init__(self, model: AnyPredictor, folder: Path) -> None:
        self._model = model
        self._folder = folder
        self.lowest_score = model.score_threshold if isinstance(model, Predictor) else 0.0

    def predict(
        self, previous: Found | None, upload: str | None, threshold: float
    ) -> tuple[Found | None, Path | None, str, list[str] | None]:
        """Run the model on an uploaded image.

        Args:
            previous: What was found in the visitor's previous image. Its files are removed.
            upload: The uploaded file, or None if it was removed.
            threshold: Minimum score of the detections to show, 0 to 1.

        Returns:
            What was found, the drawing, its description and the files to download. For an image that cannot be used,
            the description says why.
        """
        self.remove(previous)
        if upload is None:
            return None, None, "", None
        path = Path(upload)
        try:
            prediction = self._model(path)
        except PvtDetError as error:
            return None, None, _message(error, path), None
        if isinstance(prediction, Detections) and prediction.has("pred_masks"):
            masks = prediction.pred_masks
            # Bool masks of a large image would take gigabytes for each visitor.
            prediction.pred_masks = masks if isinstance(masks, RunLengthMasks) else RunLengthMasks.encode(masks)
        found = Found(path, prediction, Path(tempfile.mkdtemp(dir=self._folder)))
        return found, *self.show(found, threshold)

    def show(self, found: Found | None, threshold: float) -> Shown:
        """Draw and describe what was found, without running the model.

        Args:
            found: What `predict` found.
            threshold: Minimum score of the detections to show, 0 to 1.

        Returns:
            The drawing, its description and the files to download.
        """
        if found is None:
            return None, "", None
        prediction, stem = found.prediction, found.path.stem
        if isinstance(prediction, Detections):
            prediction = prediction[prediction.scores >= threshold]
            text, files = describe_counts(prediction.counts()), _write_detections(found, prediction)
        elif isinstance(prediction, PanopticSegments):
            text, files = prediction.describe(), _write_segments(found, prediction)
        else:
            text, files = describe_shares(prediction.shares()), _write_labels(found, prediction)
        try:
            picture = prediction.save(found.folder / f"{stem}.jpg")
        except PvtDetError as error:
            return None, _message(error, found.path), None
        return picture, text, [str(file) for file in files]

    def remove(self, found: Found | None) -> None:
        """Remove the files of results that are not shown any more.

        Args:
            found: What `predict` found. None removes nothing.
        """
        if found is not None:
            shutil.rmtree(found.folder, ignore_errors=True)


def _message(error: PvtDetError, path: Path) -> str:
    """Return the message of an error with the name of the uploaded file instead of its path on this machine."""
    return str(error).replace(str(path), path.name)


def _write_detections(found: Found, detections: Detections) -> list[Path]:
    """Write the detections with their image and the classes, in COCO's format."""
    numbers = np.arange(1, len(detections.class_names) + 1)
    objects = as_json(pack_detections(detections, 1), numbers)
    return [
        _write_json(
            found,
            detections.image_size,
            {
                "annotations": [{"id": number, "image_id": 1, **each} for number, each in enumerate(objects, start=1)],
                "categories": _categories(detections.class_names, 1),
            },
        )
    ]


def _write_labels(found: Found, labels: LabelMap) -> list[Path]:
    """Write the label map, and the share of each class."""
    picture = found.folder / f"{found.path.stem}.png"
    PIL.Image.fromarray(np.asarray(labels)).save(picture)
    content = {"labels": picture.name, "shares": labels.shares(), "categories": _categories(labels.class_names, 0)}
    return [_write_json(found, (labels.shape[0], labels.shape[1]), content), picture]


def _write_segments(found: Found, segments: PanopticSegments) -> list[Path]:
    """Write the segments in COCO's panoptic format: a PNG file of ids, and what they are."""
    picture = write_ids(segments.ids, found.folder / f"{found.path.stem}.png")
    annotation = {"image_id": 1, "file_name": picture.name, "segments_info": coco_segments(segments)}
    content = {"annotations": [annotation], "categories": categories(segments.class_names, segments.thing_count)}
    return [_write_json(found, (segments.ids.shape[0], segments.ids.shape[1]), content), picture]


def _write_json(found: Found, size: tuple[int, int], content: Mapping[str, Any]) -> Path:
    image = {"id": 1, "file_name": found.path.name, "width": size[1], "height": size[0]}
    file = found.folder / f"{found.path.stem}.json"
    write_atomically(file, json.dumps({"images": [image], **content}, ensure_ascii=False))
    return file


def _categories(names: Sequence[str], first: int) -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for number, name in enumerate(names, first)]
