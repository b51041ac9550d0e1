"""Read and check an annotation file into arrays, thousands of annotations at a time.

The rules and messages are those of `pvt_det.data.coco.annotations`. An annotation that is not plainly valid here is
checked there, alone.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pvt_det.data.coco.annotations import (
    MASK_SIDE,
    MAX_COORDINATE,
    MAX_ID,
    MAX_OUTLINE,
    MIN_SIDE,
    NUMBERS,
    Content,
    check_not_empty,
    read_content,
)
from pvt_det.data.coco.findings import Findings
from pvt_det.data.coco.packed import LIST, NONE, POLYGONS, STRING, PackedCoco
from pvt_det.utils.arrays import Arrays, pack_strings
from pvt_det.utils.strict_json import garbage_kept

# Few enough to stay in the processor's cache.
_CHUNK = 2048
_KINDS = {type(None): NONE, list: POLYGONS, dict: STRING}
# A key is missing, or a value has another type or is too large.
_UNUSUAL = (LookupError, TypeError, AttributeError, ValueError, OverflowError, struct.error)
_Flags = npt.NDArray[np.bool_]
_Counts = npt.NDArray[np.int64]


def read_packed(json_file: str | Path, findings: Findings, *, allow_outside: bool = False) -> PackedCoco:
    """Read and check an annotation file as `read_annotations` does, but several times as fast.

    Args:
        json_file: Annotation file in COCO's instances format.
        findings: Collects all problems of the file.
        allow_outside: Whether image file names may be absolute or contain `..`.

    Returns:
        The valid images, annotations and categories. Of the keys that `CocoData` does not describe, only those of
        categories are kept.

    Raises:
        DataError: The file is missing, not JSON in UTF-8, or cut short; a key has two different values; or the lists of
            images, annotations or categories are missing.
    """
    with garbage_kept():
        content = read_content(json_file, findings, allow_outside=allow_outside)
        packer = _Packer(content)
        annotations, parts = content.annotations, [packer.columns([])]
        for start in range(0, len(annotations), _CHUNK):
            parts.append(packer.pack(annotations[start : start + _CHUNK], start))
            # The parsed annotations take gigabytes.
            annotations[start : start + _CHUNK] = [None] * len(annotations[start : start + _CHUNK])
        arrays = _pack_images(content) | _sorted_by_image(parts, len(content.images))
    single = ~arrays["crowds"]
    has_boxes = bool((arrays["boxes"][single, 2:] > 0).all(axis=1).any())
    counts = (len(content.images), len(content.categories), len(single), int(single.sum()))
    check_not_empty(*counts, has_boxes=has_boxes, findings=findings)
    return PackedCoco(arrays, content.categories, findings, content.sha256)


class _Packer:
    """Packs the annotations of a file into columns. Numbers of polygons and so on are counted per annotation."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self.images = {id_: number for number, id_ in enumerate(content.images)}
        self.classes = {category["id"]: number for number, category in enumerate(content.categories)}
        sizes = [(image["width"], image["height"]) for image in content.images.values()]
        self.sizes = np.array(sizes, dtype=np.float64).reshape(-1, 2)

    def pack(self, rows: Sequence[Any], start: int) -> Arrays:
        """Check annotations, and return the columns of the valid ones. `start` is the index of the first one."""
        try:
            columns = self.columns(rows)
            plain = self._plainly_valid(rows, columns)
        except _UNUSUAL:
            plain = np.zeros(len(rows), dtype=np.bool_)
        if plain.all():
            return columns
        numbered = enumerate(zip(rows, plain.tolist(), strict=True), start)
        return self.columns([row for index, (row, is_valid) in numbered if is_valid or self.content.check(row, index)])

    def columns(self, rows: Sequence[dict[str, Any]]) -> Arrays:
        """Return the columns of annotations, or raise one of `_UNUSUAL` if some are not as required."""
        ids, crowds = [a["id"] for a in rows], [a["iscrowd"] for a in rows]
        images, categories = [a["image_id"] for a in rows], [a["category_id"] for a in rows]
        _require_types(chain(ids, crowds, images, categories), (int,))
        boxes, areas = [a["bbox"] for a in rows], [a["area"] for a in rows]
        if not {4}.issuperset(map(len, boxes)):
            raise ValueError("a box has more or fewer than four numbers")
        sides = list(chain.from_iterable(boxes))
        _require_types(chain(areas, sides), NUMBERS)
        origins, origin_ends = _origins(rows)
        return {
            "owners": np.array([self.images[image] for image in images], dtype=np.int64),
            "ids": np.array(ids, dtype=np.int64),
            "classes": np.array([self.classes[category] for category in categories], dtype=np.int32),
            "crowds": np.array(crowds, dtype=np.int64),
            **_numbers("boxes", sides),
            **_numbers("areas", areas),
            **_masks([a.get("segmentation") for a in rows]),
            "origin_lengths": np.diff(origin_ends, prepend=0),
            "origins": origins,
        }

    def _plainly_valid(self, rows: Sequence[dict[str, Any]], columns: Arrays) -> _Flags:
        """Return which annotations have no problem and need no repair."""
        boxes, sizes = columns["boxes"].reshape(-1, 4), self.sizes[columns["owners"]]
        low, sides = boxes[:, :2], boxes[:, 2:]
        high, crowds, areas = low + sides, columns["crowds"], columns["areas"]
        valid = (np.abs(columns["ids"]) <= MAX_ID) & ((crowds == 0) | (crowds == 1))
        valid &= (areas >= 0) & (areas < MAX_COORDINATE**2)
        valid &= (np.abs(boxes) < MAX_COORDINATE).all(axis=1) & (sides > 0).all(axis=1)
        valid &= ((low < sizes) & (high > 0)).all(axis=1)
        valid &= ((low >= -1) & (high <= sizes + 1)).all(axis=1)
        valid &= np.array([not a.get("ignore") for a in rows], dtype=np.bool_)
        if self.content.repeated:
            valid &= np.array([a["id"] not in self.content.repeated for a in rows], dtype=np.bool_)
        valid &= columns["kinds"] <= POLYGONS  # the pixels of run lengths are counted one by one
        lines = np.repeat(np.arange(len(rows)), columns["line_counts"])
        valid[lines[~_plain_lines(columns, sides.min(axis=1, initial=np.inf)[lines])]] = False
        return valid


def _plain_lines(columns: Arrays, smaller_sides: npt.NDArray[np.float64]) -> _Flags:
    """Return which polygons have three points, and no coordinate that may be a mistake."""
    counts = columns["point_counts"]
    if not len(counts):
        return np.zeros(0, dtype=np.bool_)
    if counts.min() < 6:
        raise ValueError("a polygon has fewer than three points")
    starts = np.cumsum(counts) - counts
    low, high = (reduce.reduceat(columns["points"], starts) for reduce in (np.minimum, np.maximum))
    enlarged = np.maximum(1, MASK_SIDE / np.maximum(MIN_SIDE, smaller_sides))
    in_bounds = (low > -MAX_COORDINATE) & (high < MAX_COORDINATE)
    return (counts % 2 == 0) & in_bounds & (counts * (high - low) * enlarged <= MAX_OUTLINE)


def _masks(masks: list[Any]) -> Arrays:
    kinds = np.array([_KINDS[mask.__class__] for mask in masks], dtype=np.int8)
    polygons = [mask if mask.__class__ is list else () for mask in masks]
    lines = list(chain.from_iterable(polygons))
    _require_types(lines, (list,))
    counts = _lengths(polygons)
    kinds[(kinds == POLYGONS) & (counts == 0)] = NONE
    run_lengths, runs = np.zeros(len(masks), dtype=np.int64), []
    for index in np.flatnonzero(kinds == STRING).tolist():
        found = masks[index]["counts"]
        runs.append(found.encode("ascii") if isinstance(found, str) else np.array(found, dtype="<i8").tobytes())
        run_lengths[index] = len(runs[-1])
        kinds[index] = STRING if isinstance(found, str) else LIST
    return {
        "kinds": kinds,
        "line_counts": counts,
        "point_counts": _lengths(lines),
        **_numbers("points", list(chain.from_iterable(lines))),
        "run_lengths": run_lengths,
        "runs": np.frombuffer(b"".join(runs), dtype=np.uint8),
    }


def _numbers(name: str, values: list[Any]) -> Arrays:
    """Return numbers, and which of them are integers. Anything else is a `struct.error`."""
    numbers = np.frombuffer(struct.pack(f"{len(values)}d", *values), dtype=np.float64)
    whole = np.zeros(len(values), dtype=np.bool_)
    # Few numbers have no fraction.
    candidates = np.flatnonzero(numbers == np.floor(numbers))
    whole[candidates] = [isinstance(values[index], int) for index in candidates.tolist()]
    return {name: numbers, f"{name}_whole": whole}


def _require_types(values: Iterable[Any], types: Collection[type]) -> None:
    if not set(types).issuperset(map(type, values)):
        raise TypeError("a value has another type")


def _lengths(items: Sequence[Any]) -> _Counts:
    return np.fromiter(map(len, items), dtype=np.int64, count=len(items))


def _origins(entries: Sequence[dict[str, Any]]) -> tuple[npt.NDArray[np.uint8], _Counts]:
    """Return the place of each entry in the files that it was converted from, or "", as packed strings."""
    origins = [entry.get("origin") for entry in entries]
    if not any(origins):
        return np.zeros(0, dtype=np.uint8), np.zeros(len(origins), dtype=np.int64)
    return pack_strings(origin if isinstance(origin, str) else "" for origin in origins)


def _pack_images(content: Content) -> Arrays:
    images = list(content.images.values())
    names, name_ends = pack_strings(image["file_name"] for image in images)
    origins, origin_ends = _origins(images)
    return {
        "image_ids": np.array(list(content.images), dtype=np.int64),
        "widths": np.array([image["width"] for image in images], dtype=np.int64),
        "heights": np.array([image["height"] for image in images], dtype=np.int64),
        "names": names,
        "name_ends": name_ends,
        "image_origins": origins,
        "image_origin_ends": origin_ends,
    }


def _sorted_by_image(parts: list[Arrays], images: int) -> Arrays:
    """Join the columns of all annotations, and sort them by image."""
    joined = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    order = np.argsort(joined["owners"], kind="stable")
    line_order = _ragged(order, joined["line_counts"])
    point_order = _ragged(line_order, joined["point_counts"])
    run_order = _ragged(order, joined["run_lengths"])
    origin_order = _ragged(order, joined["origin_lengths"])
    return {
        "object_ends": np.cumsum(np.bincount(joined["owners"], minlength=images), dtype=np.int64),
        "positions": order,
        "ids": joined["ids"][order],
        "classes": joined["classes"][order],
        "crowds": joined["crowds"][order] == 1,
        "boxes": joined["boxes"].reshape(-1, 4)[order],
        "boxes_whole": np.packbits(joined["boxes_whole"].reshape(-1, 4)[order]),
        "areas": joined["areas"][order],
        "areas_whole": np.packbits(joined["areas_whole"][order]),
        "mask_kinds": joined["kinds"][order],
        "polygon_ends": np.cumsum(joined["line_counts"][order]),
        "point_ends": np.cumsum(joined["point_counts"][line_order]),
        "points": joined["points"][point_order],
        "points_whole": np.packbits(joined["points_whole"][point_order]),
        "run_ends": np.cumsum(joined["run_lengths"][order]),
        "runs": joined["runs"][run_order],
        "object_origins": joined["origins"][origin_order],
        "object_origin_ends": np.cumsum(joined["origin_lengths"][order]),
    }


def _ragged(order: _Counts, counts: _Counts) -> _Counts:
    """Return the order of items that belong to groups in another order. `counts` is the number of items per group."""
    starts, chosen = np.cumsum(counts) - counts, counts[order]
    found = np.repeat(starts[order] - (np.cumsum(chosen) - chosen), chosen)
    found += np.arange(len(found))
    return found
