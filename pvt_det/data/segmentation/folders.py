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
from pvt_det.data.images import IMAGE_SUFFIXES, read_header, read_image, read_labels
from pvt_det.data.storage.places import knows_headers, list_folder
from pvt_det.errors import ConfigError, DataError, StorageError
from pvt_det.utils.text import counted

logger = logging.getLogger(__name__)

# Metadata of a COCO-format data set that its panoptic data set inherits.
_FROM_COCO = ("coco_source", "json_file", "image_root", "thing_classes", "thing_dataset_id_to_contiguous_id")


@dataclass(frozen=True)
class LabelMaps:
    """Reads and checks the label maps of a data set.

    Attributes:
        num_classes: Number of classes K. Labels are 0 to K - 1.
        ignore_label: Value of pixels without a class, at most 255.
    """

    num_classes: int
    ignore_label: int

    @classmethod
    def from_config(cls, cfg: CfgNode) -> LabelMaps | None:
        """Build the reader of the label maps that a model is trained on.

        Args:
            cfg: Config whose `MODEL` is read.

        Returns:
            The reader, or None for a detector, which takes no label maps.
        """
        if not has_label_maps(cfg):
            return None
        return cls(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)

    def read(self, path: str | os.PathLike[str], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Read a label map.

        Args:
            path: Single-channel image file.
            size: Width and height of its image in pixels, which the label map must match.

        Returns:
            Labels `H×W`, uint8.

        Raises:
            DataError: The file is missing, broken or in color, has a different size, or contains an unknown label.
        """
        labels = read_labels(path)
        check_label_size(path, (labels.shape[1], labels.shape[0]), size)
        highest = int(np.max(labels, where=labels != self.ignore_label, initial=0))
        if highest >= self.num_classes:
            raise DataError(
                f"label map {path} contains the value {highest}. Expected classes 0 to {self.num_classes - 1}, or "
                f"{self.ignore_label} to ignore. If {highest} marks pixels without a class (void), set "
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE {highest}. If it is a class, name it in DATASETS.LABEL_NAMES and set "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES {highest + 1}. `pvt-det inspect --task semantic` lists all values. "
                "For ADE20K, first run datasets/prepare_ade20k.py."
            )
        return labels


def check_label_size(path: str | os.PathLike[str], found: tuple[int, int], expected: tuple[int, int]) -> None:
    """Check that a label map is as large as its image.

    Args:
        path: The label map, for the message.
        found: Width and height of the label map in pixels.
        expected: Width and height of its image in pixels, after EXIF rotation.

    Raises:
        DataError: The sizes differ.
    """
    if found != expected:
        raise DataError(
            f"label map {path} is {found[0]}x{found[1]}, but its image is {expected[0]}x{expected[1]} (after EXIF "
            "rotation). Expected the same size. Scale the label map with nearest-neighbor interpolation, or use the "
            "image that it was drawn on."
        )


@dataclass(frozen=True)
class LabelSource:
    """Location and settings of a data set with label maps, kept in its metadata as `label_source`.

    Attributes:
        image_root: Folder of the images.
        label_root: Folder of the label maps, PNG files with the names of the images.
        class_names: Class names, in the order of the labels 0, 1, ….
        ignore_label: Value of pixels without a class.
        on_error: What to do about broken data: "stop", "skip" or "strict".
        left_out: Image files that a check found unusable.
        coco_name: Registered data set with the images' objects (Panoptic FPN), or "" (semantic segmentation).
    """

    image_root: str
    label_root: str
    class_names: tuple[str, ...]
    ignore_label: int = 255
    on_error: str = "stop"
    left_out: frozenset[str] = frozenset()
    coco_name: str = ""

    def records(self) -> list[dict[str, Any]]:
        """Return a Detectron2 record for each usable image.

        Raises:
            DataError: An image without a label map, or a label map without an image, is not tolerated by `on_error`.
        """
        findings = Findings()
        records = self.find(findings)
        findings.raise_if_refused(self.label_root, self.on_error)
        return [record for record in records if record["file_name"] not in self.left_out]

    def find(self, findings: Findings) -> list[dict[str, Any]]:
        """Return a Detectron2 record for each image that has a label map.

        Args:
            findings: Receives images without a label map and label maps without an image.

        Raises:
            DataError: A folder does not exist.
        """
        records = DatasetCatalog.get(self.coco_name) if self.coco_name else self._images()
        labels = {Path(name).stem: name for name in _files(self.label_root, (".png",))}
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
            findings.add("images that differ only in folder or suffix", self.image_root, fatal=True)
        if not paired:
            findings.add("no image with a label map", f"looked in {self.image_root} and {self.label_root}", fatal=True)
        return paired

    def _images(self) -> list[dict[str, Any]]:
        files = _files(self.image_root, IMAGE_SUFFIXES)
        return [{"file_name": name, "image_id": Path(name).stem} for name in files]


def _files(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    return [name for name in list_folder(folder) if Path(name).suffix.lower() in suffixes]


def check_labels(source: LabelSource, level: str) -> frozenset[str]:
    """Check the images and label maps of a data set, and log the result.

    Args:
        source: The data set.
        level: "off" compares file names, "fast" also reads every file's header, "full" decodes every file.

    Returns:
        Unusable image files. The set is empty unless `source.on_error` is "skip".

    Raises:
        DataError: The data set cannot be used. The message counts each kind of problem and lists its first cases.
    """
    findings = Findings()
    labels = LabelMaps(len(source.class_names), source.ignore_label)
    records = source.find(findings)
    unusable = set()
    has_headers = knows_headers(source.image_root) and knows_headers(source.label_root)
    for record in records if level == "full" or (level == "fast" and has_headers) else ():
        image, label = record["file_name"], record["sem_seg_file_name"]
        try:
            if level == "full":
                height, width = read_image(image, "RGB").shape[:2]
                labels.read(label, (width, height))
            else:
                check_label_size(label, read_header(label), read_header(image))
        except StorageError:
            raise
        except DataError as error:
            findings.add("file that cannot be used", str(error))
            unusable.add(image)
    findings.raise_if_refused(source.label_root, source.on_error)
    lines = [
        f"{source.label_root}: {counted(len(records) - len(unusable), 'image')} with label maps",
        *findings.lines(source.on_error),
    ]
    logger.log(logging.WARNING if len(lines) > 1 else logging.INFO, "%s", "\n  ".join(lines))
    return frozenset(unusable)


def register_labels(name: str, source: LabelSource, panoptic_json: str = "") -> Metadata:
    """Register a data set with label maps, for semantic segmentation or Panoptic FPN.

    If `source.coco_name` is set, the data set is for Panoptic FPN: it has the objects of that data set, and label 0 of
    the label maps means any thing. Registering the same data set again under the same name has no effect.

    Args:
        name: Name in Detectron2's catalogs.
        source: The data set.
        panoptic_json: Ground truth in COCO's panoptic format, with PNG files in `panoptic_folder(panoptic_json)`. Only
            the evaluation of Panoptic FPN needs it; otherwise "".

    Returns:
        The metadata of the data set.

    Raises:
        ConfigError: The name belongs to a different data set.
        DataError: `panoptic_json` cannot be read, or has different stuff classes.
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
            raise ConfigError(f"data set {name!r} is already registered with different files or settings")
        return metadata
    DatasetCatalog.register(name, source.records)
    extra |= {"sem_seg_root": source.label_root, "ignore_label": source.ignore_label, "label_source": source}
    for key, value in {"stuff_classes": list(source.class_names), **extra}.items():
        setattr(metadata, key, value)
    return metadata


def panoptic_folder(panoptic_json: str | Path) -> Path:
    """Find the folder of PNG files that belongs to a panoptic json file.

    The folder has the name of the json file without its suffix. It is in the same folder as the json file, or one level
    up, as in COCO's archive.

    Args:
        panoptic_json: Annotations in COCO's panoptic format.

    Raises:
        DataError: The folder does not exist.
    """
    folder = Path(panoptic_json).with_suffix("")
    # Absolute, because a bare file name has no parent folder to go up from.
    places = (folder, folder.absolute().parent.parent / folder.name)
    for place in places:
        if place.is_dir():
            return place
    raise DataError(f"the PNG files of {panoptic_json} are missing: expected folder {places[0]} or {places[1]}")


def _stuff_ids(panoptic_json: str, class_names: tuple[str, ...]) -> dict[int, int]:
    """Map the category id of each stuff class to its value in the label maps."""
    try:
        categories = json.loads(Path(panoptic_json).read_text(encoding="utf-8"))["categories"]
        stuff = {category["name"]: int(category["id"]) for category in categories if not category["isthing"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{panoptic_json} cannot be read as COCO's panoptic format ({error!r}). Expected categories with id, name "
            "and isthing"
        ) from error
    if set(stuff) != set(class_names[1:]):
        raise DataError(
            f"{panoptic_json} has the stuff classes {sorted(stuff)}, but DATASETS.LABEL_NAMES is {list(class_names)}: "
            "expected one name for all things, followed by the stuff classes"
        )
    return {id_: class_names.index(name) for name, id_ in stuff.items()}
