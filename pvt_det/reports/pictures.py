"""Draw images of a run with their ground truth and the detections."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from pvt_det.config import load_config
from pvt_det.data.images import read_image
from pvt_det.data.storage.places import file_fault, folder_fault
from pvt_det.data.storage.references import Reference, base_name
from pvt_det.data.storage.references import join as reference
from pvt_det.errors import DataError
from pvt_det.evaluation.ground_truth import GroundTruth
from pvt_det.results import Run
from pvt_det.run_folder import CONFIG_NAME
from pvt_det.utils.html import Html, join, mosaic, pair, picture
from pvt_det.utils.visualizer import MAX_SHOWN, Picture, caption_of, draw

_WORST = 12
_WIDTH = 560  # pixels of each of two drawings side by side
_IN_MOSAIC = 12
_TILE = 360  # pixels


def evaluated_images(run: Run, folder: Reference | None = None) -> dict[int, str]:
    """Return the path or URL of each image that a run was evaluated on, by image id.

    Args:
        run: The run.
        folder: Folder of the images. None takes the one that the run's config names.

    Raises:
        PvtDetError: If the config or the ground truth is missing or broken, or an image does not exist.
    """
    folder = folder or _image_folder(run)
    if fault := folder_fault(folder):
        raise DataError(f"{folder} {fault}.")
    images = {image["id"]: reference(folder, image["file_name"]) for image in run.read_ground_truth().images}
    if missing := next((path for path in images.values() if file_fault(path)), None):
        raise DataError(f"{missing} does not exist.")
    return images


def _image_folder(run: Run) -> str:
    """Return the folder that a run's config names for the evaluated images."""
    config = run.folder / CONFIG_NAME
    if not config.is_file():
        raise DataError(f"{config} does not exist.")
    named = load_config(config, training=False).DATASETS.VAL_IMAGES
    root = named or MetadataCatalog.get(run.dataset).get("image_root", "")
    if not root:
        raise DataError(f"{config} does not name the folder of the images of {run.dataset}.")
    return root


class Gallery:
    """Draws the images of a detector's run.

    Args:
        run: The run.
        images: Path or URL of each evaluated image by image id, as `evaluated_images` returns them.
        threshold: Minimum score of the detections.

    Raises:
        DataError: The ground truth or the detections cannot be read.
    """

    def __init__(self, run: Run, images: Mapping[int, str], threshold: float) -> None:
        assert run.detections_file is not None
        truth = run.read_ground_truth()
        found = [each for each in _read_results(run.detections_file) if each["score"] >= threshold]
        self._names = [category["name"] for category in truth.categories]
        self._objects = _by_image(truth, truth.annotations)
        self._detections = _by_image(truth, sorted(found, key=lambda each: -each["score"]))
        self._images = {image: images[image] for image in sorted(truth.image_ids) if image in images}

    def mosaic(self) -> Html:
        """Draw images from the whole data set: first with the ground truth, then the same with the detections.

        Raises:
            DataError: An image cannot be read.
        """
        images = list(self._images)
        chosen = [images[k] for k in np.linspace(0, len(images) - 1, min(_IN_MOSAIC, len(images))).round().astype(int)]
        drawn = [self._draw(image, _TILE) for image in chosen]
        names = [base_name(self._images[image]) for image in chosen]
        parts = []
        for title, pictures in zip(("Ground truth", "Detections"), zip(*drawn, strict=True), strict=True):
            tiles = [picture(each, name, quality=80) for each, name in zip(pictures, names, strict=True)]
            parts.append(join(Html(f"<h3>{title}</h3>"), mosaic(tiles)))
        return join(*parts)

    def worst(self, shown: hotcoco.COCOeval) -> Html:
        """Draw the images with the most errors, with the ground truth beside the detections.

        Args:
            shown: Evaluator of the boxes that reach the score threshold.

        Returns:
            The drawings, or "" if no image has an error.

        Raises:
            DataError: An image cannot be read.
        """
        summary = shown.image_diagnostics(score_thr=0.0)["img_summary"]
        errors = {image: (each["fn"], each["fp"]) for image, each in summary.items() if each["fn"] + each["fp"]}
        ranked = sorted(errors, key=lambda image: (-sum(errors[image]), image))[:_WORST]
        parts = []
        for image in ranked:
            if image in self._images:
                missed, wrong = errors[image]
                caption = f"{base_name(self._images[image])}: {missed} missed, {wrong} false"
                caption = caption_of(caption, len(self._objects[image]))
                parts.append(pair(*self._draw(image, _WIDTH), caption, quality=80))
        return join(*parts)

    def _draw(self, image: int, width: int) -> tuple[Picture, Picture]:
        """Return an image with its objects, and with its detections."""
        pixels = read_image(self._images[image], "RGB")
        objects, found = (
            draw(pixels, each[image][:MAX_SHOWN], self._names, width) for each in (self._objects, self._detections)
        )
        return objects, found


def _by_image(truth: GroundTruth, objects: Iterable[Mapping[str, Any]]) -> Mapping[int, list[dict[str, Any]]]:
    """Return objects by image id in the format of Detectron2's records, without empty boxes, which are invisible."""
    numbers = {category["id"]: number for number, category in enumerate(truth.categories)}
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for each in objects:
        if each["bbox"][2] > 0 and each["bbox"][3] > 0:
            shown = {**each, "category_id": numbers[each["category_id"]], "bbox_mode": BoxMode.XYWH_ABS}
            found[each["image_id"]].append(shown)
    return found


def _read_results(file: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"Results {file} cannot be read ({error}).") from error
