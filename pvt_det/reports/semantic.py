"""The sections of a report about label maps: classes, confusions, and pictures of the worst and best images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from pvt_det.config import load_config
from pvt_det.data.coco.findings import Findings
from pvt_det.data.images import read_image, read_labels
from pvt_det.data.segmentation.folders import LabelSource, check_label_size
from pvt_det.data.sets import register_datasets
from pvt_det.errors import PvtDetError
from pvt_det.evaluation.label_results import (
    ClassResult,
    ImageResult,
    LabelResults,
    class_results,
    confusion_line,
    most_confused,
    most_involved,
    row_percent,
    unknown_classes,
)
from pvt_det.results import Run
from pvt_det.run_folder import CONFIG_NAME
from pvt_det.utils.colors import class_colors
from pvt_det.utils.html import Html, details, escape, heat_table, join, legend, notice, paragraph, row, swatch, table
from pvt_det.utils.label_pictures import legend_entries, paint, paint_errors, shrink
from pvt_det.utils.numbers import Number

_TASK = "sem_seg"
_WIDTH = 400  # pixels of each picture
# A table of more classes is collapsed, and the confusion matrix shows only this many.
_SHOWN_CLASSES = 30
_OLD = (
    "The confusion matrix and the predictions were not recorded, or do not belong to these metrics. Evaluate again "
    "with pvt-det eval."
)


def semantic_sections(run: Run, *, images: Path | None = None, labels: Path | None = None) -> list[tuple[str, Html]]:
    """Build the sections about label maps.

    Args:
        run: A finished run of any task.
        images: Folder of the validation images. None takes the one that the run's config names.
        labels: Folder of the validation label maps. None takes the one that the run's config names.

    Returns:
        Heading and content of each section. Empty if the run was not evaluated on label maps.

    Raises:
        DataError: The recorded confusion matrix cannot be read.
    """
    if _TASK not in run.metrics:
        return []
    results = run.read_segmentation()
    sections = [("Segmentation: classes", _classes(class_results(run.metrics[_TASK], results)))]
    if results is None:
        return [*sections, ("Segmentation: confusion", notice(_OLD, "warning"))]
    return [
        *sections,
        ("Segmentation: confusion", _confusion(results)),
        ("Segmentation: images", _images(_records(run, images, labels), results)),
    ]


def _classes(classes: Sequence[ClassResult]) -> Html:
    colors = class_colors()
    rows = [
        [
            Html(f"{swatch(colors[each.index % len(colors)])}{escape(each.name)}"),
            *("" if value is None else Number(value) for value in (each.iou, each.accuracy, each.share)),
        ]
        for each in classes
        if each.iou is not None
    ]
    shown = table(["class", "IoU", "accuracy", "pixels"], rows)
    lead = paragraph(". ".join(["In percent, the highest IoU first", *unknown_classes(classes)]) + ".")
    return join(lead, details(f"{len(rows)} classes", shown) if len(rows) > _SHOWN_CLASSES else shown)


def _confusion(results: LabelResults) -> Html:
    percent = row_percent(results.confusion)
    shown = most_involved(results, _SHOWN_CLASSES)
    names = [results.class_names[index] for index in shown]
    matrix = heat_table(names, percent[np.ix_(shown, shown)])
    lead = "Percentage of the pixels of each class (row) that is predicted as each class (column). Rows sum to 100."
    if len(shown) < int((results.confusion.sum(axis=1) > 0).sum()):
        lead = (
            f"Percentage of the pixels of each class (row) that is predicted as each class (column), for the "
            f"{len(shown)} classes with the highest shares of errors. Other classes are left out."
        )
    pairs = most_confused(results)
    lines = [confusion_line(pair) for pair in pairs]
    worst = paragraph("\n".join(["Most confused:", *lines])) if lines else notice("No pixel is wrong.", "good")
    return join(worst, paragraph(lead), matrix)


def _images(found: tuple[dict[str, Mapping[str, Any]], str], results: LabelResults) -> Html:
    records, fault = found
    if fault:
        return notice(f"No pictures: {fault}", "warning")
    drawn: list[Html] = []
    maps: list[np.ndarray] = []
    for image in (*results.worst, *results.best):
        # Found by name, so that the data may have moved.
        record = records.get(Path(image.file_name).name)
        if record is None:
            drawn.append(notice(f"{image.file_name} is not in the data set any more.", "warning"))
            continue
        try:
            picture, labels = _picture(image, record, results)
        except (PvtDetError, OSError) as error:
            drawn.append(notice(f"No picture of {image.file_name}: {error}", "warning"))
            continue
        drawn.append(picture)
        maps += labels
    key = legend(legend_entries(maps, results.class_names, results.ignore_label))
    worst = join(*drawn[: len(results.worst)])
    best = drawn[len(results.worst) :]
    lead = (
        "The images with the lowest IoU (mean over the classes in the image), the lowest first. Wrong pixels are red."
    )
    parts = [paragraph(lead), key, worst]
    if best:
        parts += [Html("<h3>Best images</h3>"), paragraph("The images with the highest IoU."), *best]
    return join(*parts)


def _picture(image: ImageResult, record: Mapping[str, Any], results: LabelResults) -> tuple[Html, list[np.ndarray]]:
    """Draw image, truth, prediction and errors, and return the label maps for the legend too."""
    pixels, truth = read_image(record["file_name"], "RGB"), read_labels(record["sem_seg_file_name"])
    predicted = image.labels()
    for labels in (truth, predicted):
        check_label_size(record["sem_seg_file_name"], labels.shape[::-1], (pixels.shape[1], pixels.shape[0]))
    small, (truth, predicted) = shrink(pixels, (truth, predicted), _WIDTH)
    caption = f"{Path(image.file_name).name}: IoU {image.iou:.1f}, {image.accuracy:.1f}% of the pixels are correct"
    drawn = [
        ("image", small),
        ("truth", paint(small, truth, results.ignore_label)),
        # A model may predict the class index that means "no class" in the truth.
        ("prediction", paint(small, predicted, -1)),
        ("errors", paint_errors(small, truth, predicted, results.ignore_label)),
    ]
    return row(drawn, caption, quality=80), [truth, predicted]


def _records(run: Run, images: Path | None, labels: Path | None) -> tuple[dict[str, Mapping[str, Any]], str]:
    """Return the records of the evaluated images by file name, or the reason why they are not available."""
    config = run.folder / CONFIG_NAME
    if not config.is_file():
        return {}, f"{config} is missing"
    try:
        cfg = load_config(config, training=False)
        if images is None and labels is None:
            register_datasets(cfg, training=False)
            if run.dataset not in cfg.DATASETS.TEST:
                return {}, f"{config} does not name the data set {run.dataset}"
            records = DatasetCatalog.get(run.dataset)
        else:
            records = _moved(cfg.DATASETS, run.dataset, images, labels).find(Findings())
    except (PvtDetError, OSError) as error:
        return {}, str(error)
    return {Path(record["file_name"]).name: record for record in records if "sem_seg_file_name" in record}, ""


def _moved(data: CfgNode, dataset: str, images: Path | None, labels: Path | None) -> LabelSource:
    """Return the data set in the folders that replace those of the config."""
    metadata = MetadataCatalog.get(dataset)
    return LabelSource(
        image_root=str(images or data.VAL_IMAGES or metadata.get("image_root", "")),
        label_root=str(labels or data.VAL_LABELS or metadata.get("sem_seg_root", "")),
        class_names=(),
    )
