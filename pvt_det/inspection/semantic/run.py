"""Inspect one or two data sets with label maps: print what was found, and write the page and the config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from pvt_det.errors import DataError
from pvt_det.inspection.config_file import Plan
from pvt_det.inspection.semantic.config_file import write_label_config
from pvt_det.inspection.semantic.inspection import LabelInspection, find_label_leakage, inspect_labels
from pvt_det.inspection.semantic.names import read_class_names
from pvt_det.inspection.semantic.page import label_page
from pvt_det.inspection.semantic.recommend import recommend_labels
from pvt_det.inspection.semantic.terminal import show
from pvt_det.inspection.terminal import show_advice
from pvt_det.utils.files import write_atomically


@dataclass(frozen=True)
class LabelFolders:
    """What to inspect, and how.

    Attributes:
        labels: Folder of the label maps.
        images: Folder of the images.
        val_labels: Folder of the label maps to evaluate on, or None.
        val_images: Folder of their images. None means `images`.
        class_names: File with the class names, or None.
        ignore_value: Value of pixels without a class, or None to find it.
        level: How the images are checked, a value of DATASETS.CHECK.
        on_error: Value of DATASETS.ON_ERROR.
    """

    labels: Path
    images: Path
    val_labels: Path | None
    val_images: Path | None
    class_names: Path | None
    ignore_value: int | None
    level: str
    on_error: str


def inspect_label_folders(
    folders: LabelFolders,
    console: Console,
    page: Path | None,
    config: Path | None,
    plan: Callable[[], tuple[Plan, int]],
) -> int:
    """Inspect data sets with label maps, print what was found, and write the page and the config.

    Args:
        folders: What to inspect, and how.
        console: Console to print to.
        page: HTML file to write, or None.
        config: Config file to write, or None.
        plan: Returns what to train and the number of images per iteration. Called only to write a config.

    Returns:
        The exit code: 0, or that of `DataError` if training would refuse the data.

    Raises:
        ConfigError: The file of class names or the name of a file to write is not valid.
        DataError: The folders cannot be read, or no image has a label map.
    """
    with console.status("Reading the data …"):
        parts = _inspect(folders)
        train, val = parts[0][1], parts[1][1] if len(parts) > 1 else None
        leakage = find_label_leakage(train, val) if val else []
    for name, found in parts:
        show(console, name, found, folders.on_error)
    show_advice(console, leakage)
    if page:
        write_atomically(page, label_page(f"Data set {folders.labels}", parts, leakage, folders.on_error))
        console.print(f"Page: {escape(str(page))}", soft_wrap=True)
    is_strict = folders.on_error == "strict"
    if any(found.is_refused(folders.on_error) for _, found in parts) or (is_strict and leakage):
        console.print("[bold red]Refused." if is_strict else "[bold red]Training would refuse this data.")
        return DataError.exit_code
    if config:
        how, batch = plan()
        settings = recommend_labels(train, on_cpu=how.on_cpu, batch=batch, pretrained=bool(how.weights))
        write_label_config(config, how, settings, train, val)
        name = escape(str(config))
        console.print(f"Config: {name}; train with --config-file {name}", soft_wrap=True)
    return 0


def _inspect(folders: LabelFolders) -> list[tuple[str, LabelInspection]]:
    names = read_class_names(folders.class_names) if folders.class_names else None
    train = inspect_labels(
        folders.labels,
        folders.images,
        names=names,
        ignore_value=folders.ignore_value,
        level=folders.level,
        perceptual_hashes=folders.val_labels is not None,
    )
    parts = [("Training data", train)]
    if folders.val_labels:
        val = inspect_labels(
            folders.val_labels,
            folders.val_images or folders.images,
            level=folders.level,
            perceptual_hashes=True,
            train=train,
        )
        parts.append(("Validation data", val))
    return parts
