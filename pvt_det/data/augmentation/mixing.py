"""Augmentations that combine several training images: mosaic and copy-paste.

Mosaic is from YOLOv4 (arXiv 2004.10934), copy-paste from arXiv 2012.07177. The result has the size of the first image,
so it stays in the same aspect-ratio group, and the other augmentations follow as for any image. Boxes and masks are in
pixels of the result. All random choices come from one generator, which the caller seeds from the sample's position. No
dependency of this package implements both augmentations for boxes and masks.
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

# Returns a random image of the data set, chosen with the generator.
Draw = Callable[[np.random.Generator], Labelled]
_Bitmap = npt.NDArray[np.uint8]
_Window = tuple[int, int, int, int]

# An object is dropped when less than this fraction of it remains visible.
_MIN_VISIBLE = 0.1
# Range of the point where the four images of a mosaic meet, as a fraction of each side.
_CENTER_RANGE = (0.25, 0.75)


@dataclass(frozen=True)
class Mixer:
    """Mixes an image with other images of the data set, with given probabilities.

    Attributes:
        mosaic: Probability of a mosaic, in [0, 1].
        mosaic_scale: Range of the size of a mosaic's images, relative to the first image.
        copy_paste: Probability of pasting objects of another image, in [0, 1]. Requires masks.
        copy_paste_scale: Range of the size of that other image, relative to the first image.
        background: Color of a mosaic where no image is, one value from 0 to 255 per channel.
    """

    mosaic: float
    mosaic_scale: tuple[float, float]
    copy_paste: float
    copy_paste_scale: tuple[float, float]
    background: tuple[int, ...]

    def __call__(self, first: Labelled, generator: np.random.Generator, draw: Draw) -> Labelled:
        """Mix an image with others, or return it unchanged.

        Args:
            first: The image with its objects.
            generator: Source of all random choices.
            draw: Returns another image of the data set, chosen with the generator.

        Returns:
            An image of the same size, with its objects.
        """
        mosaic, paste = generator.random(2) < (self.mosaic, self.copy_paste)
        if mosaic:
            first = self._mosaic([first, *(draw(generator) for _ in range(3))], generator)
        if paste:
            first = self._copy_paste(first, draw(generator), generator)
        return first

    def _mosaic(self, images: Sequence[Labelled], generator: np.random.Generator) -> Labelled:
        height, width = images[0].image.shape[:2]
        canvas = np.full_like(images[0].image, self.background)
        x, y = (int(side * generator.uniform(*_CENTER_RANGE)) for side in (width, height))
        parts = []
        # The first image's quadrant is random too. Each image has one of its corners at the center point.
        for quadrant, number in enumerate(generator.permutation(4)):
            is_left, is_top = quadrant % 2 == 0, quadrant < 2
            window = (0 if is_left else x, 0 if is_top else y, x if is_left else width, y if is_top else height)
            size = _fit(images[number], (height, width), generator.uniform(*self.mosaic_scale))
            corner = (x - size[1] if is_left else x, y - size[0] if is_top else y)
            parts.append(_place(images[number], size, corner, window, canvas))
        return Labelled(canvas, _concatenate(parts))

    def _copy_paste(self, first: Labelled, other: Labelled, generator: np.random.Generator) -> Labelled:
        height, width = first.image.shape[:2]
        size = _fit(other, (height, width), generator.uniform(*self.copy_paste_scale))
        corner = tuple(
            int(generator.integers(min(0, slack), max(0, slack) + 1)) for slack in (width - size[1], height - size[0])
        )
        source = np.zeros_like(first.image)
        placed = _place(other, size, (corner[0], corner[1]), (0, 0, width, height), source)
        pasted = _select(placed, generator.random(len(placed.classes)) < 0.5)
        if not len(pasted.classes):
            return first
        cover = _union(pasted, (height, width))
        image = np.where(cover[:, :, None] > 0, source, first.image)
        return Labelled(image, _concatenate([_hide(first.targets, cover), pasted]))


def _fit(sample: Labelled, bounds: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the height and width at which an image fits into `bounds`, times `scale`."""
    height, width = sample.image.shape[:2]
    scale *= min(bounds[0] / height, bounds[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _place(
    sample: Labelled, size: tuple[int, int], corner: tuple[int, int], window: _Window, canvas: npt.NDArray[np.uint8]
) -> Targets:
    """Draw an image on a canvas, in place.

    Args:
        sample: The image with its objects.
        size: Height and width to draw it at, in pixels.
        corner: Position (x, y) of its upper left corner on the canvas. It may be outside.
        window: Part of the canvas (x1, y1, x2, y2) to draw on.
        canvas: Pixels `H×W×C`, modified in place.

    Returns:
        The image's objects in pixels of the canvas, clipped to the window. Objects of which little remains are dropped.
    """
    height, width = sample.image.shape[:2]
    scale = np.array([size[1] / width, size[0] / height] * 2)
    x1, y1 = max(window[0], corner[0]), max(window[1], corner[1])
    x2, y2 = min(window[2], corner[0] + size[1]), min(window[3], corner[1] + size[0])
    if x2 <= x1 or y2 <= y1:
        return _select(sample.targets, np.zeros(len(sample.targets.classes), bool))
    resized = cv2.resize(np.ascontiguousarray(sample.image), size[::-1], interpolation=_interpolation(scale))
    canvas[y1:y2, x1:x2] = resized[y1 - corner[1] : y2 - corner[1], x1 - corner[0] : x2 - corner[0]]
    whole = sample.targets.boxes * scale + np.array(corner * 2)
    cut = np.clip(whole, (x1, y1, x1, y1), (x2, y2, x2, y2))
    visible = _areas(cut) >= np.maximum(_areas(whole) * _MIN_VISIBLE, 1)
    if sample.targets.masks is None:
        return _select(Targets(cut, sample.targets.classes, None), visible)
    masks: list[rle.Rle] = []
    for index in np.flatnonzero(visible):
        bitmap = _draw_mask(sample.targets.masks[index], scale[:2], size, corner, (canvas.shape[0], canvas.shape[1]))
        bitmap[:y1], bitmap[y2:], bitmap[:, :x1], bitmap[:, x2:] = 0, 0, 0, 0
        masks += rle.encode(bitmap[None])
    return _with_masks(sample.targets.classes[visible], masks)


def _interpolation(scale: npt.NDArray[np.float64]) -> int:
    return cv2.INTER_AREA if scale.max() < 1 else cv2.INTER_LINEAR


def _draw_mask(
    mask: Mask, scale: npt.NDArray[np.float64], size: tuple[int, int], corner: tuple[int, int], shape: tuple[int, int]
) -> _Bitmap:
    """Draw a mask on an empty canvas of height and width `shape`, where `_place` draws its image."""
    if isinstance(mask, list):
        moved = [(p.reshape(-1, 2) * scale + corner).reshape(-1) for p in mask]
        return polygons_to_bitmask(moved, *shape).astype(np.uint8)
    bitmap = np.zeros(shape, np.uint8)
    resized = cv2.resize(rle.decode(mask), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    x1, y1 = max(0, corner[0]), max(0, corner[1])
    part = resized[y1 - corner[1] :, x1 - corner[0] :][: max(0, shape[0] - y1), : max(0, shape[1] - x1)]
    bitmap[y1 : y1 + part.shape[0], x1 : x1 + part.shape[1]] = part
    return bitmap


def _hide(targets: Targets, cover: _Bitmap) -> Targets:
    """Remove the pixels of `cover` from all masks, and drop objects of which little remains."""
    assert targets.masks is not None
    kept, masks = [], list[rle.Rle]()
    for index, mask in enumerate(targets.masks):
        whole = _bitmap(mask, (cover.shape[0], cover.shape[1]))
        rest = (whole & ~cover & 1).astype(np.uint8, copy=False)
        if rest.sum() >= max(1, whole.sum() * _MIN_VISIBLE):
            kept.append(index)
            masks += rle.encode(rest[None])
    return _with_masks(targets.classes[kept], masks)


def _union(targets: Targets, shape: tuple[int, int]) -> _Bitmap:
    assert targets.masks is not None
    union = np.zeros(shape, np.uint8)
    for mask in targets.masks:
        union |= _bitmap(mask, shape)
    return union


def _bitmap(mask: Mask, shape: tuple[int, int]) -> _Bitmap:
    if isinstance(mask, list):
        return polygons_to_bitmask([p.astype(np.float64) for p in mask], *shape).astype(np.uint8)
    return rle.decode(mask)


def _with_masks(classes: npt.NDArray[np.int64], masks: list[rle.Rle]) -> Targets:
    """Build objects with the tight boxes of their masks, without empty masks."""
    boxes = rle.boxes(masks)
    boxes[:, 2:] += boxes[:, :2]
    return _select(Targets(boxes, classes, list(masks)), _areas(boxes) > 0)


def _select(targets: Targets, selected: npt.NDArray[np.bool_]) -> Targets:
    masks = None if targets.masks is None else [targets.masks[index] for index in np.flatnonzero(selected)]
    return Targets(targets.boxes[selected], targets.classes[selected], masks)


def _concatenate(parts: Sequence[Targets]) -> Targets:
    has_masks = all(part.masks is not None for part in parts)
    return Targets(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.classes for part in parts]),
        [mask for part in parts for mask in part.masks or ()] if has_masks else None,
    )


def _areas(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
