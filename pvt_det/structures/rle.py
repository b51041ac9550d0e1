"""COCO's run-length masks: a check that the runs cover the image, since the usual decoders read past broken ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def rle_problem(rle: dict[str, Any], height: int, width: int) -> str:
    """What is wrong with a run-length mask of an image of `height`×`width`; "" where nothing is."""
    size: Any = rle.get("size")
    # 64.0 equals 64, but evaluators take integers only.
    if size != [height, width] or not all(isinstance(side, int) for side in size):
        return "RLE whose size is not its image's [height, width], two integers"
    try:
        runs = _runs(rle.get("counts"))
    except (TypeError, ValueError, OverflowError):
        return "RLE whose counts cannot be read"
    # Each by itself, too: the sum of runs near 2^63 wraps around.
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
