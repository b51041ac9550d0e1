"""Records of COCO-format data sets that are made when they are read, from arrays that all processes share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from pvt_det.data.coco.packed import NONE, POLYGONS, PackedCoco
from pvt_det.data.storage.references import join
from pvt_det.data.targets import Mask, Targets
from pvt_det.structures.rle import compress

_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ChosenImages:
    """Some images of an annotation file.

    Attributes:
        data: The checked annotations.
        image_root: Folder that the file names are relative to, a path or URL.
        indices: Indices of the images.
    """

    data: PackedCoco
    image_root: str
    indices: npt.NDArray[np.int64]

    @property
    def objects(self) -> int:
        """Number of their annotations."""
        return int(np.diff(self.data.arrays["object_ends"], prepend=0)[self.indices].sum())

    @property
    def file_names(self) -> list[str]:
        """File names, in the order of the annotation file."""
        names = self.data.file_names
        return [names[index] for index in np.sort(self.indices).tolist()]


class CocoRecords(Dataset[dict[str, Any]]):
    """Detectron2 records of images, which take no memory of their own.

    Args:
        parts: The images of each annotation file, in the order of the records.
        masks: Whether the packed "targets" of the records have masks, and objects without a mask are left out. None
            leaves out the targets.
    """

    def __init__(self, parts: Sequence[ChosenImages], masks: bool | None = None) -> None:
        self.parts = list(parts)
        self.masks = masks
        self._ends = np.cumsum([len(part.indices) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the record of an image: its file, size and id, and its "targets".

        Args:
            index: Index of the record.
        """
        number = int(np.searchsorted(self._ends, index, side="right"))
        part = self.parts[number]
        image = int(part.indices[index - self._ends[number]])  # counted from the end of the part
        height, width = part.data.size(image)
        record = {
            "file_name": join(part.image_root, part.data.file_name(image)),
            "height": height,
            "width": width,
            "image_id": int(part.data.arrays["image_ids"][image]),
        }
        return record if self.masks is None else record | {"targets": _targets(part.data, image, masks=self.masks)}

    def select(self, keep: _Flags) -> CocoRecords:
        """Return some of the records.

        Args:
            keep: Which of them.
        """
        flags = np.split(keep, self._ends[:-1])
        chosen = [replace(p, indices=p.indices[flag]) for p, flag in zip(self.parts, flags, strict=True)]
        return CocoRecords(chosen, self.masks)

    @property
    def is_wide(self) -> _Flags:
        """Whether each image is wider than high."""
        wide = [(p.data.arrays["widths"] > p.data.arrays["heights"])[p.indices] for p in self.parts]
        return np.concatenate(wide)

    def has_objects(self, *, masks: bool = False) -> _Flags:
        """Return whether each image has an object to train on.

        Args:
            masks: Whether objects need a mask.
        """
        found = []
        for part in self.parts:
            owners = part.data.image_of_object[_trainable(part.data, masks=masks)]
            found.append(np.bincount(owners, minlength=part.data.images)[part.indices] > 0)
        return np.concatenate(found)

    def class_counts(self) -> list[int]:
        """Return the number of objects of each class that can be trained on."""
        total = np.zeros(len(self.parts[0].data.categories), dtype=np.int64)
        for part in self.parts:
            chosen = np.zeros(part.data.images, dtype=np.bool_)
            chosen[part.indices] = True
            counted = _trainable(part.data, masks=False) & chosen[part.data.image_of_object]
            total += np.bincount(part.data.arrays["classes"][counted], minlength=len(total))
        return total.tolist()

    def classes(self) -> Iterator[list[int]]:
        """Yield the class indices of the objects of each image, crowd regions included, but no empty boxes."""
        for part in self.parts:
            has_box, classes = _has_box(part.data), part.data.arrays["classes"]
            for image in part.indices.tolist():
                objects = part.data.objects_of(image)
                yield classes[objects.start : objects.stop][has_box[objects.start : objects.stop]].tolist()


def _targets(data: PackedCoco, image: int, *, masks: bool) -> Targets:
    objects = data.objects_of(image)
    part = slice(objects.start, objects.stop)
    kept = np.flatnonzero(_trainable(data, masks=masks, part=part)) + part.start
    boxes = data.arrays["boxes"][kept]
    boxes[:, 2:] += boxes[:, :2]
    classes = data.arrays["classes"][kept].astype(np.int64)
    return Targets(boxes, classes, [_mask(data, index, image) for index in kept.tolist()] if masks else None)


def _mask(data: PackedCoco, index: int, image: int) -> Mask:
    if data.arrays["mask_kinds"][index] == POLYGONS:
        return data.polygons(index)
    return compress(data.run_lengths(index, data.size(image)))


def _trainable(data: PackedCoco, *, masks: bool, part: slice = slice(None)) -> _Flags:
    """Return which objects have a box and, if necessary, a mask. Crowd regions are left out."""
    found = _has_box(data, part) & ~data.arrays["crowds"][part]
    return found & (data.arrays["mask_kinds"][part] != NONE) if masks else found


def _has_box(data: PackedCoco, part: slice = slice(None)) -> _Flags:
    boxes = data.arrays["boxes"][part]
    return (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
