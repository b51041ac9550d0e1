"""Training images made of several: mosaic (YOLOv4, arXiv 2004.10934) and copy-paste (arXiv 2012.07177).

The result is as large as the first image, with objects in its pixels, and goes through the other augmentations like any
image; so it stays in its group of wide or tall images. All choices are drawn from one generator, which the caller keys
by the sample's position. No library at hand has these for boxes and masks alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from detectron2.structures import polygons_to_bitmask

from pvt_det.data.targets import Labelled, Mask, Targets
from pvt_det.structures import rle

# Gives another image of the data set, drawn from the generator.
Draw = Callable[[np.random.Generator], Labelled]
_Bitmap = npt.NDArray[np.uint8]
_Window = tuple[int, int, int, int]

# An object that is cut or covered until less than this share is left no longer counts as one.
_LEAST_LEFT = 0.1
# Where the four images of a mosaic meet, as a share of each side.
_MEETING = (0.25, 0.75)


@dataclass(frozen=True)
class Mixer:
    """Mixes an image with others of the data set, now and then.

    Attributes:
        mosaic: probability of a mosaic.
        mosaic_scale: least and greatest size of its images, 1 being the first image's.
        copy_paste: probability that objects of another image are pasted in; needs masks.
        copy_paste_scale: least and greatest size of that image.
        background: colour where a mosaic has no image, in the order of the channels.
    """

    mosaic: float
    mosaic_scale: tuple[float, float]
    copy_paste: float
    copy_paste_scale: tuple[float, float]
    background: tuple[int, ...]

    def __call__(self, first: Labelled, generator: np.random.Generator, draw: Draw) -> Labelled:
        """Mix `first` with images that `draw` gives, or give it back."""
        mosaic, paste = generator.random(2) < (self.mosaic, self.copy_paste)
        if mosaic:
            first = self._mosaic([first, *(draw(generator) for _ in range(3))], generator)
        if paste:
            first = self._copy_paste(first, draw(generator), generator)
        return first

    def _mosaic(self, images: Sequence[Labelled], generator: np.random.Generator) -> Labelled:
        height, width = images[0].image.shape[:2]
        canvas = np.full_like(images[0].image, self.background)
        x, y = (int(side * generator.uniform(*_MEETING)) for side in (width, height))
        parts = []
        # The first image's place is drawn too; the corner that touches the meeting point tells where the rest goes.
        for place, number in enumerate(generator.permutation(4)):
            is_left, is_top = place % 2 == 0, place < 2
            window = (0 if is_left else x, 0 if is_top else y, x if is_left else width, y if is_top else height)
            size = _fit(images[number], (height, width), generator.uniform(*self.mosaic_scale))
            corner = (x - size[1] if is_left else x, y - size[0] if is_top else y)
            parts.append(_place(images[number], size, corner, window, canvas))
        return Labelled(canvas, _concatenate(parts))

    def _copy_paste(self, first: Labelled, other: Labelled, generator: np.random.Generator) -> Labelled:
        height, width = first.image.shape[:2]
        size = _fit(other, (height, width), generator.uniform(*self.copy_paste_scale))
        corner = tuple(
            int(generator.integers(min(0, room), max(0, room) + 1)) for room in (width - size[1], height - size[0])
        )
        source = np.zeros_like(first.image)
        placed = _place(other, size, (corner[0], corner[1]), (0, 0, width, height), source)
        pasted = _chosen(placed, generator.random(len(placed.classes)) < 0.5)
        if not len(pasted.classes):
            return first
        cover = _union(pasted, (height, width))
        image = np.where(cover[:, :, None] > 0, source, first.image)
        return Labelled(image, _concatenate([_covered(first.targets, cover), pasted]))


def _fit(sample: Labelled, room: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width at which an image fits into `room`, times `scale`."""
    height, width = sample.image.shape[:2]
    scale *= min(room[0] / height, room[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _place(
    sample: Labelled, size: tuple[int, int], corner: tuple[int, int], window: _Window, canvas: npt.NDArray[np.uint8]
) -> Targets:
    """Draw an image on a canvas.

    Args:
        sample: what to draw.
        size: height and width to draw it at.
        corner: x and y of its upper left corner on the canvas; may lie outside.
        window: x1, y1, x2, y2 of the part of the canvas that is drawn on.
        canvas: `H×W×C`, drawn on in place.

    Returns:
        Its objects there, in the canvas's pixels, cut at the window; those of which little is left are dropped.
    """
    height, width = sample.image.shape[:2]
    scale = np.array([size[1] / width, size[0] / height] * 2)
    x1, y1 = max(window[0], corner[0]), max(window[1], corner[1])
    x2, y2 = min(window[2], corner[0] + size[1]), min(window[3], corner[1] + size[0])
    if x2 <= x1 or y2 <= y1:
        return _chosen(sample.targets, np.zeros(len(sample.targets.classes), bool))
    resized = cv2.resize(np.ascontiguousarray(sample.image), size[::-1], interpolation=_interpolation(scale))
    canvas[y1:y2, x1:x2] = resized[y1 - corner[1] : y2 - corner[1], x1 - corner[0] : x2 - corner[0]]
    whole = sample.targets.boxes * scale + np.array(corner * 2)
    cut = np.clip(whole, (x1, y1, x1, y1), (x2, y2, x2, y2))
    left = _areas(cut) >= np.maximum(_areas(whole) * _LEAST_LEFT, 1)
    if sample.targets.masks is None:
        return _chosen(Targets(cut, sample.targets.classes, None), left)
    masks: list[rle.Rle] = []
    for index in np.flatnonzero(left):
        bitmap = _drawn(sample.targets.masks[index], scale[:2], size, corner, (canvas.shape[0], canvas.shape[1]))
        bitmap[:y1], bitmap[y2:], bitmap[:, :x1], bitmap[:, x2:] = 0, 0, 0, 0
        masks += rle.encode(bitmap[None])
    return _with_masks(sample.targets.classes[left], masks)


def _interpolation(scale: npt.NDArray[np.float64]) -> int:
    return cv2.INTER_AREA if scale.max() < 1 else cv2.INTER_LINEAR


def _drawn(
    mask: Mask, scale: npt.NDArray[np.float64], size: tuple[int, int], corner: tuple[int, int], room: tuple[int, int]
) -> _Bitmap:
    """A mask drawn on an empty canvas of height and width `room`, as `_place` draws its image."""
    if isinstance(mask, list):
        moved = [(p.reshape(-1, 2) * scale + corner).reshape(-1) for p in mask]
        return polygons_to_bitmask(moved, *room).astype(np.uint8)
    bitmap = np.zeros(room, np.uint8)
    resized = cv2.resize(rle.decode(mask), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    x1, y1 = max(0, corner[0]), max(0, corner[1])
    part = resized[y1 - corner[1] :, x1 - corner[0] :][: max(0, room[0] - y1), : max(0, room[1] - x1)]
    bitmap[y1 : y1 + part.shape[0], x1 : x1 + part.shape[1]] = part
    return bitmap


def _covered(targets: Targets, cover: _Bitmap) -> Targets:
    """The objects with what `cover` hides taken from their masks; those of which little is left are dropped."""
    assert targets.masks is not None
    kept, masks = [], list[rle.Rle]()
    for index, mask in enumerate(targets.masks):
        whole = _bitmap(mask, (cover.shape[0], cover.shape[1]))
        rest = (whole & ~cover & 1).astype(np.uint8, copy=False)
        if rest.sum() >= max(1, whole.sum() * _LEAST_LEFT):
            kept.append(index)
            masks += rle.encode(rest[None])
    return _with_masks(targets.classes[kept], masks)


def _union(targets: Targets, room: tuple[int, int]) -> _Bitmap:
    assert targets.masks is not None
    union = np.zeros(room, np.uint8)
    for mask in targets.masks:
        union |= _bitmap(mask, room)
    return union


def _bitmap(mask: Mask, room: tuple[int, int]) -> _Bitmap:
    if isinstance(mask, list):
        return polygons_to_bitmask([p.astype(np.float64) for p in mask], *room).astype(np.uint8)
    return rle.decode(mask)


def _with_masks(classes: npt.NDArray[np.int64], masks: list[rle.Rle]) -> Targets:
    """Objects whose boxes are as tight as their masks; empty masks are dropped."""
    boxes = rle.boxes(masks)
    boxes[:, 2:] += boxes[:, :2]
    return _chosen(Targets(boxes, classes, list(masks)), _areas(boxes) > 0)


def _chosen(targets: Targets, chosen: npt.NDArray[np.bool_]) -> Targets:
    masks = None if targets.masks is None else [targets.masks[index] for index in np.flatnonzero(chosen)]
    return Targets(targets.boxes[chosen], targets.classes[chosen], masks)


def _concatenate(parts: Sequence[Targets]) -> Targets:
    has_masks = all(part.masks is not None for part in parts)
    return Targets(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.classes for part in parts]),
        [mask for part in parts for mask in part.masks or ()] if has_masks else None,
    )


def _areas(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
