"""Inspect a data set from Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pvt_det.functions.call import Data, PathLike, as_pair, library_call
from pvt_det.functions.messages import DATA, in_python
from pvt_det.inspection.request import Request
from pvt_det.inspection.result import InspectionResult
from pvt_det.inspection.run import inspect as run_inspection
from pvt_det.inspection.run import is_semantic


def inspect(
    annotations: PathLike,
    images: PathLike | None = None,
    *,
    val: Data | PathLike | None = None,
    val_fraction: float | None = None,
    seed: int | None = None,
    task: str | None = None,
    check_data: str = "fast",
    on_error: str = "stop",
    allow_outside: bool = False,
    classes_of: PathLike | None = None,
    class_names: PathLike | None = None,
    ignore_value: int | None = None,
    html: PathLike | None = None,
    write_json: PathLike | None = None,
    write_config: PathLike | None = None,
    model: str | None = None,
    weights: str | None = None,
    device: str | None = None,
    batch: int | None = None,
) -> InspectionResult:
    """Check a data set, describe it, and write a config to train on it, as `pvt-det inspect` does. Prints nothing.

    Args:
        annotations: Annotations in COCO's, CVAT's, Pascal VOC's or YOLO's format, the folder of a whole data set, or a
            folder of label maps.
        images: Folder of the images. None finds it from `annotations`.
        val: Annotations to evaluate on and the folder of their images, or the annotations alone if the images are found
            from them or are in `images`. None takes those of a whole data set, if any.
        val_fraction: Fraction of the images to set aside for validation, above 0 and below 1. Copies of an image stay
            on one side. It needs `write_config` or `write_json`.
        seed: Seed of the choice of these images, 0 or more. None takes 0.
        task: "retinanet", "atss", "gfl", "mask-rcnn" or "semantic". None chooses by the data.
        check_data: How to check the images, a value of DATASETS.CHECK: "fast", "full" or "off".
        on_error: What to do with broken data, a value of DATASETS.ON_ERROR: "stop", "skip" or "strict".
        allow_outside: Whether file names may lead outside the image folder.
        classes_of: Run folder or config whose classes the data must have.
        class_names: File with the class names of label maps.
        ignore_value: Value of void in label maps, 0 to 255. None finds it from the values.
        html: HTML page to write, with pictures.
        write_json: File for the annotations as COCO JSON. Those of `val` are written beside it.
        write_config: Config file to write, for training on this data.
        model: Name of a backbone or of a config, for `write_config`. None takes PVT-Tiny.
        weights: Value of MODEL.WEIGHTS, for `write_config`, or "none" for random weights. None takes the ImageNet
            weights of the model if they can be downloaded.
        device: Device to train on, for `write_config`: "cpu" or "gpu". None takes a GPU if this machine has one.
        batch: Images per iteration, for `write_config`, 1 or more. None takes 4 on a CPU and 16 on GPUs.

    Returns:
        Problems, statistics, class names, advice, and the files that were written.

    Raises:
        ConfigError: Arguments do not fit each other, or a file cannot be written.
        DataError: The data cannot be read at all. Data that training would refuse is not an error here.
        CheckpointError: `classes_of` is not readable.
    """
    names = DATA | {"on-error": "on_error"}
    with library_call(names):
        val_annotations, val_images = _val(val)
        request = Request(
            annotations=Path(annotations),
            images=_path(images),
            html=_path(html),
            check_data=check_data,
            on_error=on_error,
            allow_outside=allow_outside,
            write_json=_path(write_json),
            classes_of=None if classes_of is None else str(classes_of),
            class_names=_path(class_names),
            ignore_value=ignore_value,
            task=task,
            write_config=_path(write_config),
            model=model,
            weights=weights,
            device=device,
            batch=batch,
            val_fraction=val_fraction,
            seed=seed,
        )
        labels, json = (val_annotations, None) if is_semantic(request) else (None, val_annotations)
        result = run_inspection(replace(request, val_json=json, val_labels=labels, val_images=val_images))
        return replace(result, refusal=in_python(result.refusal, names))


def _val(val: Data | PathLike | None) -> tuple[Path | None, Path | None]:
    if isinstance(val, tuple | list):
        annotations, images = as_pair("val", val)
        return Path(annotations), Path(images)
    return _path(val), None


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)
