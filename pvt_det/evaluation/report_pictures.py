"""The images of a run that have the most errors, drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
from detectron2.structures import BoxMode
from PIL import Image, UnidentifiedImageError

from pvt_det.errors import DataError
from pvt_det.evaluation.compare import Run
from pvt_det.evaluation.ground_truth import read_ground_truth
from pvt_det.evaluation.pictures import draw, sheet
from pvt_det.evaluation.report_figures import SHOWN_SCORE
from pvt_det.html import Html, gallery, picture

_WORST = 12
_WIDTH = 320  # pixels of each half


@dataclass(frozen=True)
class ImageFile:
    """An image of the evaluated data.

    Attributes:
        file: where it lies.
        objects: its ground truth, as Detectron2's records have it.
    """

    file: Path
    objects: Sequence[Mapping[str, Any]]


def worst_images(run: Run, images: Mapping[int, ImageFile]) -> Html:
    """The images with the most errors, ground truth beside detections; "" where none has one.

    Args:
        run: a run of a detector.
        images: by id.

    Raises:
        DataError: annotations, detections or an image cannot be read.
    """
    truth = read_ground_truth(run.annotations)
    found = _read_results(run.results_file)
    found = [detection for detection in found if detection["score"] >= SHOWN_SCORE]
    if not found:
        return Html("")
    api = truth.hotcoco()
    evaluator = hotcoco.COCOeval(api, api.load_res([_box_only(detection) for detection in found]), "bbox")
    evaluator.evaluate()
    summary = evaluator.image_diagnostics(score_thr=SHOWN_SCORE)["img_summary"]
    ranked = sorted(summary, key=lambda image: (-summary[image]["fn"] - summary[image]["fp"], image))
    names = [category["name"] for category in truth.categories]
    numbers = {category["id"]: number for number, category in enumerate(truth.categories)}
    pictures = []
    for image in ranked[:_WORST]:
        missed, wrong = summary[image]["fn"], summary[image]["fp"]
        if missed + wrong == 0 or image not in images:
            continue
        own = [
            {**detection, "category_id": numbers[detection["category_id"]], "bbox_mode": BoxMode.XYWH_ABS}
            for detection in found
            if detection["image_id"] == image
        ]
        caption = f"{images[image].file.name}: {missed} missed, {wrong} false"
        pictures.append(picture(_beside(images[image], own, names), caption))
    return gallery(pictures) if pictures else Html("")


def _box_only(detection: Mapping[str, Any]) -> dict[str, Any]:
    return {name: detection[name] for name in ("image_id", "category_id", "bbox", "score")}


def _beside(image: ImageFile, found: list[dict[str, Any]], names: Sequence[str]) -> Any:
    try:
        with Image.open(image.file) as file:
            pixels = np.asarray(file.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{image.file} cannot be read ({error})") from error
    objects = [dict(each) for each in image.objects]
    return sheet([draw(pixels, each, names, _WIDTH) for each in (objects, found)], columns=2)


def _read_results(file: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"results {file} cannot be read ({error})") from error
