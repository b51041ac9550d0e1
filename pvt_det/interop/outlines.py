"""Convert masks to polygons along the edges of their pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import contourpy
import cv2
import numpy as np
from numpy.typing import NDArray

from pvt_det.structures.rle import Rle, boxes, decode

# Points of a polygon, N×2 (x, y), without a copy of the first point at the end.
Ring = NDArray[np.float64]

# Points that are nearer to a straight line between others are left out, in pixels. It keeps polygons easy to edit.
_TOLERANCE = 0.5
_BETWEEN = 0.5  # level between the pixels of the mask (1) and the others (0)


def outlines(rle: Rle) -> list[list[Ring]]:
    """Return the outlines of a mask, in pixels, where the first pixel reaches from 0 to 1.

    Args:
        rle: Run-length mask.

    Returns:
        For each connected part of the mask, its outer ring, then the rings of its holes, which run in the opposite
        direction. An empty mask has no parts.
    """
    x, y, width, height = (int(value) for value in boxes([rle])[0])
    if not width:
        return []
    # With a margin, so that the outline is closed at the edges of the image.
    mask = np.pad(decode(rle)[y : y + height, x : x + width], 1).astype(np.float64)
    columns, rows = np.arange(width + 2) + x - 0.5, np.arange(height + 2) + y - 0.5
    lines: Any = contourpy.contour_generator(columns, rows, mask, fill_type=contourpy.FillType.OuterOffset)
    parts = zip(*lines.filled(_BETWEEN, np.inf), strict=True)
    return [[_simplified(points[start : end - 1]) for start, end in pairwise(ends)] for points, ends in parts]


def joined(rings: Iterable[Ring]) -> Ring:
    """Join rings to one polygon by lines of no width, for formats that have one polygon for each object.

    The polygon covers the same area as the rings, without the holes.

    Args:
        rings: One or more rings. Those of holes run in the opposite direction.
    """
    first, *others = rings
    if not others:
        return first
    closed = [np.concatenate([ring, ring[:1]]) for ring in (first, *others)]
    way_back: Sequence[Ring] = [ring[:1] for ring in reversed(others[:-1])]
    return np.concatenate([*closed, *way_back])


def _simplified(ring: Ring) -> Ring:
    simple = cv2.approxPolyDP(ring.astype(np.float32)[:, None], _TOLERANCE, True)[:, 0]
    # A single pixel would become a line.
    return simple.astype(np.float64) if len(simple) > 2 else ring
