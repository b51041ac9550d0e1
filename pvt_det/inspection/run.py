"""Inspect data sets: print what was found, and write the page, the annotations and the config."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

from rich.markup import escape

from pvt_det.config import load_config
from pvt_det.errors import ConfigError, DataError
from pvt_det.inspection.backbones import Backbone, find_backbone
from pvt_det.inspection.config_file import write_config
from pvt_det.inspection.inspect import Advice, Inspection, find_leakage, inspect_dataset
from pvt_det.inspection.page import inspection_page
from pvt_det.inspection.places import find_places
from pvt_det.inspection.plan import make_plan
from pvt_det.inspection.recommend import recommend
from pvt_det.inspection.request import Request, check_place
from pvt_det.inspection.semantic.run import inspect_label_maps
from pvt_det.inspection.semantic.scan import is_label_folder
from pvt_det.inspection.tasks import SEMANTIC
from pvt_det.inspection.terminal import Written, show, show_advice
from pvt_det.run_folder import config_file
from pvt_det.utils.console import Console
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import make_parent_folder

Parts = list[tuple[str, Inspection]]


def inspect(request: Request) -> int:
    """Inspect data, print what was found, and write the requested files.

    Args:
        request: What to inspect, and what to write.

    Returns:
        The exit code: 0, or that of `DataError` if training would refuse the data.

    Raises:
        ConfigError: Options do not fit each other, or a file cannot be written.
        DataError: The data cannot be read.
    """
    is_semantic = request.task == SEMANTIC or (request.task is None and _are_label_maps(request))
    request.check(is_semantic=is_semantic)
    backbone, task = find_backbone(request.model or "")
    given = SEMANTIC if is_semantic else request.task
    if task and given not in (None, task):
        raise ConfigError(f"--model {request.model} is a config for --task {task}, but --task is {given}.")
    if request.write_config:
        check_place(request.write_config)
    for file in filter(None, (request.html, request.write_json)):
        make_parent_folder(file)
    if is_semantic:
        return inspect_label_maps(request, backbone, Console())
    return _inspect_objects(request, backbone, request.task or task, Console())


def _are_label_maps(request: Request) -> bool:
    return request.images is not None and is_label_folder(request.annotations, request.images)


def _inspect_objects(request: Request, backbone: Backbone, task: str, console: Console) -> int:
    """Inspect annotated objects; return the exit code."""
    with tempfile.TemporaryDirectory() as temporary, console.status("Reading the data …") as status:
        parts = _read(request, task, Path(temporary))
        leakage = find_leakage(parts[0][1], parts[1][1]) if len(parts) > 1 else []
        for name, found in parts:
            show(console, name, found, request.on_error)
        show_advice(console, leakage)
        written = Written()
        if request.html:
            status.update("Drawing the page …")
            page = inspection_page(f"Data set {request.annotations}", parts, leakage, request.on_error)
            write_atomically(request.html, page)
            written.add(request.html, "page with pictures: open it in a browser")
        if _is_refused(parts, leakage, request.on_error):
            written.show(console)
            console.print(f"[bold red]{escape(_refusal(parts, request.on_error))}", soft_wrap=True)
            return DataError.exit_code
        parts = [(name, found.saved_as(_json_file(request, number))) for number, (name, found) in enumerate(parts)]
        for name, found in parts:
            if found.is_converted and _json_file(request, 0):
                written.add(found.json_file, f"{name.lower()} as COCO JSON")
        if request.write_config:
            status.update("Writing the config …")
            _write_config(request, request.write_config, console, parts, backbone, task)
            written.add(request.write_config, "config for this data")
        written.show(console)
        if request.write_config:
            command = shlex.join(["pvt-det", "train", "--config-file", str(request.write_config)])
            console.print(f"Train with: {escape(command)}", soft_wrap=True)
    return 0


def _read(request: Request, task: str, temporary: Path) -> Parts:
    """Read the training data and, if there are any, the validation data."""
    places = find_places(request.annotations, request.images, request.val_json, request.val_images)
    classes, classes_of = _classes_of(request.classes_of), str(request.classes_of)
    parts: Parts = []
    for number, (name, place) in enumerate(zip(("Training data", "Validation data"), places, strict=False)):
        found = inspect_dataset(
            place.annotations,
            place.images,
            temporary / f"{number}.json",
            level=request.check_data,
            masks=task == "mask-rcnn",
            allow_outside=request.allow_outside,
            perceptual_hashes=len(places) > 1,
            classes=classes,
            classes_of=classes_of,
            class_file=place.class_file,
        )
        if not classes:
            classes, classes_of = found.data.class_names, "the training data"
        parts.append((name, found))
    if request.write_json and not any(found.is_converted for _, found in parts):
        raise ConfigError(f"--write-json has no effect: {places[0].annotations} is COCO JSON already. Leave it out.")
    return parts


def _classes_of(run: str | None) -> list[str]:
    if run is None:
        return []
    path = config_file(run)
    if not (names := load_config(path, training=False).DATASETS.CLASS_NAMES):
        raise ConfigError(
            f"--classes-of {run}: {path} has no DATASETS.CLASS_NAMES. Give the folder of a trained model."
        )
    return list(names)


def _json_file(request: Request, number: int) -> Path | None:
    """Return the file for converted annotations: 0 for the training data, 1 for the validation data."""
    if file := request.write_json:
        return file if number == 0 else file.with_stem(f"{file.stem}_val")
    if config := request.write_config:
        return config.with_name(f"{config.stem}_{('train', 'val')[number]}.json")
    return None


def _refusal(parts: Parts, on_error: str) -> str:
    if on_error == "strict":
        return "Refused."
    if any(found.is_refused("skip") for _, found in parts):
        return "Training would refuse this data. Correct it."
    return (
        "Training would refuse this data. Correct it, or leave the broken parts out with --on-error skip. A config "
        "written with it leaves them out in training."
    )


def _is_refused(parts: Parts, leakage: list[Advice], on_error: str) -> bool:
    return any(found.is_refused(on_error) for _, found in parts) or (on_error == "strict" and bool(leakage))


def _write_config(request: Request, path: Path, console: Console, parts: Parts, backbone: Backbone, task: str) -> None:
    train, val = parts[0][1], parts[1][1] if len(parts) > 1 else None
    has_masks = all(found.statistics.has_masks for _, found in parts)
    plan = make_plan(request, task or ("mask-rcnn" if has_masks else "retinanet"), backbone, console)
    settings = recommend(
        train.statistics,
        plan.task,
        on_cpu=plan.on_cpu,
        batch=plan.batch,
        pretrained=bool(plan.weights),
        most_objects=max(int(found.statistics.per_image.max()) for _, found in parts),
    )
    write_config(path, plan, settings, train, val)
