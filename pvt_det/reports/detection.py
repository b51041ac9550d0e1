"""The part of a report page that is about boxes and masks."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Any, TypeAlias

import hotcoco
import numpy as np

from pvt_det.errors import PvtDetError
from pvt_det.evaluation.thresholds import ScoredMatches, match_scores
from pvt_det.reports import figures
from pvt_det.reports.compare import build_evaluator
from pvt_det.reports.pictures import Gallery, evaluated_images
from pvt_det.results import Run
from pvt_det.utils.html import Html, details, join, notice, paragraph, table
from pvt_det.utils.numbers import cells
from pvt_det.utils.text import counted

Section: TypeAlias = tuple[str, Any]
TITLES = {"bbox": "Boxes", "segm": "Masks"}
_SIZES = ("all", "small", "medium", "large")
# A table of more classes is collapsed.
_SHOWN_CLASSES = 30
logger = logging.getLogger(__name__)


def build_evaluators(run: Run) -> dict[str, hotcoco.COCOeval]:
    """Build the evaluators of a run's boxes and masks, by task. Empty if its detections are missing or have changed.

    Args:
        run: The run.

    Raises:
        DataError: The ground truth or the detections cannot be read.
    """
    evaluators = {task: build_evaluator(run, task) for task in TITLES if task in run.metrics and run.has_detections}
    for evaluator in evaluators.values():
        # `summarize` would print.
        evaluator.summary_lines()
    return evaluators


def detection_sections(
    run: Run,
    evaluators: dict[str, hotcoco.COCOeval],
    *,
    images: Path | None = None,
    score_threshold: float | None = None,
) -> list[Section]:
    """Return the sections about boxes and masks, and the pictures. Empty without evaluators.

    Args:
        run: The run.
        evaluators: Evaluators by task, as `build_evaluators` returns them.
        images: Folder of the validation images. None takes the one that the run's config names.
        score_threshold: Minimum score of the detections that are shown and counted, 0 to 1. None takes the threshold
            with the best F1, that of the boxes if there are boxes and masks.

    Raises:
        DataError: The ground truth, the detections or an image cannot be read.
    """
    if not evaluators:
        return []
    matches = {task: match_scores(evaluator) for task, evaluator in evaluators.items()}
    threshold = next(iter(matches.values())).best if score_threshold is None else score_threshold
    shown = {task: build_evaluator(run, task, threshold) for task in evaluators}
    sections: list[Section] = []
    for task, evaluator in evaluators.items():
        title = TITLES[task]
        sections += [
            (f"{title}: classes and sizes", _classes(evaluator)),
            (f"{title}: score threshold", _threshold(matches[task], threshold, is_given=score_threshold is not None)),
            (f"{title}: precision and recall", figures.precision_recall(evaluator)),
            (f"{title}: errors and calibration", figures.errors(evaluator, shown[task])),
            (f"{title}: confusion", figures.confusion(evaluator, threshold)),
        ]
    return sections + _picture_sections(run, next(iter(shown.values())), threshold, images)


def _picture_sections(run: Run, shown: hotcoco.COCOeval, threshold: float, images: Path | None) -> list[Section]:
    lead = f"Detections with a score of at least {threshold:g} are shown."
    try:
        gallery = Gallery(run, evaluated_images(run, images), threshold)
        mosaic, worst = gallery.mosaic(), gallery.worst(shown)
    except (PvtDetError, OSError) as error:
        fault, fix = str(error).rstrip("."), f"pvt-det report {shlex.quote(str(run.folder))} --val-images DIR"
        logger.warning("The report has no pictures: %s. If the images have moved, use %s", fault, fix)
        return [("Pictures", notice(f"No pictures: {fault}. If the images have moved, use {fix}", "warning"))]
    check = (
        f"The images with the most missed objects and false detections, each with the ground truth first. {lead} "
        "Check these images for wrong annotations first."
    )
    none = paragraph(f"No image has an error at the score threshold {threshold:g}.")
    return [
        ("Validation images", join(paragraph(lead), mosaic)),
        ("Worst images", join(paragraph(check), worst) if worst else none),
    ]


def _classes(evaluator: hotcoco.COCOeval) -> Html:
    """Return a table with the AP of each class: overall, at two IoU thresholds, and by size."""
    result = evaluator.eval
    assert result is not None
    precision = result["precision"]
    areas = list(evaluator.params.area_rng_lbl)
    truth = evaluator.coco_gt
    rows = []
    for k, category in enumerate(evaluator.params.cat_ids):
        of_class = precision[:, :, k, :, -1]
        whole = of_class[:, :, areas.index("all")]
        values = [_mean(whole), _mean(whole[0]), _mean(whole[5])]
        values += [_mean(of_class[:, :, areas.index(size)]) for size in _SIZES[1:]]
        name = truth.load_cats(category)[0]["name"]
        rows.append([name, len(truth.get_ann_ids(cat_ids=category)), *cells(values)])
    return _class_table(["class", "objects", "AP", "AP50", "AP75", "small", "medium", "large"], rows)


def _class_table(header: list[str], rows: list[list[Any]]) -> Html:
    shown = table(header, rows)
    return details(f"{len(rows)} classes", shown) if len(rows) > _SHOWN_CLASSES else shown


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else None


def _threshold(matches: ScoredMatches, threshold: float, *, is_given: bool) -> Html:
    """Explain the score threshold, with a table of the classes and the curves over all thresholds."""
    if not matches.names:
        return paragraph(f"The data has no objects. Detections with a score of at least {threshold:g} are shown.")
    rates = matches.rates([threshold])
    rows = [
        [name, int(count), *cells([precision[0], recall[0], f1[0]])]
        for name, count, precision, recall, f1 in zip(
            matches.names, matches.objects, rates.precision, rates.recall, rates.f1, strict=True
        )
    ]
    return join(
        _explanation(matches, threshold, is_given=is_given),
        _class_table(["class", "objects", "precision (%)", "recall (%)", "F1 (%)"], rows),
        figures.threshold_curves(matches, threshold) if matches.has_correct else Html(""),
    )


def _explanation(matches: ScoredMatches, threshold: float, *, is_given: bool) -> Html:
    if not matches.has_correct:
        text = (
            f"No detection is correct at IoU 0.5. The page shows the detections with a score of at least {threshold:g}"
            f"{'.' if is_given else ': about as many as there are objects.'}"
        )
        return notice(text, "warning")
    mean = f"means over {counted(len(matches.names), 'class', 'classes')} at IoU 0.5"
    text = f"Score threshold {threshold:g}: {_describe(matches, threshold)} ({mean}). "
    if threshold == matches.best:
        text += "This threshold has the best F1. "
    else:
        text += f"The best F1 is at {matches.best:g}: {_describe(matches, matches.best)}. "
    text += (
        "The confusion matrix, the number of errors and the pictures count only detections with at least this score. "
        "AP does not depend on it. To use it for predictions, pass it to pvt-det predict as --score-threshold."
    )
    return paragraph(text)


def _describe(matches: ScoredMatches, threshold: float) -> str:
    mean = matches.rates([threshold]).mean()
    precision = mean.precision[0, 0]
    shown = "none" if np.isnan(precision) else f"{precision:.2f}%"
    return f"F1 {mean.f1[0, 0]:.2f}%, precision {shown}, recall {mean.recall[0, 0]:.2f}%"
