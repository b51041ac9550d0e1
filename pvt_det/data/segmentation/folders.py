"""Data sets for semantic and panoptic segmentation: images and label maps, paired by name."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from pvt_det.config.architecture import has_label_maps
from pvt_det.data.coco.findings import Findings
from pvt_det.data.images import IMAGE_SUFFIXES, check_size, read_header, read_image, read_labels
from pvt_det.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

# What of a COCO-format data set's metadata goes over to the panoptic one made of it.
_FROM_COCO = ("coco_source", "json_file", "image_root", "thing_classes", "thing_dataset_id_to_contiguous_id")


@dataclass(frozen=True)
class LabelMaps:
    """Reads and checks the label maps of a data set.

    Attributes:
        num_classes: K; classes are 0 … K-1.
        ignore_label: value of pixels that belong to no class, at most 255.
    """

    num_classes: int
    ignore_label: int

    @classmethod
    def from_config(cls, cfg: CfgNode) -> LabelMaps | None:
        """The label maps that the model is trained on; None for a detector, which takes none."""
        if not has_label_maps(cfg):
            return None
        return cls(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)

    def read(self, path: str | os.PathLike[str], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Read a label map, `H×W`.

        Args:
            path: the file.
            size: width and height that it must have, its image's.

        Raises:
            DataError: the file is missing, broken, in colour, of another size, or holds other values.
        """
        labels = read_labels(path)
        check_size(path, (labels.shape[1], labels.shape[0]), size)
        highest = int(np.max(labels, where=labels != self.ignore_label, initial=0))
        if highest >= self.num_classes:
            raise DataError(
                f"label map {path} holds the value {highest}; expected classes 0 to {self.num_classes - 1}, or "
                f"{self.ignore_label} to ignore. Set MODEL.SEM_SEG_HEAD.NUM_CLASSES to the number of classes; ADE20K's "
                "own files are first converted by datasets/prepare_ade20k.py"
            )
        return labels


@dataclass(frozen=True)
class LabelSource:
    """Where a data set with label maps lies and what of it is used; in the metadata as `label_source`.

    Attributes:
        image_root: folder of the images.
        label_root: folder of the label maps, PNG files of the images' names.
        class_names: of the classes 0, 1, …
        ignore_label: value of pixels that belong to no class.
        on_error: "stop", "skip" or "strict".
        left_out: image files that a check found unusable.
        coco_name: registered data set that holds the images' objects (Panoptic FPN), or "" (semantic segmentation).
    """

    image_root: str
    label_root: str
    class_names: tuple[str, ...]
    ignore_label: int = 255
    on_error: str = "stop"
    left_out: frozenset[str] = frozenset()
    coco_name: str = ""

    def records(self) -> list[dict[str, Any]]:
        """One Detectron2 record for each image that can be used.

        Raises:
            DataError: images or label maps lack their partner.
        """
        findings = Findings()
        records = self.find(findings)
        findings.raise_if_refused(self.label_root, self.on_error)
        return [record for record in records if record["file_name"] not in self.left_out]

    def find(self, findings: Findings) -> list[dict[str, Any]]:
        """Records of the images that have a label map; what lacks its partner goes to `findings`.

        Raises:
            DataError: a folder does not exist.
        """
        records = DatasetCatalog.get(self.coco_name) if self.coco_name else self._images()
        labels = {path.stem: str(path) for path in _files(self.label_root, (".png",))}
        names = {Path(record["file_name"]).stem for record in records}
        for name in sorted(labels.keys() - names):
            findings.add("label map without an image", labels[name])
        paired = []
        for record in records:
            if label := labels.get(Path(record["file_name"]).stem):
                paired.append(record | {"sem_seg_file_name": label})
            else:
                findings.add("image without a label map", record["file_name"])
        if len(names) < len(records):
            findings.add("images that differ in folder or suffix only", self.image_root, fatal=True)
        if not paired:
            findings.add("no image with a label map", f"looked in {self.image_root} and {self.label_root}", fatal=True)
        return paired

    def _images(self) -> list[dict[str, Any]]:
        files = _files(self.image_root, IMAGE_SUFFIXES)
        return [{"file_name": str(path), "image_id": path.stem} for path in files]


def _files(folder: str, suffixes: tuple[str, ...]) -> list[Path]:
    if not Path(folder).is_dir():
        raise DataError(f"folder {folder} does not exist")
    return sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in suffixes)


def check_labels(source: LabelSource, level: str) -> frozenset[str]:
    """Check images and label maps before the first step; the outcome is also logged.

    Args:
        source: the data set.
        level: "off" compares names, "fast" reads every file's header too, "full" decodes every file.

    Returns:
        Image files that cannot be used; there are none but under "skip".

    Raises:
        DataError: the data set cannot be used; counts every kind of problem and names its first offenders.
    """
    findings = Findings()
    labels = LabelMaps(len(source.class_names), source.ignore_label)
    records = source.find(findings)
    unusable = set()
    for record in records if level != "off" else ():
        image, label = record["file_name"], record["sem_seg_file_name"]
        try:
            if level == "full":
                height, width = read_image(image, "RGB").shape[:2]
                labels.read(label, (width, height))
            else:
                check_size(label, read_header(label), read_header(image))
        except DataError as error:
            findings.add("file that cannot be used", str(error))
            unusable.add(image)
    findings.raise_if_refused(source.label_root, source.on_error)
    lines = [
        f"{source.label_root}: {len(records) - len(unusable)} images with label maps",
        *findings.lines(source.on_error),
    ]
    logger.log(logging.WARNING if len(lines) > 1 else logging.INFO, "%s", "\n  ".join(lines))
    return frozenset(unusable)


def register_labels(name: str, source: LabelSource, panoptic_json: str = "") -> Metadata:
    """Register a data set with label maps, for semantic segmentation or Panoptic FPN.

    With a `source.coco_name` it is Panoptic FPN's: objects of that data set, and label maps in which 0 is all things.
    Registering the same data set again under the same name changes nothing.

    Args:
        name: name in Detectron2's catalogs.
        source: the data set.
        panoptic_json: ground truth in COCO's panoptic format, see `panoptic_folder`; needed for evaluation of Panoptic
            FPN only.

    Raises:
        ConfigError: the name is taken by another data set.
        DataError: `panoptic_json` cannot be read, or has other stuff classes.
    """
    extra: dict[str, Any] = {"evaluator_type": "sem_seg", "image_root": source.image_root}
    if source.coco_name:
        coco = MetadataCatalog.get(source.coco_name)
        extra = {"evaluator_type": "coco_panoptic_seg", **{key: coco.get(key) for key in _FROM_COCO}}
    if panoptic_json:
        extra["panoptic_json"] = panoptic_json
        extra["panoptic_root"] = str(panoptic_folder(panoptic_json))
        extra["stuff_dataset_id_to_contiguous_id"] = _stuff_ids(panoptic_json, source.class_names)
    metadata = MetadataCatalog.get(name)
    if name in DatasetCatalog:
        if metadata.get("label_source") != source or metadata.get("panoptic_json") != extra.get("panoptic_json"):
            raise ConfigError(f"a data set {name!r} is registered already, with other files or settings")
        return metadata
    DatasetCatalog.register(name, source.records)
    extra |= {"sem_seg_root": source.label_root, "ignore_label": source.ignore_label, "label_source": source}
    for key, value in {"stuff_classes": list(source.class_names), **extra}.items():
        setattr(metadata, key, value)
    return metadata


def panoptic_folder(panoptic_json: str | Path) -> Path:
    """Folder of the PNG files: named as the json, beside it, or beside the json's folder as COCO's are unpacked.

    Raises:
        DataError: there is no such folder.
    """
    beside = Path(panoptic_json).with_suffix("")
    places = (beside, beside.parents[1] / beside.name)
    for place in places:
        if place.is_dir():
            return place
    raise DataError(f"the PNG files of {panoptic_json} are missing: expected them in {places[0]} or {places[1]}")


def _stuff_ids(panoptic_json: str, class_names: tuple[str, ...]) -> dict[int, int]:
    """Category id of each stuff class → its number in the label maps."""
    try:
        categories = json.loads(Path(panoptic_json).read_text(encoding="utf-8"))["categories"]
        stuff = {category["name"]: int(category["id"]) for category in categories if not category["isthing"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{panoptic_json} cannot be read as COCO's panoptic format ({error!r}); expected categories with id, name "
            "and isthing"
        ) from error
    if set(stuff) != set(class_names[1:]):
        raise DataError(
            f"{panoptic_json} has the stuff classes {sorted(stuff)}, but DATASETS.LABEL_NAMES are {list(class_names)}: "
            "expected a name for all things, then these"
        )
    return {id_: class_names.index(name) for name, id_ in stuff.items()}
