"""Settings for training on a data set, from its numbers; each with its reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pvt_det.errors import DataError
from pvt_det.inspection.statistics import Statistics

TASKS = ("retinanet", "mask-rcnn")


@dataclass(frozen=True)
class _Task:
    """What differs between the detectors.

    Attributes:
        strides: of the levels that have anchors.
        octaves: anchor sizes of a level as multiples of its first.
        usual: anchor size of COCO's models, as a multiple of the stride.
        cpu_pixels: pixels of all training images that two cores get through in `cpu_minutes` with PVT-Tiny, measured by
            `configs/small`: enough to learn a few classes from random weights.
        cpu_minutes: see `cpu_pixels`.
    """

    strides: tuple[int, ...]
    octaves: tuple[float, ...]
    usual: float
    cpu_pixels: float
    cpu_minutes: int


_TASKS = {
    "retinanet": _Task((8, 16, 32, 64, 128), (1.0, 2 ** (1 / 3), 2 ** (2 / 3)), 4.0, 270e6, 15),
    "mask-rcnn": _Task((4, 8, 16, 32, 64), (1.0,), 8.0, 140e6, 20),
}
# Short sides of the images, pixels: least and most on a CPU, and the recipes' on a GPU.
_CPU_SIDES, _GPU_SIDE = (256, 320), 800
# All but a tenth of the objects are to be at least so many cells of the finest map long.
_CELLS = 2
# A run sees every image 12 times, as COCO's, but at least so many images, and none more often than 100 times.
_EPOCHS, _LEAST_SEEN, _MOST_EPOCHS = 12, 16_000, 100
_USUAL_DETECTIONS = 100
# Ratios of height to width of Detectron2's and the published models.
COMMON_RATIOS = (0.5, 1.0, 2.0)
# Anchor sizes as multiples of their level's stride; COCO's models have 4 (RetinaNet) and 8 (Faster and Mask R-CNN).
_FACTORS = tuple(2 ** (step / 2) for step in range(7))
# An anchor that overlaps a box by so much, as intersection over union, learns it.
_OVERLAP = 0.5
# Shares of boxes that differ by no more than this count as equal.
_EQUAL = 0.002
# Unusual ratios are taken when they reach so many boxes more.
_GAIN = 0.02
# How far a box's centre lies from the nearest anchor's in either direction, as a share of the stride, on average.
_OFFSET = 0.25


@dataclass(frozen=True)
class Anchors:
    """Sizes and ratios, and how well they cover the boxes.

    Attributes:
        factor: sizes as a multiple of the strides.
        sizes: for each level, in pixels.
        ratios: height to width.
        covered: share of the boxes that some anchor overlaps with an IoU of at least 0.5.
        usual: the same for COCO's sizes and ratios.
    """

    factor: float
    sizes: list[list[float]]
    ratios: list[float]
    covered: float
    usual: float


@dataclass(frozen=True)
class Settings:
    """Settings and their reasons.

    Attributes:
        side: short side of the images, pixels; `side_reason` says why, in lines.
        train_sides: short sides that training draws from.
        most: longest side in the test and in training, pixels.
        anchors: sizes and ratios.
        detections: most detections of an image; `detections_reason` says why.
        batch: images of an iteration.
        iterations: number of iterations; `iterations_reason` says why.
        rate: learning rate; `rate_reason` says why.
    """

    side: int
    side_reason: tuple[str, ...]
    train_sides: list[int]
    most: tuple[int, int]
    anchors: Anchors
    detections: int
    detections_reason: str
    batch: int
    iterations: int
    iterations_reason: str
    rate: float
    rate_reason: str


def recommend(
    statistics: Statistics, task: str, *, on_cpu: bool, batch: int, pretrained: bool, most_objects: int
) -> Settings:
    """Choose settings.

    Args:
        statistics: of the training data.
        task: one of `TASKS`.
        on_cpu: for a CPU, where a run should end within half an hour; otherwise for GPUs.
        batch: images of an iteration.
        pretrained: whether the backbone starts from ImageNet's weights.
        most_objects: that an image has, in any of the data.

    Raises:
        DataError: there are no boxes.
    """
    if not len(statistics.boxes):
        raise DataError("there is no box to choose anchors for")
    kind = _TASKS[task]
    sizes = np.repeat([size for size, _ in statistics.image_sizes], [n for _, n in statistics.image_sizes], axis=0)
    side, side_reason = _side(statistics, sizes, kind, on_cpu=on_cpu)
    aspect = float(np.quantile(sizes.max(axis=1) / sizes.min(axis=1), 0.95))
    steps = (0.9, 1.0, 1.1) if on_cpu else (0.8, 0.85, 0.9, 0.95, 1.0)
    longest = math.ceil(side * min(aspect, 2.0))
    scale = side / statistics.box_images.min(axis=1, keepdims=True)
    pixels = side * side * float(np.mean(np.minimum(sizes.max(axis=1) / sizes.min(axis=1), 2.0)))
    iterations, iterations_reason = _iterations(statistics.images, batch, kind, pixels if on_cpu else None)
    rate, rate_reason = _rate(batch, pretrained)
    detections, detections_reason = _detections(most_objects)
    return Settings(
        side=side,
        side_reason=side_reason,
        train_sides=[round(side * step / 8) * 8 for step in steps],
        most=(longest, math.ceil(longest * steps[-1])),
        anchors=suit_anchors(statistics.boxes * scale, kind.strides, kind.octaves, kind.usual),
        detections=detections,
        detections_reason=detections_reason,
        batch=batch,
        iterations=iterations,
        iterations_reason=iterations_reason,
        rate=rate,
        rate_reason=rate_reason,
    )


def _side(statistics: Statistics, sizes: np.ndarray, kind: _Task, *, on_cpu: bool) -> tuple[int, tuple[str, ...]]:
    native = float(np.median(sizes.min(axis=1)))
    if not on_cpu:
        side = _rounded(min(_GPU_SIDE, 2 * native))
        return side, (f"the recipes' {_GPU_SIDE}, or twice the images' own {native:.0f} where that is less.",)
    shares = np.sqrt(statistics.boxes.prod(axis=1)) / statistics.box_images.min(axis=1)
    needed = _CELLS * kind.strides[0] / float(np.quantile(shares, 0.1))
    side = _rounded(min(max(needed, _CPU_SIDES[0]), _CPU_SIDES[1], 2 * native))
    reason = f"from {needed:.0f} on, nine objects in ten are {_CELLS} cells of the finest map long."
    return side, (
        reason,
        f"It stays within {_CPU_SIDES[0]} to {_CPU_SIDES[1]} on a CPU; the images' own is {native:.0f}.",
    )


def _rounded(side: float) -> int:
    return max(32, round(side / 32) * 32)


def _iterations(images: int, batch: int, kind: _Task, cpu_pixels: float | None) -> tuple[int, str]:
    """The number of iterations and why; `cpu_pixels` are those of an image, on a CPU."""
    seen = min(max(_EPOCHS * images, _LEAST_SEEN), _MOST_EPOCHS * images)
    reason = f"{_EPOCHS} epochs as COCO's, but at least {_LEAST_SEEN:,} images, and at most {_MOST_EPOCHS} epochs"
    if cpu_pixels is not None and kind.cpu_pixels / cpu_pixels < seen:
        seen = int(kind.cpu_pixels / cpu_pixels)
        reason = f"some {kind.cpu_minutes} minutes on two free cores with PVT-Tiny; longer is better"
    # In tens, so that evaluations and checkpoints at its parts end with it.
    iterations = max(10, round(seen / batch / 10) * 10)
    epochs = iterations * batch / images
    return iterations, f"{iterations * batch:,} images, {epochs:.1f} epochs: {reason}"


def _detections(most_objects: int) -> tuple[int, str]:
    has = f"an image has up to {most_objects} objects"
    needed = math.ceil(most_objects * 1.2 / 50) * 50
    if needed <= _USUAL_DETECTIONS:
        return _USUAL_DETECTIONS, f"COCO's; {has}"
    return needed, f"{has}, and others may have a fifth more; COCO's {_USUAL_DETECTIONS} would cut them"


def _rate(batch: int, pretrained: bool) -> tuple[float, str]:
    base, reference = (2e-4, 16) if pretrained else (4e-4, 4)
    rate = float(f"{base * math.sqrt(batch / reference):.2g}")
    start = "pretrained weights, as COCO's recipes" if pretrained else "random weights, as configs/small"
    scaled = "" if batch == reference else ", times the root of the batches' ratio"
    return rate, f"{base:g} at batch {reference} from {start}{scaled}"


def suit_anchors(
    boxes: npt.NDArray[np.float64], strides: Sequence[int], octaves: Sequence[float], usual: float
) -> Anchors:
    """Choose the anchors that the most boxes overlap with; among equals, those that overlap best.

    Args:
        boxes: `N×2` width and height in pixels, as the model sees them.
        strides: of the levels.
        octaves: sizes of a level as multiples of its first.
        usual: the factor of COCO's models.
    """
    width, height = boxes.T
    own = np.quantile(height / width, (0.1, 0.5, 0.9)).round(2).tolist()
    candidates = {
        factor: _cover(boxes, _sizes(factor, strides, octaves), strides, COMMON_RATIOS) for factor in _FACTORS
    }
    best = max(share for share, _ in candidates.values())
    factor = max((f for f, (share, _) in candidates.items() if share >= best - _EQUAL), key=lambda f: candidates[f][1])
    sizes = _sizes(factor, strides, octaves)
    covered = candidates[factor][0]
    ratios = list(COMMON_RATIOS)
    by_own = _cover(boxes, sizes, strides, own)[0]
    if by_own >= covered + _GAIN:
        ratios, covered = own, by_own
    return Anchors(factor, sizes, ratios, covered, candidates[usual][0])


def _sizes(factor: float, strides: Sequence[int], octaves: Sequence[float]) -> list[list[float]]:
    return [[round(factor * stride * octave, 2) for octave in octaves] for stride in strides]


def _cover(
    boxes: npt.NDArray[np.float64], sizes: list[list[float]], strides: Sequence[int], ratios: Sequence[float]
) -> tuple[float, float]:
    """The share of boxes with an anchor that overlaps enough, and the mean overlap with the best."""
    best = np.zeros(len(boxes))
    for row, stride in zip(sizes, strides, strict=True):
        for size in row:
            for ratio in ratios:
                anchor = np.array([size / ratio**0.5, size * ratio**0.5])
                shared = np.minimum((boxes + anchor) / 2 - _OFFSET * stride, np.minimum(boxes, anchor)).clip(0).prod(1)
                best = np.maximum(best, shared / (boxes.prod(1) + anchor.prod() - shared))
    return float((best >= _OVERLAP).mean()), float(best.mean())
