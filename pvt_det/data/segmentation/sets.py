"""Registration and checks of a config's data sets with label maps, for `pvt_det.data.sets`."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from pvt_det.config.architecture import SEGMENTOR, has_label_maps, is_segmentor
from pvt_det.config.given_data import GivenData, Part
from pvt_det.data.segmentation.folders import LabelSource, check_labels, register_labels
from pvt_det.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

# Detectron2's default: COCO's 53 stuff classes and one for all things. Data sets given as folders replace it.
_DEFAULT_CLASSES = 54


def register_given_labels(cfg: CfgNode, part: Part, given: GivenData, coco_name: str) -> str:
    """Check and register a data set of `DATASETS.<part>_LABELS`.

    Args:
        cfg: Config whose `DATASETS` and `MODEL.SEM_SEG_HEAD.IGNORE_VALUE` are read.
        part: "TRAIN" or "VAL".
        given: The paths of the data set.
        coco_name: Registered data set with the images' objects (Panoptic FPN), or "" (semantic segmentation).

    Returns:
        Name of the registered data set.

    Raises:
        ConfigError: A related key is missing or wrong.
        DataError: The data set cannot be used.
    """
    data = cfg.DATASETS
    names = data.LABEL_NAMES
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ConfigError(
            f"DATASETS.LABEL_NAMES is {names}: with DATASETS.{part}_LABELS, expected a list of unique class names, in "
            "the order of the labels 0, 1, …"
        )
    panoptic_json = data.VAL_PANOPTIC_JSON if part == "VAL" else ""
    if part == "VAL" and bool(coco_name) != bool(panoptic_json):
        raise ConfigError(
            f"DATASETS.VAL_PANOPTIC_JSON is {panoptic_json!r}: expected Panoptic FPN's ground truth if VAL_JSON and "
            "VAL_LABELS are set, and '' otherwise"
        )
    source = LabelSource(
        image_root=given.images,
        label_root=given.labels,
        class_names=tuple(names),
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        on_error=data.ON_ERROR,
        coco_name=coco_name,
    )
    source = dataclasses.replace(source, left_out=check_labels(source, data.CHECK))
    name = f"{coco_name}_panoptic" if coco_name else Path(source.label_root).name
    if name in DatasetCatalog and not _is_same(name, source, panoptic_json):
        name = f"{name}_{zlib.crc32(repr((source, panoptic_json)).encode()):08x}"
    register_labels(name, source, panoptic_json)
    return name


def _is_same(name: str, source: LabelSource, panoptic_json: str) -> bool:
    """Return whether the data set that is registered under a name is the given one."""
    metadata = MetadataCatalog.get(name)
    return metadata.get("label_source") == source and metadata.get("panoptic_json", "") == panoptic_json


def check_named_labels(cfg: CfgNode, name: str) -> None:
    """Check that a registered data set has the label maps that the model needs.

    Args:
        cfg: Config whose `MODEL` and `DATASETS.CHECK` are read.
        name: Name in Detectron2's catalogs.

    Raises:
        ConfigError: The data set lacks the label maps or the objects that the model needs.
        DataError: Files of the data set are missing or broken.
    """
    metadata = MetadataCatalog.get(name)
    architecture = cfg.MODEL.META_ARCHITECTURE
    if metadata.get("stuff_classes") is None:
        if has_label_maps(cfg):
            raise ConfigError(
                f"MODEL.META_ARCHITECTURE {architecture} needs label maps, but data set {name!r} has none. Set "
                "DATASETS.TRAIN_LABELS and VAL_LABELS"
            )
        return
    if metadata.get("evaluator_type") == "sem_seg" and not is_segmentor(cfg):
        raise ConfigError(
            f"data set {name!r} has only label maps: MODEL.META_ARCHITECTURE is {architecture}, expected {SEGMENTOR}"
        )
    if metadata.get("label_source") is not None:
        return
    paths = [metadata.get(key) for key in ("image_root", "sem_seg_root", "json_file", "panoptic_json", "panoptic_root")]
    missing = [path for path in paths if path and not Path(path).exists()]
    if missing:
        raise DataError(
            f"data set {name!r} is incomplete: {' and '.join(missing)} missing. Put it in datasets/ or in the folder "
            "that the environment variable DETECTRON2_DATASETS names, and prepare its label maps as described in "
            "datasets/README.md"
        )
    if metadata.get("evaluator_type") == "sem_seg":
        roots = (metadata.image_root, metadata.sem_seg_root)
        check_labels(LabelSource(*roots, tuple(metadata.stuff_classes), metadata.ignore_label), cfg.DATASETS.CHECK)


def fit_label_classes(cfg: CfgNode) -> None:
    """Check that all label maps have the same classes, and fit the model's number of classes to them.

    `MODEL.SEM_SEG_HEAD.NUM_CLASSES` is set from `DATASETS.LABEL_NAMES` if it still has its default.

    Args:
        cfg: Config whose data sets are registered. `NUM_CLASSES` may be changed in place.

    Raises:
        ConfigError: The model has a different number of classes or ignores a different value.
        DataError: Training and test data have different classes.
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
            f"data sets {first!r} and {other!r} have different classes or ignored values in their label maps"
        )
    head = cfg.MODEL.SEM_SEG_HEAD
    if ignore_label != head.IGNORE_VALUE:
        raise ConfigError(f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {head.IGNORE_VALUE}, but {first!r} uses {ignore_label}")
    number = len(classes)
    if number == head.NUM_CLASSES:
        return
    if not cfg.DATASETS.LABEL_NAMES or head.NUM_CLASSES != _DEFAULT_CLASSES:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {head.NUM_CLASSES}, but the label maps of {first!r} have "
            f"{number} classes. Set it to {number}"
        )
    logger.info("MODEL.SEM_SEG_HEAD.NUM_CLASSES set to %d, the classes of %s", number, first)
    head.NUM_CLASSES = number
