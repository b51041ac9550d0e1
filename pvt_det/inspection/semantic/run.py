"""Inspect one or two data sets with label maps, and write the page and the config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pvt_det.errors import ConfigError
from pvt_det.inspection.backbones import Backbone
from pvt_det.inspection.plan import make_plan
from pvt_det.inspection.request import Request
from pvt_det.inspection.result import InspectionResult
from pvt_det.inspection.semantic.config_file import write_label_config
from pvt_det.inspection.semantic.inspection import LabelInspection, find_label_leakage, inspect_labels
from pvt_det.inspection.semantic.names import read_class_names
from pvt_det.inspection.semantic.page import label_page
from pvt_det.inspection.semantic.recommend import recommend_labels
from pvt_det.inspection.tasks import SEMANTIC
from pvt_det.utils.files import write_atomically


def inspect_label_maps(
    request: Request, backbone: Backbone, on_found: Callable[[InspectionResult], object]
) -> InspectionResult:
    """Inspect data sets with label maps, and write the page and the config.

    Args:
        request: What to inspect, and what to write.
        backbone: The backbone to train.
        on_found: Called with what was found before anything is written.

    Returns:
        What was found and written. Without a config if training would refuse the data.

    Raises:
        ConfigError: The folder of the images is not given, or the file of class names or the name of a file to write is
            not valid.
        DataError: The folders cannot be read, or no image has a label map.
    """
    if request.images is None:
        raise ConfigError(
            f"IMAGES is missing. Give the folder of the images after that of the label maps: pvt-det inspect "
            f"{request.annotations} IMAGES."
        )
    train, val = _inspect(request, request.images)
    leakage = find_label_leakage(train, val) if val else []
    result = InspectionResult(train, val, leakage, request.on_error)
    on_found(result)
    written: list[tuple[Path, str]] = []
    notes: list[str] = []
    parts = [("Training data", train), *([("Validation data", val)] if val else [])]
    if request.html:
        write_atomically(request.html, label_page(f"Data set {request.annotations}", parts, leakage, request.on_error))
        written.append((request.html, "page with pictures: open it in a browser"))
    is_strict = request.on_error == "strict"
    refusal = ""
    if any(found.is_refused(request.on_error) for _, found in parts) or (is_strict and leakage):
        refusal = "Refused." if is_strict else "Training would refuse this data."
    elif request.write_config:
        plan = make_plan(request, SEMANTIC, backbone, notes.append)
        settings = recommend_labels(train, on_cpu=plan.on_cpu, batch=plan.batch, pretrained=bool(plan.weights))
        write_label_config(request.write_config, plan, settings, train, val)
        written.append((request.write_config, "config for this data"))
    return replace(result, refusal=refusal, notes=tuple(notes), written=tuple(written))


def _inspect(request: Request, images: Path) -> tuple[LabelInspection, LabelInspection | None]:
    """Inspect the training data and, if there are any, the validation data."""
    names = read_class_names(request.class_names) if request.class_names else None
    train = inspect_labels(
        request.annotations,
        images,
        names=names,
        ignore_value=request.ignore_value,
        level=request.check_data,
        perceptual_hashes=request.val_labels is not None,
    )
    if request.val_labels is None:
        return train, None
    val = inspect_labels(
        request.val_labels,
        request.val_images or images,
        level=request.check_data,
        perceptual_hashes=True,
        train=train,
    )
    return train, val
