"""Draw the images of a run with the most errors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hotcoco
from detectron2.structures import BoxMode

from pvt_det.data.images import read_image
from pvt_det.errors import DataError
from pvt_det.evaluation.ground_truth import GroundTruth
from pvt_det.reports.figures import SHOWN_SCORE
from pvt_det.results import Run
from pvt_det.utils.html import Html, join, pair
from pvt_det.utils.visualizer import MAX_SHOWN, caption_of, draw

_WORST = 12
_WIDTH = 560  # pixels of each of the two drawings


def worst_images(run: Run, images: Mapping[int, Path]) -> Html:
    """Draw the images with the most errors, with the ground truth beside the detections.

    Args:
        run: Run of a detector.
        images: Path of each evaluated image by image id.

    Returns:
        The drawings as HTML, or "" if no image has an error.

    Raises:
        DataError: The ground truth, the detections or an image cannot be read.
    """
    assert run.detections_file is not None
    truth = run.read_ground_truth()
    found = _read_results(run.detections_file)
    found = [detection for detection in found if detection["score"] >= SHOWN_SCORE]
    summary = _count_errors(truth, found)
    ranked = sorted(summary, key=lambda image: (-summary[image]["fn"] - summary[image]["fp"], image))
    names = [category["name"] for category in truth.categories]
    numbers = {category["id"]: number for number, category in enumerate(truth.categories)}
    pictures = []
    for image in ranked[:_WORST]:
        missed, wrong = summary[image]["fn"], summary[image]["fp"]
        if missed + wrong == 0 or image not in images:
            continue
        objects, own = (
            [
                {**each, "category_id": numbers[each["category_id"]], "bbox_mode": BoxMode.XYWH_ABS}
                for each in source
                if each["image_id"] == image
            ]
            for source in (truth.annotations, found)
        )
        caption = caption_of(f"{images[image].name}: {missed} missed, {wrong} false", len(objects))
        pixels = read_image(images[image], "RGB")
        # An empty box cannot be drawn.
        objects = [each for each in objects if each["bbox"][2] > 0 and each["bbox"][3] > 0]
        left, right = (draw(pixels, each, names, _WIDTH) for each in (objects[:MAX_SHOWN], own))
        pictures.append(pair(left, right, caption, quality=80))
    return join(*pictures)


def _count_errors(truth: GroundTruth, found: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, int]]:
    """Count missed objects (`fn`) and false detections (`fp`) of each image."""
    api = truth.hotcoco()
    if not found:
        # hotcoco cannot load an empty list.
        return {
            image: {"fn": len(api.get_ann_ids(img_ids=[image], iscrowd=False)), "fp": 0} for image in api.get_img_ids()
        }
    boxes = [{name: each[name] for name in ("image_id", "category_id", "bbox", "score")} for each in found]
    evaluator = hotcoco.COCOeval(api, api.load_res(boxes), "bbox")
    evaluator.evaluate()
    return evaluator.image_diagnostics(score_thr=SHOWN_SCORE)["img_summary"]


def _read_results(file: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"Results {file} cannot be read ({error}).") from error
