"""Register and check the data sets that a config names, and set the model's number of classes from them."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from pvt_det.config.architecture import HEADS, head_key
from pvt_det.config.given_data import GivenData, Part, given_data
from pvt_det.data.coco.check import CheckReport, check_dataset
from pvt_det.data.coco.registration import CocoSource, register_coco
from pvt_det.data.segmentation.sets import check_named_labels, fit_label_classes, register_given_labels
from pvt_det.data.storage.references import is_url, shown
from pvt_det.errors import ConfigError, DataError
from pvt_det.utils.paths import ABSENT, file_fault, folder_fault
from pvt_det.utils.text import counted, did_you_mean, listed

__all__ = ["register_datasets"]

logger = logging.getLogger(__name__)

_OTHER_ORDER = (
    "The order differs. If `pvt-det inspect` converted the annotations, convert them again with --classes-of RUN. "
    "Otherwise, number their categories in the order of the model."
)
_OTHER_NAMES = "If the classes mean the same in this order, add DATASETS.CLASS_NAMES []."

# How to give a path on the command line if it has no option of its own.
_OPTIONS = {"VAL_PANOPTIC_JSON": "DATASETS.VAL_PANOPTIC_JSON FILE"}
# NUM_CLASSES in Detectron2's configs. It is replaced without an error by the number of classes of an annotation file.
_DEFAULT_CLASSES = 80


def register_datasets(cfg: CfgNode, *, training: bool = True) -> None:
    """Register and check the data sets of a config, and update the config in place to match them.

    A data set given by DATASETS.TRAIN_JSON or VAL_JSON replaces DATASETS.TRAIN or TEST, and sets the model's
    NUM_CLASSES. Data sets given by name must be in Detectron2's catalog and have as many classes as the model.

    Call this function before freezing the config.

    Args:
        cfg: Config, whose DATASETS and NUM_CLASSES may be changed.
        training: Whether training data is needed. If False, only DATASETS.TEST is registered and checked.

    Raises:
        ConfigError: A data set is unknown or incompletely specified, or the model has a different number of classes.
        DataError: A data set is missing or broken, or training and test data have different classes.
    """
    given: dict[Part, list[GivenData]] = {"TRAIN": given_data(cfg, "TRAIN"), "VAL": given_data(cfg, "VAL")}
    _refuse_images_alone(cfg, given)
    if training:
        _check_weights(cfg, len(given["TRAIN"] or cfg.DATASETS.TRAIN))
    _require_paths(cfg, given if training else {"VAL": given["VAL"]})
    if not training:
        cfg.DATASETS.TRAIN = ()
    elif given["TRAIN"]:
        cfg.DATASETS.TRAIN = tuple(_register_given(cfg, "TRAIN", data) for data in given["TRAIN"])
    if given["VAL"]:
        cfg.DATASETS.TEST = tuple(_register_given(cfg, "VAL", data) for data in given["VAL"])
    elif training and given["TRAIN"]:
        logger.warning("DATASETS.VAL_JSON and VAL_LABELS are empty: this run trains without evaluation")
        cfg.DATASETS.TEST = ()
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        _check_named(cfg, name)
        check_named_labels(cfg, name)
    fit_label_classes(cfg)
    _fit_classes(cfg, training=training, from_json=bool(given["TRAIN"] or given["VAL"]))


def _check_weights(cfg: CfgNode, number: int) -> None:
    """Raise an error if there are weights, but not one for each of several data sets."""
    weights = cfg.DATASETS.TRAIN_WEIGHTS
    if weights and (number != len(weights) or number < 2):
        raise ConfigError(
            f"DATASETS.TRAIN_WEIGHTS is {tuple(weights)}, but there {'is' if number == 1 else 'are'} "
            f"{counted(number, 'training data set')}. Expected a weight for each of two or more data sets. Correct it, "
            "or set it to []."
        )


def _refuse_images_alone(cfg: CfgNode, given: Mapping[Part, list[GivenData]]) -> None:
    """Raise an error if an image folder is given without annotations."""
    for part, sets in given.items():
        if (images := cfg.DATASETS[f"{part}_IMAGES"]) and not sets:
            low = part.lower()
            raise ConfigError(
                f"DATASETS.{part}_IMAGES is {images}, but neither {part}_JSON nor {part}_LABELS is given. Give the "
                f"annotations of these images (--{low}-json) or their label maps (--{low}-labels)."
            )


def _require_paths(cfg: CfgNode, given: Mapping[Part, list[GivenData]]) -> None:
    """Raise an error that names all files and folders that do not exist, with the options that replace them."""
    if is_url(cfg.DATASETS.VAL_PANOPTIC_JSON):
        raise ConfigError(
            f"DATASETS.VAL_PANOPTIC_JSON is {shown(cfg.DATASETS.VAL_PANOPTIC_JSON)}. Expected a file of this machine, "
            "with the folder of its PNG files. Copy both."
        )
    paths = [
        (f"{part}_{kind}", path)
        for part, sets in given.items()
        for kind, field in (("JSON", "json_file"), ("IMAGES", "images"), ("LABELS", "labels"))
        for path in dict.fromkeys(getattr(data, field) for data in sets)
    ]
    paths += [("VAL_PANOPTIC_JSON", cfg.DATASETS.VAL_PANOPTIC_JSON)]
    if missing := [(key, path) for key, path in paths if path and not is_url(path) and file_fault(path) == ABSENT]:
        named = ", ".join(f"DATASETS.{key} {path}" for key, path in missing)
        keys = dict.fromkeys(key for key, _ in missing)
        options = " and ".join(_OPTIONS.get(key, f"--{key.lower().replace('_', '-')}") for key in keys)
        does, it = ("does", "it has") if len(missing) == 1 else ("do", "they have")
        raise DataError(f"{named} {does} not exist. If {it} moved, give the new path with {options}.")


def _register_given(cfg: CfgNode, part: Part, data: GivenData) -> str:
    """Check and register a data set that is given by paths, and return its name."""
    if not data.images:
        key, value = ("JSON", data.json_file) if data.json_file else ("LABELS", data.labels)
        raise ConfigError(
            f"DATASETS.{part}_{key} is {value}, but DATASETS.{part}_IMAGES is empty. "
            f"Give the folder of its images (--{part.lower()}-images)."
        )
    name = _register_given_json(cfg, data) if data.json_file else ""
    return register_given_labels(cfg, part, data, name) if data.labels else name


def _register_given_json(cfg: CfgNode, data: GivenData) -> str:
    """Check and register the annotations of a data set that is given by paths, and return its name."""
    source, _ = _check(cfg, data.json_file, data.images)
    name = Path(data.json_file).stem
    if name in DatasetCatalog and MetadataCatalog.get(name).get("coco_source") != source:
        name = f"{name}_{zlib.crc32(repr(source).encode()):08x}"
    register_coco(name, **vars(source))
    return name


def _check_named(cfg: CfgNode, name: str) -> None:
    """Check a COCO data set of Detectron2's catalog, and register its usable part under the same name."""
    if name not in DatasetCatalog:
        raise ConfigError(
            f"data set {name!r} is not registered.{did_you_mean(name, DatasetCatalog.list())} A COCO-format data set "
            "needs no registration: set DATASETS.TRAIN_JSON and TRAIN_IMAGES."
        )
    metadata = MetadataCatalog.get(name)
    if metadata.get("coco_source") is not None or metadata.get("evaluator_type") != "coco":
        return
    json_file, image_root = Path(metadata.json_file), Path(metadata.image_root)
    faults = ((json_file, file_fault(json_file)), (image_root, folder_fault(image_root)))
    missing = [str(path) for path, fault in faults if fault]
    if missing:
        raise DataError(
            f"data set {name!r} is not complete: {' and '.join(missing)} missing. Put COCO's files there, or set the "
            "environment variable DETECTRON2_DATASETS to the folder that contains coco/. See datasets/README.md."
        )
    source, report = _check(cfg, str(json_file), str(image_root))
    if metadata.get("thing_classes", report.class_names) != report.class_names:
        raise DataError(
            f"data set {name!r} has the classes {listed(metadata.thing_classes)}, but {json_file} has "
            f"{listed(report.class_names)}. To use this file, give it as DATASETS.TRAIN_JSON or VAL_JSON."
        )
    # Detectron2's own loading function would include what the check dropped, and fail on it or train on it.
    DatasetCatalog.pop(name)
    register_coco(name, **vars(source))


def _check(cfg: CfgNode, json_file: str, image_root: str) -> tuple[CocoSource, CheckReport]:
    """Check a data set with the settings of `cfg.DATASETS`."""
    data = cfg.DATASETS
    report = check_dataset(
        json_file,
        image_root,
        data.CHECK,
        on_error=data.ON_ERROR,
        masks=cfg.MODEL.MASK_ON,
        allow_outside=data.ALLOW_OUTSIDE,
    )
    return CocoSource(json_file, image_root, data.ON_ERROR, data.ALLOW_OUTSIDE, report.unreadable), report


def _difference(classes: Sequence[str], other: Sequence[str]) -> str:
    """Say in one sentence how the classes of two data sets differ."""
    missing = [name for name in classes if name not in other]
    added = [name for name in other if name not in classes]
    parts = [f"{listed(missing)} only in the first"] if missing else []
    parts += [f"{listed(added)} only in the second"] if added else []
    if not parts:
        place = next(index for index, (a, b) in enumerate(zip(classes, other, strict=False)) if a != b)
        parts = [f"class {place} is {classes[place]} in the first and {other[place]} in the second"]
    return f"The difference: {'; '.join(parts)}."


def _fit_classes(cfg: CfgNode, *, training: bool, from_json: bool) -> None:
    """Compare the classes of all data sets with each other and with the model, and store their names in `cfg`."""
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    classes = {name: MetadataCatalog.get(name).get("thing_classes") for name in names}
    known = {name: found for name, found in classes.items() if found is not None}
    if not known:
        return
    first = next(iter(known))
    for name, found in known.items():
        if found != known[first]:
            raise DataError(
                f"data sets {first!r} and {name!r} have different classes: {listed(known[first])} and {listed(found)}. "
                f"{_difference(known[first], found)} The categories must have the same names in the order of their ids."
            )
    number = len(known[first])
    head = head_key(cfg)
    stated = cfg.MODEL[head].NUM_CLASSES
    if stated != number and (not from_json or stated != _DEFAULT_CLASSES):
        raise ConfigError(
            f"MODEL.{head}.NUM_CLASSES is {stated}, but data set {first!r} has {number} classes "
            f"({listed(known[first])}). Set it to {number}."
        )
    if not training and cfg.DATASETS.CLASS_NAMES and known[first] != cfg.DATASETS.CLASS_NAMES:
        is_order = sorted(known[first]) == sorted(cfg.DATASETS.CLASS_NAMES)
        raise DataError(
            f"the model was trained on {listed(cfg.DATASETS.CLASS_NAMES)}, but the classes of data set {first!r} are "
            f"{listed(known[first])}, so the metrics would be wrong. {_OTHER_ORDER if is_order else _OTHER_NAMES}"
        )
    cfg.DATASETS.CLASS_NAMES = list(known[first])
    if stated != number:
        logger.info("MODEL.%s.NUM_CLASSES set to %d, the classes of %s: %s", head, number, first, listed(known[first]))
        for section in HEADS:
            cfg.MODEL[section].NUM_CLASSES = number
