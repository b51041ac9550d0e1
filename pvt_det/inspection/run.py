"""Inspect data sets, and write the page, the annotations and the config."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pvt_det.config import load_config
from pvt_det.errors import ConfigError
from pvt_det.inspection.backbones import Backbone, find_backbone
from pvt_det.inspection.config_file import write_config
from pvt_det.inspection.inspect import Advice, Inspection, find_leakage, inspect_dataset
from pvt_det.inspection.page import inspection_page
from pvt_det.inspection.places import find_places
from pvt_det.inspection.plan import make_plan
from pvt_det.inspection.recommend import recommend
from pvt_det.inspection.request import Request, check_place
from pvt_det.inspection.result import InspectionResult
from pvt_det.inspection.semantic.run import inspect_label_maps
from pvt_det.inspection.semantic.scan import is_label_folder
from pvt_det.inspection.split import split_dataset, write_split
from pvt_det.inspection.tasks import SEMANTIC
from pvt_det.run_folder import config_file
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import make_parent_folder

Parts = list[tuple[str, Inspection]]
_REFUSED = "Refused."


def inspect(request: Request, on_found: Callable[[InspectionResult], object] = lambda result: None) -> InspectionResult:
    """Inspect data, and write the requested files.

    Args:
        request: What to inspect, and what to write.
        on_found: Called with what was found before anything is written.

    Returns:
        What was found and written. If training would refuse the data, nothing but the page is written.

    Raises:
        ConfigError: Options do not fit each other, or a file cannot be written.
        DataError: The data cannot be read.
    """
    semantic = is_semantic(request)
    request.check(is_semantic=semantic)
    backbone, task = find_backbone(request.model or "")
    given = SEMANTIC if semantic else request.task
    if task and given not in (None, task):
        raise ConfigError(f"--model {request.model} is a config for --task {task}, but --task is {given}.")
    if request.write_config:
        check_place(request.write_config)
    if request.val_fraction is not None:
        _check_free(request)
    for file in filter(None, (request.html, request.write_json)):
        make_parent_folder(file)
    if semantic:
        return inspect_label_maps(request, backbone, on_found)
    return _inspect_objects(request, backbone, request.task or task, on_found)


def is_semantic(request: Request) -> bool:
    """Return whether a request is for label maps, by its task or else by the files in the folders.

    Args:
        request: What to inspect.
    """
    if request.task is None and request.images is not None:
        return is_label_folder(request.annotations, request.images)
    return request.task == SEMANTIC


def _inspect_objects(
    request: Request, backbone: Backbone, task: str, on_found: Callable[[InspectionResult], object]
) -> InspectionResult:
    """Inspect annotated objects."""
    with tempfile.TemporaryDirectory() as temporary:
        parts = _read(request, task, Path(temporary))
        leakage = find_leakage(parts[0][1], parts[1][1]) if len(parts) > 1 else []
        result = _result(request, parts, leakage)
        on_found(result)
        written: list[tuple[Path, str]] = []
        notes: list[str] = []
        if request.html:
            page = inspection_page(f"Data set {request.annotations}", parts, leakage, request.on_error)
            write_atomically(request.html, page)
            written.append((request.html, "page with pictures: open it in a browser"))
        if _is_refused(parts, leakage, request.on_error):
            return replace(result, refusal=_refusal(parts, request.on_error), written=tuple(written))
        split = None
        if request.val_fraction is not None:
            split = split_dataset(parts[0][1], request.val_fraction, request.seed or 0)
            if request.on_error == "strict" and split.advice():
                return replace(result, split=split, refusal=_REFUSED, written=tuple(written))
            split = write_split(split, *filter(None, (_json_file(request, number) for number in (0, 1))))
            parts = [("Training data", split.train), ("Validation data", split.val)]
        else:
            parts = [(name, found.saved_as(_json_file(request, number))) for number, (name, found) in enumerate(parts)]
        for name, found in parts:
            if found.is_converted and _json_file(request, 0):
                written.append((found.json_file, f"{name.lower()} as COCO JSON"))
        if request.write_config:
            _write_config(request, request.write_config, notes, parts, backbone, task)
            written.append((request.write_config, "config for this data"))
    return replace(_result(request, parts, leakage), split=split, notes=tuple(notes), written=tuple(written))


def _result(request: Request, parts: Parts, leakage: list[Advice]) -> InspectionResult:
    val = parts[1][1] if len(parts) > 1 else None
    return InspectionResult(parts[0][1], val, leakage, request.on_error, title=parts[0][0])


def _read(request: Request, task: str, temporary: Path) -> Parts:
    """Read the training data and, if there are any, the validation data."""
    places = find_places(request.annotations, request.images, request.val_json, request.val_images)
    titles = ("Training data", "Validation data")
    if request.val_fraction is not None:
        titles = ("All data", "")
        if len(places) > 1:
            raise ConfigError(
                f"--val-fraction: {request.annotations} has validation data already, {places[1].annotations}. Leave "
                f"the option out, or give {places[0].annotations} alone."
            )
    classes, classes_of = _classes_of(request.classes_of), str(request.classes_of)
    parts: Parts = []
    for number, (name, place) in enumerate(zip(titles, places, strict=False)):
        found = inspect_dataset(
            place.annotations,
            place.images,
            temporary / f"{number}.json",
            level=request.check_data,
            masks=task == "mask-rcnn",
            allow_outside=request.allow_outside,
            perceptual_hashes=len(places) > 1 or request.val_fraction is not None,
            classes=classes,
            classes_of=classes_of,
            class_file=place.class_file,
        )
        if not classes:
            classes, classes_of = found.data.class_names, "the training data"
        parts.append((name, found))
    if request.write_json and request.val_fraction is None and not any(found.is_converted for _, found in parts):
        raise ConfigError(f"--write-json has no effect: {places[0].annotations} is COCO JSON already. Leave it out.")
    return parts


def _check_free(request: Request) -> None:
    """Check that the files of a split do not exist yet."""
    for number in (0, 1):
        if (file := _json_file(request, number)) and file.exists():
            raise ConfigError(
                f"{file} already exists. Choose another name for --write-json or --write-config, or remove the file."
            )


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
        return _REFUSED
    if any(found.is_refused("skip") for _, found in parts):
        return "Training would refuse this data. Correct it."
    return (
        "Training would refuse this data. Correct it, or leave the broken parts out with --on-error skip. A config "
        "written with it leaves them out in training."
    )


def _is_refused(parts: Parts, leakage: list[Advice], on_error: str) -> bool:
    return any(found.is_refused(on_error) for _, found in parts) or (on_error == "strict" and bool(leakage))


def _write_config(request: Request, path: Path, notes: list[str], parts: Parts, backbone: Backbone, task: str) -> None:
    train, val = parts[0][1], parts[1][1] if len(parts) > 1 else None
    has_masks = all(found.statistics.has_masks for _, found in parts)
    plan = make_plan(request, task or ("mask-rcnn" if has_masks else "retinanet"), backbone, notes.append)
    settings = recommend(
        train.statistics,
        plan.task,
        on_cpu=plan.on_cpu,
        batch=plan.batch,
        pretrained=bool(plan.weights),
        most_objects=max(int(found.statistics.per_image.max()) for _, found in parts),
    )
    write_config(path, plan, settings, train, val)
