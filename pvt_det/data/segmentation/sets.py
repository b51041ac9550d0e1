"""The label maps that a config names: registered, checked, and fitted to the model, for `pvt_det.data.sets`."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from pvt_det.config.architecture import SEGMENTOR, has_label_maps, is_segmentor
from pvt_det.data.segmentation.folders import LabelSource, check_labels, register_labels
from pvt_det.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

# Detectron2's number, COCO's 53 stuff classes and one for all things: data given by folders takes its place.
_DEFAULT_CLASSES = 54


def register_given_labels(cfg: CfgNode, part: str, coco_name: str) -> str:
    """Check and register the data set of `DATASETS.<part>_LABELS`; gives its name.

    Args:
        cfg: keys of DATASETS are read.
        part: "TRAIN" or "VAL".
        coco_name: registered data set of the images' objects, or "" where there is none.

    Raises:
        ConfigError: a key that belongs to it is missing or wrong.
        DataError: the data set cannot be used.
    """
    data = cfg.DATASETS
    names = data.LABEL_NAMES
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ConfigError(
            f"DATASETS.LABEL_NAMES is {names}: with DATASETS.{part}_LABELS, expected a list of the classes' names, "
            "each once, from value 0 on"
        )
    panoptic_json = data.VAL_PANOPTIC_JSON if part == "VAL" else ""
    if part == "VAL" and bool(coco_name) != bool(panoptic_json):
        raise ConfigError(
            f"DATASETS.VAL_PANOPTIC_JSON is {panoptic_json!r}: expected the ground truth of Panoptic FPN with VAL_JSON "
            "and VAL_LABELS, and nothing otherwise"
        )
    source = LabelSource(
        image_root=data[f"{part}_IMAGES"],
        label_root=data[f"{part}_LABELS"],
        class_names=tuple(names),
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        on_error=data.ON_ERROR,
        coco_name=coco_name,
    )
    source = dataclasses.replace(source, left_out=check_labels(source, data.CHECK))
    name = f"{coco_name}_panoptic" if coco_name else Path(source.label_root).name
    if name in DatasetCatalog and MetadataCatalog.get(name).get("label_source") != source:
        name = f"{name}_{zlib.crc32(repr((source, panoptic_json)).encode()):08x}"
    register_labels(name, source, panoptic_json)
    return name


def check_named_labels(cfg: CfgNode, name: str) -> None:
    """Check that a registered data set has label maps where the model needs them, and only there.

    Raises:
        ConfigError: the data set is of another kind than the model.
        DataError: its files are missing or broken.
    """
    metadata = MetadataCatalog.get(name)
    architecture = cfg.MODEL.META_ARCHITECTURE
    if metadata.get("stuff_classes") is None:
        if has_label_maps(cfg):
            raise ConfigError(
                f"MODEL.META_ARCHITECTURE {architecture} needs label maps, and data set {name!r} has none: give "
                "DATASETS.TRAIN_LABELS and VAL_LABELS"
            )
        return
    if metadata.get("evaluator_type") == "sem_seg" and not is_segmentor(cfg):
        raise ConfigError(
            f"data set {name!r} has label maps only: MODEL.META_ARCHITECTURE is {architecture}, expected {SEGMENTOR}"
        )
    if metadata.get("label_source") is not None:
        return
    paths = [metadata.get(key) for key in ("image_root", "sem_seg_root", "json_file", "panoptic_json", "panoptic_root")]
    missing = [path for path in paths if path and not Path(path).exists()]
    if missing:
        raise DataError(
            f"data set {name!r} is not complete: {' and '.join(missing)} missing. Put it under datasets/ or the folder "
            "that the environment variable DETECTRON2_DATASETS names, and prepare its label maps as datasets/README.md "
            "says"
        )
    if metadata.get("evaluator_type") == "sem_seg":
        roots = (metadata.image_root, metadata.sem_seg_root)
        check_labels(LabelSource(*roots, tuple(metadata.stuff_classes), metadata.ignore_label), cfg.DATASETS.CHECK)


def fit_label_classes(cfg: CfgNode) -> None:
    """Compare the classes of all label maps with each other and with the model.

    A number of classes that nobody set is taken from DATASETS.LABEL_NAMES.

    Raises:
        ConfigError: the model has another number of classes, or ignores another value.
        DataError: training and test data have other classes.
    """
    known = {}
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        if (classes := metadata.get("stuff_classes")) is not None:
            known[name] = (list(classes), metadata.get("ignore_label"))
    if not known or not has_label_maps(cfg):
        return
    first, (classes, ignore_label) = next(iter(known.items()))
    if other := next((name for name, found in known.items() if found != known[first]), None):
        raise DataError(
            f"data sets {first!r} and {other!r} have other classes in their label maps, or another to ignore"
        )
    head = cfg.MODEL.SEM_SEG_HEAD
    if ignore_label != head.IGNORE_VALUE:
        raise ConfigError(f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {head.IGNORE_VALUE}, but {first!r} has {ignore_label}")
    number = len(classes)
    if number == head.NUM_CLASSES:
        return
    if not cfg.DATASETS.LABEL_NAMES or head.NUM_CLASSES != _DEFAULT_CLASSES:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {head.NUM_CLASSES}, but the label maps of {first!r} have "
            f"{number} classes: set it to {number}"
        )
    logger.info("MODEL.SEM_SEG_HEAD.NUM_CLASSES set to %d, the classes of %s", number, first)
    head.NUM_CLASSES = number
