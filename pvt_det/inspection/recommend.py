"""Recommend training settings from the statistics of a data set, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pvt_det.errors import DataError
from pvt_det.inspection.statistics import Statistics


@dataclass(frozen=True)
class _Task:
    """Constants of a detector.

    Attributes:
        strides: Strides of the feature levels with anchors.
        octaves: Anchor sizes of a level as multiples of its first size.
        coco_factor: Anchor size of the COCO models as a multiple of the stride.
        is_square: Whether all anchors are squares.
        cpu_pixels: Number of training pixels that PVT-Tiny processes on two CPU cores in `cpu_minutes`, measured with
            `configs/small`. This is enough to learn a few classes from random weights.
        cpu_minutes: Duration of such a run in minutes.
    """

    strides: tuple[int, ...]
    octaves: tuple[float, ...]
    coco_factor: float
    cpu_pixels: float
    cpu_minutes: int
    is_square: bool = False


_TASKS = {
    "retinanet": _Task((8, 16, 32, 64, 128), (1.0, 2 ** (1 / 3), 2 ** (2 / 3)), 4.0, 270e6, 15),
    # One square anchor per position.
    **dict.fromkeys(("atss", "gfl"), _Task((8, 16, 32, 64, 128), (1.0,), 8.0, 270e6, 15, is_square=True)),
    "mask-rcnn": _Task((4, 8, 16, 32, 64), (1.0,), 8.0, 140e6, 20),
}
# Short side of the images in pixels: minimum and maximum on a CPU, and the value of the recipes on a GPU.
_CPU_SIDES, _GPU_SIDE = (256, 320), 800
# 90% of the objects should span at least this many cells of the finest feature map.
_CELLS = 2
# Train for 12 epochs, as on COCO, but on at least 16,000 images and for at most 100 epochs.
_EPOCHS, _MIN_SEEN, _MAX_EPOCHS = 12, 16_000, 100
_COCO_DETECTIONS = 100
# Height-to-width ratios of Detectron2's models and the published models.
COMMON_RATIOS = (0.5, 1.0, 2.0)
# Anchor sizes as multiples of the stride. The COCO models use 4 (RetinaNet) and 8 (all others).
_FACTORS = tuple(2 ** (step / 2) for step in range(7))
# A box is covered if an anchor overlaps it with at least this IoU.
_MIN_IOU = 0.5
# Covered fractions that differ by at most this much count as equal.
_EQUAL = 0.002
# Use the ratios of the data instead of the common ones if they cover at least this fraction of the boxes more.
_GAIN = 0.02
# Mean distance between a box center and the nearest anchor center along each axis, as a fraction of the stride.
_OFFSET = 0.25


@dataclass(frozen=True)
class Anchors:
    """Anchor sizes and ratios, and how well they cover the boxes.

    Attributes:
        factor: First anchor size of a level as a multiple of its stride.
        sizes: Anchor sizes of each level in pixels.
        ratios: Height-to-width ratios.
        covered: Fraction of the boxes (0 to 1) that an anchor overlaps with an IoU of at least 0.5.
        covered_by_coco: The same fraction for the sizes and ratios of the COCO models.
    """

    factor: float
    sizes: list[list[float]]
    ratios: list[float]
    covered: float
    covered_by_coco: float


@dataclass(frozen=True)
class Settings:
    """Recommended settings and their reasons.

    Attributes:
        short_side: Short side of the test images in pixels.
        short_side_reason: Reason for `short_side`, as lines.
        train_sides: Short sides in pixels that training samples from.
        max_sizes: Limits of the long side in pixels, for testing and for training.
        anchors: Anchor sizes and ratios.
        detections: Maximum number of detections per image.
        detections_reason: Reason for `detections`.
        batch: Number of images per iteration.
        iterations: Number of iterations.
        iterations_reason: Reason for `iterations`.
        learning_rate: Base learning rate.
        learning_rate_reason: Reason for `learning_rate`.
    """

    short_side: int
    short_side_reason: tuple[str, ...]
    train_sides: list[int]
    max_sizes: tuple[int, int]
    anchors: Anchors
    detections: int
    detections_reason: str
    batch: int
    iterations: int
    iterations_reason: str
    learning_rate: float
    learning_rate_reason: str


def recommend(
    statistics: Statistics, task: str, *, on_cpu: bool, batch: int, pretrained: bool, most_objects: int
) -> Settings:
    """Recommend training settings for a data set.

    Args:
        statistics: Statistics of the training data.
        task: One of `pvt_det.inspection.tasks.TASKS`.
        on_cpu: Whether to train on a CPU, where a run should end within half an hour, instead of GPUs.
        batch: Number of images per iteration.
        pretrained: Whether the backbone starts from ImageNet weights.
        most_objects: Largest number of objects in an image of the training and validation data.

    Raises:
        DataError: The data set has no boxes.
    """
    if not len(statistics.boxes):
        raise DataError("The training data has no boxes. Choosing anchors needs at least one.")
    kind = _TASKS[task]
    sizes = np.repeat([size for size, _ in statistics.image_sizes], [n for _, n in statistics.image_sizes], axis=0)
    short_side, short_side_reason = _short_side(statistics, sizes, kind, on_cpu=on_cpu)
    aspect = float(np.quantile(sizes.max(axis=1) / sizes.min(axis=1), 0.95))
    steps = (0.9, 1.0, 1.1) if on_cpu else (0.8, 0.85, 0.9, 0.95, 1.0)
    longest = math.ceil(short_side * min(aspect, 2.0))
    scale = short_side / statistics.box_images.min(axis=1, keepdims=True)
    pixels = short_side * short_side * float(np.mean(np.minimum(sizes.max(axis=1) / sizes.min(axis=1), 2.0)))
    iterations, iterations_reason = _iterations(statistics.images, batch, kind, pixels if on_cpu else None)
    learning_rate, learning_rate_reason = _learning_rate(batch, pretrained)
    detections, detections_reason = _detections(most_objects)
    return Settings(
        short_side=short_side,
        short_side_reason=short_side_reason,
        train_sides=[round(short_side * step / 8) * 8 for step in steps],
        max_sizes=(longest, math.ceil(longest * steps[-1])),
        anchors=fit_anchors(
            statistics.boxes * scale, kind.strides, kind.octaves, kind.coco_factor, is_square=kind.is_square
        ),
        detections=detections,
        detections_reason=detections_reason,
        batch=batch,
        iterations=iterations,
        iterations_reason=iterations_reason,
        learning_rate=learning_rate,
        learning_rate_reason=learning_rate_reason,
    )


def _short_side(statistics: Statistics, sizes: np.ndarray, kind: _Task, *, on_cpu: bool) -> tuple[int, tuple[str, ...]]:
    native = float(np.median(sizes.min(axis=1)))
    if not on_cpu:
        side = _rounded(min(_GPU_SIDE, 2 * native))
        return side, (
            f"{_GPU_SIDE} as in the recipes, but at most twice the images' median short side of {native:.0f}.",
        )
    relative = np.sqrt(statistics.boxes.prod(axis=1)) / statistics.box_images.min(axis=1)
    needed = _CELLS * kind.strides[0] / float(np.quantile(relative, 0.1))
    side = _rounded(min(max(needed, _CPU_SIDES[0]), _CPU_SIDES[1], 2 * native))
    reason = f"at {needed:.0f} or more, 90% of the objects span at least {_CELLS} cells of the finest feature map."
    return side, (
        reason,
        f"On a CPU, it is kept within {_CPU_SIDES[0]} to {_CPU_SIDES[1]}. The images' median is {native:.0f}.",
    )


def _rounded(side: float) -> int:
    return max(32, round(side / 32) * 32)


def _iterations(images: int, batch: int, kind: _Task, cpu_pixels: float | None) -> tuple[int, str]:
    """Return the number of iterations and the reason; `cpu_pixels` is the pixels per image, None on GPUs."""
    seen = min(max(_EPOCHS * images, _MIN_SEEN), _MAX_EPOCHS * images)
    reason = f"{_EPOCHS} epochs as on COCO, but at least {_MIN_SEEN:,} images and at most {_MAX_EPOCHS} epochs"
    if cpu_pixels is not None and kind.cpu_pixels / cpu_pixels < seen:
        seen = int(kind.cpu_pixels / cpu_pixels)
        reason = f"about {kind.cpu_minutes} minutes on two free CPU cores with PVT-Tiny; longer is better"
    # Round to tens, so that the last periodic evaluation and checkpoint fall on the last iteration.
    iterations = max(10, round(seen / batch / 10) * 10)
    epochs = iterations * batch / images
    return iterations, f"{iterations * batch:,} images, {epochs:.1f} epochs: {reason}"


def _detections(most_objects: int) -> tuple[int, str]:
    maximum = f"an image has up to {most_objects} objects"
    needed = math.ceil(most_objects * 1.2 / 50) * 50
    if needed <= _COCO_DETECTIONS:
        return _COCO_DETECTIONS, f"as on COCO; {maximum}"
    return needed, f"{maximum}, and new images may have 20% more; the {_COCO_DETECTIONS} of COCO are too few"


def _learning_rate(batch: int, pretrained: bool) -> tuple[float, str]:
    base, reference = (2e-4, 16) if pretrained else (4e-4, 4)
    rate = float(f"{base * math.sqrt(batch / reference):.2g}")
    start = "pretrained weights, as in the COCO recipes" if pretrained else "random weights, as in configs/small"
    scaled = "" if batch == reference else ", scaled by the square root of the batch-size ratio"
    return rate, f"{base:g} at batch size {reference} from {start}{scaled}"


def fit_anchors(
    boxes: npt.NDArray[np.float64],
    strides: Sequence[int],
    octaves: Sequence[float],
    coco_factor: float,
    *,
    is_square: bool = False,
) -> Anchors:
    """Choose the anchors that cover the most boxes. Among equals, choose those with the highest mean IoU.

    Args:
        boxes: `N×2` width and height in pixels of the resized images.
        strides: Strides of the feature levels with anchors.
        octaves: Anchor sizes of a level as multiples of its first size.
        coco_factor: First anchor size of the COCO models as a multiple of the stride.
        is_square: Whether all anchors are squares.
    """
    width, height = boxes.T
    own = np.quantile(height / width, (0.1, 0.5, 0.9)).round(2).tolist()
    common = (1.0,) if is_square else COMMON_RATIOS
    candidates = {factor: _cover(boxes, _sizes(factor, strides, octaves), strides, common) for factor in _FACTORS}
    best = max(share for share, _ in candidates.values())
    factor = max((f for f, (share, _) in candidates.items() if share >= best - _EQUAL), key=lambda f: candidates[f][1])
    sizes = _sizes(factor, strides, octaves)
    covered = candidates[factor][0]
    ratios = list(common)
    by_own = 0.0 if is_square else _cover(boxes, sizes, strides, own)[0]
    if by_own >= covered + _GAIN:
        ratios, covered = own, by_own
    return Anchors(factor, sizes, ratios, covered, candidates[coco_factor][0])


def _sizes(factor: float, strides: Sequence[int], octaves: Sequence[float]) -> list[list[float]]:
    return [[round(factor * stride * octave, 2) for octave in octaves] for stride in strides]


def _cover(
    boxes: npt.NDArray[np.float64], sizes: list[list[float]], strides: Sequence[int], ratios: Sequence[float]
) -> tuple[float, float]:
    """Return the fraction of boxes that an anchor covers, and the mean IoU with the best anchor."""
    best = np.zeros(len(boxes))
    for row, stride in zip(sizes, strides, strict=True):
        for size in row:
            for ratio in ratios:
                anchor = np.array([size / ratio**0.5, size * ratio**0.5])
                inter = np.minimum((boxes + anchor) / 2 - _OFFSET * stride, np.minimum(boxes, anchor)).clip(0).prod(1)
                best = np.maximum(best, inter / (boxes.prod(1) + anchor.prod() - inter))
    return float((best >= _MIN_IOU).mean()), float(best.mean())
