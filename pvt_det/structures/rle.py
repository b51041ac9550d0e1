"""Masks as COCO's run lengths: encoding, decoding, area, box, and a check that the runs cover the image.

A run-length mask ("RLE") is a dict with `size`, `[height, width]`, and `counts`, the lengths of alternating runs of 0
and 1 down the columns, as bytes or text in COCO's compressed form or as a list of integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from hotcoco import mask as mask_util

Rle = dict[str, Any]


def encode(masks: npt.NDArray[np.uint8]) -> list[Rle]:
    """Encode `N×H×W` masks of 0 and 1 as compressed run lengths."""
    if len(masks) == 0:
        return []
    # COCO's runs go down the columns: `H×W×N` in Fortran order is N×W×H in memory.
    columns = np.ascontiguousarray(masks.transpose(0, 2, 1))
    rles: Any = mask_util.encode(columns.transpose(2, 1, 0))
    return list(rles)


def decode(rle: Rle) -> npt.NDArray[np.uint8]:
    """Decode one mask, compressed or not, to `H×W` of 0 and 1."""
    return np.ascontiguousarray(mask_util.decode(rle))


def from_polygon(polygon: Sequence[float], height: int, width: int) -> Rle:
    """Rasterize a polygon as COCO's own code does.

    Args:
        polygon: x, y, x, y … in pixels; may reach out of the image.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """
    return mask_util.frPyObjects([list(polygon)], height, width)[0]


def compress(rle: Rle) -> Rle:
    """Return a mask in compressed form; a mask that already is compressed is returned unchanged."""
    return mask_util.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle


def areas(rles: Sequence[Rle]) -> npt.NDArray[np.float64]:
    """Count the pixels of each of `N` masks."""
    return np.array(mask_util.area(list(rles)) if rles else [], dtype=np.float64)


def boxes(rles: Sequence[Rle]) -> npt.NDArray[np.float64]:
    """Compute the tight box of each of `N` masks: `N×4`, x, y, width, height in pixels; zeros for an empty mask."""
    return np.array(mask_util.toBbox(list(rles)) if rles else [], dtype=np.float64).reshape(-1, 4)


def rle_problem(rle: Rle, height: int, width: int) -> str:
    """Say what is wrong with a run-length mask of an image of `height`×`width`; "" where nothing is.

    The usual decoders read past the end of broken runs, so this comes first.
    """
    size: Any = rle.get("size")
    # 64.0 equals 64, but evaluators take integers only.
    if size != [height, width] or not all(isinstance(side, int) for side in size):
        return "RLE whose size is not its image's [height, width], two integers"
    try:
        runs = _runs(rle.get("counts"))
    except (TypeError, ValueError, OverflowError):
        return "RLE whose counts cannot be read"
    # Each run is checked too, since the sum of runs near 2^63 wraps around.
    if ((runs < 0) | (runs > height * width)).any() or int(runs.sum()) != height * width:
        return "RLE whose runs do not cover its image"
    return ""


def _runs(counts: Any) -> npt.NDArray[np.int64]:
    """Run lengths of a list, or of COCO's string: 5 bits a character, low bits first, differences from run 3 on."""
    if isinstance(counts, list):
        runs = np.array(counts)
        if runs.dtype.kind not in "iu" or runs.ndim != 1:
            raise TypeError(f"runs must be a flat list of integers, not {runs.ndim} dimensions of {runs.dtype}")
        return runs.astype(np.int64)
    if not isinstance(counts, str):
        raise TypeError("counts must be a string or a list")
    digits = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    if digits.size == 0 or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("not COCO's string")
    last = np.flatnonzero(digits & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(digits.size) - np.repeat(first, last - first + 1)
    if place.max() > 6:
        raise OverflowError("a run of more than 35 bits")
    values = np.add.reduceat((digits & 31) << (5 * place), first)
    negative = digits[last] & 16 != 0
    values[negative] -= np.int64(1) << (5 * (last - first + 1)[negative])
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
