"""Anchors that suit the boxes of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
