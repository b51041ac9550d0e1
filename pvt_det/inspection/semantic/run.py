"""Inspect one or two data sets with label maps: print what was found, and write the page and the config."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from pvt_det.errors import ConfigError, DataError
from pvt_det.inspection.backbones import Backbone
from pvt_det.inspection.plan import make_plan
from pvt_det.inspection.request import Request
from pvt_det.inspection.semantic.config_file import write_label_config
from pvt_det.inspection.semantic.inspection import LabelInspection, find_label_leakage, inspect_labels
from pvt_det.inspection.semantic.names import read_class_names
from pvt_det.inspection.semantic.page import label_page
from pvt_det.inspection.semantic.recommend import recommend_labels
from pvt_det.inspection.semantic.terminal import show
from pvt_det.inspection.tasks import SEMANTIC
from pvt_det.inspection.terminal import Written, show_advice
from pvt_det.utils.files import write_atomically


def inspect_label_maps(request: Request, backbone: Backbone, console: Console) -> int:
    """Inspect data sets with label maps, print what was found, and write the page and the config.

    Args:
        request: What to inspect, and what to write.
        backbone: The backbone to train.
        console: Console to print to.

    Returns:
        The exit code: 0, or that of `DataError` if training would refuse the data.

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
    with console.status("Reading the data …"):
        parts = _inspect(request, request.images)
        train, val = parts[0][1], parts[1][1] if len(parts) > 1 else None
        leakage = find_label_leakage(train, val) if val else []
    for name, found in parts:
        show(console, name, found, request.on_error)
    show_advice(console, leakage)
    written = Written()
    if request.html:
        write_atomically(request.html, label_page(f"Data set {request.annotations}", parts, leakage, request.on_error))
        written.add(request.html, "page with pictures: open it in a browser")
    is_strict = request.on_error == "strict"
    if any(found.is_refused(request.on_error) for _, found in parts) or (is_strict and leakage):
        written.show(console)
        console.print("[bold red]Refused." if is_strict else "[bold red]Training would refuse this data.")
        return DataError.exit_code
    if request.write_config:
        plan = make_plan(request, SEMANTIC, backbone, console)
        settings = recommend_labels(train, on_cpu=plan.on_cpu, batch=plan.batch, pretrained=bool(plan.weights))
        write_label_config(request.write_config, plan, settings, train, val)
        written.add(request.write_config, "config for this data")
    written.show(console, request.write_config)
    return 0


def _inspect(request: Request, images: Path) -> list[tuple[str, LabelInspection]]:
    names = read_class_names(request.class_names) if request.class_names else None
    train = inspect_labels(
        request.annotations,
        images,
        names=names,
        ignore_value=request.ignore_value,
        level=request.check_data,
        perceptual_hashes=request.val_labels is not None,
    )
    parts = [("Training data", train)]
    if request.val_labels:
        val = inspect_labels(
            request.val_labels,
            request.val_images or images,
            level=request.check_data,
            perceptual_hashes=True,
            train=train,
        )
        parts.append(("Validation data", val))
    return parts
