"""Register COCO-format data sets in Detectron2's catalogs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode

from pvt_det.data.coco.annotations import CocoData
from pvt_det.data.coco.cache import load_annotations, open_annotations
from pvt_det.data.coco.packed import PackedCoco
from pvt_det.data.coco.records import ChosenImages, CocoRecords
from pvt_det.data.storage.places import attach
from pvt_det.errors import ConfigError

__all__ = ["register_coco"]


@dataclass(frozen=True)
class CocoSource:
    """Files and settings of a COCO-format data set, stored in its metadata as `coco_source`.

    Attributes:
        json_file: Annotation file in COCO's instances format.
        image_root: Folder that `file_name` is relative to.
        on_error: How to handle problems: "stop", "skip" or "strict". See `pvt_det.data.coco.findings`.
        allow_outside: Whether image file names may be absolute or contain `..`.
        unreadable: Ids of images to leave out because a check could not read them.
    """

    json_file: str
    image_root: str
    on_error: str = "stop"
    allow_outside: bool = False
    unreadable: frozenset[int] = frozenset()

    def open(self) -> PackedCoco:
        """Open the checked annotations, also those of unreadable images. Processes share their memory.

        Raises:
            DataError: The annotations cannot be used.
        """
        data = open_annotations(self.json_file, allow_outside=self.allow_outside)
        data.findings.raise_if_refused(self.json_file, self.on_error)
        return data

    def load(self) -> CocoData:
        """Load the checked annotations as dictionaries.

        Returns:
            The valid annotations of readable images.

        Raises:
            DataError: The annotations cannot be used.
        """
        self.open()
        data, _ = load_annotations(self.json_file, allow_outside=self.allow_outside)
        return data.without(self.unreadable)

    def left_out(self) -> dict[str, int]:
        """Count what `on_error` "skip" leaves out.

        Returns:
            The number of annotations or images by kind of problem.

        Raises:
            DataError: The annotations cannot be used.
        """
        problems = open_annotations(self.json_file, allow_outside=self.allow_outside).findings.problems.items()
        dropped = {kind: problem.count for kind, problem in problems if problem.outcome(self.on_error) == "dropped"}
        return dropped | ({"unreadable image": len(self.unreadable)} if self.unreadable else {})

    def images(self) -> ChosenImages:
        """Return the readable images, sorted by id, with their annotations.

        Raises:
            DataError: The annotations cannot be used, or the images are in a folder of shards that cannot be used.
        """
        data = self.open()
        attach(self.image_root)
        ids = data.arrays["image_ids"]
        order = np.argsort(ids)
        return ChosenImages(data, self.image_root, order[~np.isin(ids, list(self.unreadable))[order]])

    def records(self) -> list[dict[str, Any]]:
        """Return one Detectron2 record per image, sorted by image id, without annotations with an empty box.

        Raises:
            DataError: The annotations cannot be used.
        """
        images = self.images()
        records = CocoRecords([images])
        objects = images.data.annotations(range(images.data.images))
        classes = {category["id"]: number for number, category in enumerate(images.data.categories)}
        return [
            records[number] | {"annotations": [_record(a, classes) for a in objects[image] if min(a["bbox"][2:]) > 0]}
            for number, image in enumerate(images.indices.tolist())
        ]


def _record(annotation: dict[str, Any], classes: dict[int, int]) -> dict[str, Any]:
    """Convert an annotation to Detectron2's format."""
    return {
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "iscrowd": annotation["iscrowd"],
        "category_id": classes[annotation["category_id"]],
        **({"segmentation": annotation["segmentation"]} if "segmentation" in annotation else {}),
    }


def plain_source(name: str) -> CocoSource | None:
    """Return the source of a registered data set whose records are just those of an annotation file, or None.

    Args:
        name: Name in Detectron2's catalogs.
    """
    source = MetadataCatalog.get(name).get("coco_source")
    return source if source is not None and DatasetCatalog.data.get(name) == source.records else None


def register_coco(
    name: str,
    json_file: str | Path,
    image_root: str | Path,
    *,
    on_error: str = "stop",
    allow_outside: bool = False,
    unreadable: frozenset[int] = frozenset(),
) -> Metadata:
    """Register a COCO-format data set, with class names and ids from its annotation file.

    Registering the same data set again under the same name has no effect.

    Args:
        name: Name in Detectron2's catalogs.
        json_file: Annotation file in COCO's instances format.
        image_root: Folder that `file_name` is relative to.
        on_error: How to handle problems: "stop", "skip" or "strict". See `pvt_det.data.coco.findings`.
        allow_outside: Whether image file names may be absolute or contain `..`.
        unreadable: Ids of images to leave out.

    Returns:
        The metadata of the data set in Detectron2's `MetadataCatalog`.

    Raises:
        ConfigError: The name belongs to a data set with different files or settings.
        DataError: The annotations cannot be used.
    """
    source = CocoSource(str(json_file), str(image_root), on_error, allow_outside, unreadable)
    if name in DatasetCatalog:
        metadata = MetadataCatalog.get(name)
        if metadata.get("coco_source") != source:
            raise ConfigError(f"data set {name!r} is already registered with different files or settings")
        return metadata
    categories = source.open().categories
    DatasetCatalog.register(name, source.records)
    return MetadataCatalog.get(name).set(
        coco_source=source,
        json_file=source.json_file,
        image_root=source.image_root,
        evaluator_type="coco",
        thing_classes=[category["name"] for category in categories],
        thing_dataset_id_to_contiguous_id={category["id"]: n for n, category in enumerate(categories)},
    )
