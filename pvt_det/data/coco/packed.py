"""Checked annotations as flat NumPy arrays, in memory or in a file that all processes of a machine share.

A list of dictionaries takes several times the memory and cannot be shared: counting references copies its pages. Here,
the objects of an image are neighbors, so that a loader reads few pages for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pvt_det.data.coco.annotations import CocoData, entry_name
from pvt_det.data.coco.findings import Findings, Problem
from pvt_det.utils.arrays import Arrays, DamagedFileError, map_arrays, split_strings, write_arrays

FORMAT = "pvt_det annotations 1"
# Kinds of masks: none, polygons, and run lengths as COCO's string or as a list of integers.
NONE, POLYGONS, STRING, LIST = range(4)


@dataclass(frozen=True, eq=False)
class PackedCoco:
    """The content of a `CocoData` in arrays, with N images and M objects.

    Objects are sorted by image, and in the order of the annotation file within an image.

    Attributes:
        arrays: Arrays by name. Images: `image_ids`, `widths`, `heights` (N), and their file names as UTF-8 in `names`,
            each ending at `name_ends`. Objects: `object_ends` (N, where the objects of each image end), `positions` (M,
            places in the annotation file), `ids`, `classes` (indices of categories), `boxes` (`M×4`: x, y, width,
            height in pixels), `areas`, `crowds`. Masks: `mask_kinds` (M), `polygon_ends` (M, in `point_ends`),
            `point_ends` (in `points`), `points` (x, y, x, y, … in pixels), `run_ends` (M, in `runs`), `runs` (bytes).
            Numbers have a bit in `…_whole` that is set if the annotation file has an integer. `image_origins` and
            `object_origins` are the keys "origin" as UTF-8, each ending at `…_origin_ends`.
        categories: Categories, sorted by id.
        findings: Problems of the annotation file.
        sha256: Digest of the annotation file, or "" if the data does not come from one.
        path: The file that the arrays are mapped from, or None if they are in memory.
    """

    arrays: Arrays
    categories: list[dict[str, Any]]
    findings: Findings
    sha256: str = ""
    path: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a process that gets this object map the file, too, instead of a copy of the arrays."""
        if self.path is not None:
            return open_packed, (self.path,)
        return type(self), (self.arrays, self.categories, self.findings, self.sha256)

    @cached_property
    def class_names(self) -> list[str]:
        """The category names in the order of the contiguous class ids."""
        return [category["name"] for category in self.categories]

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.arrays["image_ids"])

    @property
    def objects(self) -> int:
        """Number of objects."""
        return len(self.arrays["ids"])

    @property
    def image_of_object(self) -> npt.NDArray[np.int64]:
        """Index of the image of each object, M."""
        return np.repeat(np.arange(self.images), np.diff(self.arrays["object_ends"], prepend=0))

    @property
    def file_names(self) -> list[str]:
        """File names of the images, N."""
        return split_strings(self.arrays["names"], self.arrays["name_ends"])

    def size(self, image: int) -> tuple[int, int]:
        """Return height and width of an image in pixels.

        Args:
            image: Index of the image.
        """
        return int(self.arrays["heights"][image]), int(self.arrays["widths"][image])

    def file_name(self, image: int) -> str:
        """Return the file name of an image.

        Args:
            image: Index of the image.
        """
        return split_strings(self.arrays["names"], self.arrays["name_ends"], range(image, image + 1))[0]

    def objects_of(self, image: int) -> range:
        """Return the indices of the objects of an image.

        Args:
            image: Index of the image.
        """
        return _range(self.arrays["object_ends"], image)

    def polygons(self, index: int) -> list[npt.NDArray[np.float32]]:
        """Return the polygons of an object, each x, y, x, y, … in pixels.

        Args:
            index: Index of the object, whose mask must consist of polygons.
        """
        lines = _range(self.arrays["polygon_ends"], index)
        return [self.arrays["points"][_part(self.arrays["point_ends"], line)].astype(np.float32) for line in lines]

    def run_lengths(self, index: int, size: tuple[int, int]) -> dict[str, Any]:
        """Return the run lengths of an object as in the annotation file.

        Args:
            index: Index of the object, whose mask must consist of run lengths.
            size: Height and width of its image in pixels.
        """
        runs = self.arrays["runs"][_part(self.arrays["run_ends"], index)]
        is_text = self.arrays["mask_kinds"][index] == STRING
        return {"size": list(size), "counts": runs.tobytes().decode("ascii") if is_text else runs.view("<i8").tolist()}

    def annotations(self, images: range) -> list[list[dict[str, Any]]]:
        """Return the annotations of neighboring images as in `CocoData`, in a list per image.

        Args:
            images: Indices of the images, at least one, in steps of 1.
        """
        arrays = self.arrays
        ends = [_range(arrays["object_ends"], image) for image in images]
        objects = range(ends[0].start, ends[-1].stop)
        masks = self._masks(objects)
        columns = [arrays[name][objects.start : objects.stop].tolist() for name in ("ids", "classes", "crowds")]
        boxes = self._numbers("boxes", range(4 * objects.start, 4 * objects.stop))
        areas = self._numbers("areas", objects)
        origins = split_strings(arrays["object_origins"], arrays["object_origin_ends"], objects)
        found = []
        for image, part in zip(images, ends, strict=True):
            image_id, size = int(arrays["image_ids"][image]), self.size(image)
            group = []
            for index in part:
                n = index - objects.start
                annotation = {
                    "id": columns[0][n],
                    "image_id": image_id,
                    "category_id": self.categories[columns[1][n]]["id"],
                    "bbox": boxes[4 * n : 4 * n + 4],
                    "area": areas[n],
                    "iscrowd": int(columns[2][n]),
                }
                mask = masks[n]
                if mask != NONE:
                    annotation["segmentation"] = mask if isinstance(mask, list) else self.run_lengths(index, size)
                if origins[n]:
                    annotation["origin"] = origins[n]
                group.append(annotation)
            found.append(group)
        return found

    def _masks(self, objects: range) -> list[int | list[list[float]]]:
        """Return the polygons of neighboring objects, or the kind of their mask if they have none."""
        polygons = (
            [_range(self.arrays["polygon_ends"], n) for n in (objects.start, objects.stop - 1)] if objects else []
        )
        masks: list[Any] = self.arrays["mask_kinds"][objects.start : objects.stop].tolist()
        if not polygons or polygons[0].start == polygons[1].stop:
            return masks
        lines = range(polygons[0].start, polygons[1].stop)
        first = _range(self.arrays["point_ends"], lines.start).start
        ends = self.arrays["point_ends"][lines.start : lines.stop].tolist()
        values = self._numbers("points", range(first, ends[-1]))
        cut = [values[a - first : b - first] for a, b in zip([first, *ends], ends, strict=False)]
        for n, kind in enumerate(masks):
            if kind == POLYGONS:
                part = _range(self.arrays["polygon_ends"], objects.start + n)
                masks[n] = cut[part.start - lines.start : part.stop - lines.start]
        return masks

    def _numbers(self, name: str, part: range) -> list[float]:
        """Return a part of the numbers of an array as in the annotation file, integers as such."""
        values = self.arrays[name].reshape(-1)[part.start : part.stop].tolist()
        first = part.start // 8
        whole = np.unpackbits(self.arrays[f"{name}_whole"][first : (part.stop + 7) // 8])[part.start - 8 * first :]
        for number in whole[: len(values)].nonzero()[0].tolist():
            values[number] = int(values[number])
        return values

    def unpack(self, keep: npt.NDArray[np.bool_] | None = None) -> CocoData:
        """Return the content as lists of dictionaries, in the order of the annotation file.

        Args:
            keep: Which of the M objects to return. None for all of them.
        """
        columns = [self.arrays[name].tolist() for name in ("image_ids", "widths", "heights")]
        origins = split_strings(self.arrays["image_origins"], self.arrays["image_origin_ends"])
        images = [
            {"id": id_, "file_name": name, "width": width, "height": height, **({"origin": origin} if origin else {})}
            for name, origin, id_, width, height in zip(self.file_names, origins, *columns, strict=True)
        ]
        found = list(chain.from_iterable(self.annotations(range(self.images)))) if images else []
        order = np.argsort(self.arrays["positions"])
        chosen = order if keep is None else order[keep[order]]
        return CocoData(images, [found[n] for n in chosen.tolist()], self.categories, self.sha256)

    def entry_names(self, what: str, indices: Iterable[int]) -> list[str]:
        """Name images or objects in a message, as `pvt_det.data.coco.annotations.entry_name` does.

        Args:
            what: "image" or "object".
            indices: Their indices.
        """
        ids, word = ("image_ids", "image") if what == "image" else ("ids", "annotation")
        origins, ends = self.arrays[f"{what}_origins"], self.arrays[f"{what}_origin_ends"]
        return [
            entry_name(
                word, {"id": int(self.arrays[ids][n]), "origin": split_strings(origins, ends, range(n, n + 1))[0]}, n
            )
            for n in indices
        ]


def _range(ends: npt.NDArray[np.int64], index: int) -> range:
    return range(int(ends[index - 1]) if index else 0, int(ends[index]))


def _part(ends: npt.NDArray[np.int64], index: int) -> slice:
    found = _range(ends, index)
    return slice(found.start, found.stop)


def write_packed(path: Path, data: PackedCoco) -> None:
    """Write packed annotations to a file, atomically.

    Args:
        path: The file to write or replace. Its folder must exist.
        data: The annotations.

    Raises:
        OSError: The file cannot be written. The old file is unchanged.
    """
    problems = [{"kind": kind, **asdict(problem)} for kind, problem in data.findings.problems.items()]
    facts = {"format": FORMAT, "categories": data.categories, "problems": problems, "sha256": data.sha256}
    write_arrays(path, data.arrays, facts)


def open_packed(path: Path) -> PackedCoco:
    """Open a file that `write_packed` wrote. All processes that open it share its memory.

    Args:
        path: The file.

    Returns:
        The annotations.

    Raises:
        DamagedFileError: The file is cut short or changed, or has another format or version.
        OSError: The file cannot be read.
    """
    arrays, facts = map_arrays(path)
    if facts.get("format") != FORMAT:
        raise DamagedFileError(f"{path} has the format {facts.get('format')!r}, not {FORMAT!r}")
    findings = Findings()
    findings.problems = {problem.pop("kind"): Problem(**problem) for problem in facts["problems"]}
    return PackedCoco(arrays, facts["categories"], findings, facts["sha256"], path)
