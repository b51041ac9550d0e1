"""Boxes that are numbers of another kind than COCO's: what every one of them allows, all of them together give away."""

from __future__ import annotations

from typing import Any

import numpy as np

from pvt_det.data.coco.annotations import CocoData

SHARES = (
    "boxes whose values are all from 0 to 1, as shares of the image's sides; COCO's are pixels: multiply x and width "
    "by the image's width, y and height by its height"
)
CORNERS = (
    "boxes that look like corners (x1, y1, x2, y2), since most would leave their images as COCO's x, y, width, height; "
    "write x2 - x1 and y2 - y1 in place of x2 and y2"
)
# Objects in which a set of real pixels may look otherwise by chance.
_NEARLY_ALL, _MOST = 0.95, 0.5
_SLACK = 1  # pixels by which annotation tools round


def suspect_boxes(data: CocoData) -> tuple[str, list[dict[str, Any]]] | None:
    """What the boxes probably are in place of x, y, width and height in pixels, and the annotations that say so.

    Args:
        data: a checked data set.

    Returns:
        `SHARES` or `CORNERS` with annotations; None where the boxes can be what they should.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in data.images}
    whole = [a for a in data.annotations if a["bbox"][2] > 0 and a["bbox"][3] > 0]
    if not whole:
        return None
    boxes = np.array([a["bbox"] for a in whole], dtype=np.float64)
    images = np.array([sizes[a["image_id"]] for a in whole], dtype=np.float64)
    shares = ((boxes >= 0) & (boxes <= 1)).all(axis=1)
    if shares.mean() >= _NEARLY_ALL:
        return SHARES, [whole[number] for number in np.flatnonzero(shares)]
    start, end = boxes[:, :2], boxes[:, 2:]
    leaves = (start + end > images + _SLACK).any(axis=1)
    fits = ((start >= -_SLACK) & (end > start) & (end <= images + _SLACK)).all(axis=1)
    if leaves.mean() > _MOST and fits.mean() >= _NEARLY_ALL:
        return CORNERS, [whole[number] for number in np.flatnonzero(fits)]
    return None
