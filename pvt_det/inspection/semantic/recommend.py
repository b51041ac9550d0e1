"""Recommend settings of Semantic FPN for a data set with label maps, each with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pvt_det.errors import DataError
from pvt_det.inspection.semantic.inspection import LabelInspection

# The recipe for ADE20K: crops of 512 pixels from images of that short side, times a random factor of 0.5 to 2.
_SIDE, _SCALES = 512, (0.5, 2.0)
_GPU_MOST = 1024
_CPU_MOST, _CPU_CROP = 320, 256
_SMALLEST = 64
# Draw a crop again if one class fills more than this share, as in the recipe.
_SINGLE_CLASS = 0.75
# Epochs of the recipe for ADE20K, 40,000 iterations of 32 of its 20,210 images; at least this many images; at most this
# many epochs.
_EPOCHS, _MIN_SEEN, _MAX_EPOCHS = 63, 16_000, 300
# Pixels that PVT-Tiny is trained on in this many minutes on two free CPU cores. A pixel takes 1.9 times as long as with
# RetinaNet, for which recommend.py has the measured value.
_CPU_PIXELS, _CPU_MINUTES = 145e6, 15
# Learning rate and batch size of the recipe, and of configs/small.
_PRETRAINED, _RANDOM = (2e-4, 32), (4e-4, 4)
# Sides of test images, and of the feature maps' common divisor.
DIVISOR = 32
# Number of evaluations and checkpoints of a run.
EVALUATIONS = 4


@dataclass(frozen=True)
class LabelSettings:
    """Recommended settings and their reasons.

    Attributes:
        short_side: Short side in pixels to which images are resized, before the random factor in training.
        short_side_reason: Reason for `short_side`.
        scales: Minimum and maximum random factor in training.
        longest: Limit of the long side in pixels, before the random factor.
        crop: Height and width of the training crops in pixels.
        crop_reason: Reason for `crop`.
        single_class: Largest share of a crop that one class may fill, see `INPUT.CROP.SINGLE_CATEGORY_MAX_AREA`.
        batch: Number of images per iteration.
        iterations: Number of iterations, a multiple of `5 * EVALUATIONS`.
        iterations_reason: Reason for `iterations`.
        learning_rate: Base learning rate.
        learning_rate_reason: Reason for `learning_rate`.
    """

    short_side: int
    short_side_reason: str
    scales: tuple[float, float]
    longest: int
    crop: int
    crop_reason: str
    single_class: float
    batch: int
    iterations: int
    iterations_reason: str
    learning_rate: float
    learning_rate_reason: str


def recommend_labels(train: LabelInspection, *, on_cpu: bool, batch: int, pretrained: bool) -> LabelSettings:
    """Recommend settings of Semantic FPN.

    Args:
        train: Inspection of the training data.
        on_cpu: Whether to train on a CPU, where a run should end within half an hour, instead of GPUs.
        batch: Number of images per iteration.
        pretrained: Whether the backbone starts from ImageNet weights.

    Raises:
        DataError: The data set has no usable image.
    """
    if not train.files:
        raise DataError(f"{train.label_root} has no usable label map. Correct the problems above first.")
    sizes = np.array([each.size for each in train.files])
    native = float(np.median(sizes.min(axis=1)))
    short_side, short_side_reason = _short_side(native, on_cpu=on_cpu)
    crop = min(short_side, _CPU_CROP if on_cpu else _SIDE)
    iterations, iterations_reason = _iterations(len(sizes), batch, crop, on_cpu=on_cpu)
    learning_rate, learning_rate_reason = _learning_rate(batch, pretrained)
    aspect = float(np.quantile(sizes.max(axis=1) / sizes.min(axis=1), 0.95))
    largest = max(each.share for each in train.classes)
    return LabelSettings(
        short_side=short_side,
        short_side_reason=short_side_reason,
        scales=_SCALES,
        longest=math.ceil(short_side * min(aspect, 4.0)),
        crop=crop,
        crop_reason=f"at most {_CPU_CROP} on a CPU" if on_cpu else f"at most {_SIDE}, as in the ADE20K recipe",
        # Most crops of data with a larger class would be drawn again without success.
        single_class=_SINGLE_CLASS if largest < _SINGLE_CLASS else 1.0,
        batch=batch,
        iterations=iterations,
        iterations_reason=iterations_reason,
        learning_rate=learning_rate,
        learning_rate_reason=learning_rate_reason,
    )


def _short_side(native: float, *, on_cpu: bool) -> tuple[int, str]:
    median = f"the images' median short side is {native:.0f}"
    if on_cpu:
        side = _rounded(min(native, _CPU_MOST))
        return side, f"{median}; at most {_CPU_MOST} on a CPU"
    side = _rounded(min(max(native, _SIDE), _GPU_MOST, 2 * native))
    return side, f"{median}; kept within {_SIDE} (as in the ADE20K recipe) and {_GPU_MOST}, at most twice the median"


def _rounded(side: float) -> int:
    return max(_SMALLEST, round(side / DIVISOR) * DIVISOR)


def _iterations(images: int, batch: int, crop: int, *, on_cpu: bool) -> tuple[int, str]:
    limits = {
        _EPOCHS * images: f"{_EPOCHS} epochs, as on ADE20K",
        _MIN_SEEN: f"at least {_MIN_SEEN:,} images, which is more than the {_EPOCHS} epochs on ADE20K",
        _MAX_EPOCHS * images: f"at most {_MAX_EPOCHS} epochs, because there are few images",
    }
    seen = min(max(_EPOCHS * images, _MIN_SEEN), _MAX_EPOCHS * images)
    reason = limits[seen]
    if on_cpu and _CPU_PIXELS / crop**2 < seen:
        seen = int(_CPU_PIXELS / crop**2)
        reason = f"about {_CPU_MINUTES} minutes on two free CPU cores with PVT-Tiny; longer is better"
    # So that the last periodic evaluation and checkpoint fall on the last iteration.
    step = 5 * EVALUATIONS
    iterations = max(step, round(seen / batch / step) * step)
    return iterations, f"{iterations * batch:,} images, {iterations * batch / images:.1f} epochs: {reason}"


def _learning_rate(batch: int, pretrained: bool) -> tuple[float, str]:
    base, reference = _PRETRAINED if pretrained else _RANDOM
    start = "pretrained weights, as in the ADE20K recipe" if pretrained else "random weights, as in configs/small"
    scaled = "" if batch == reference else ", scaled by the square root of the batch-size ratio"
    rate = float(f"{base * math.sqrt(batch / reference):.2g}")
    return rate, f"{base:g} at batch size {reference} from {start}{scaled}"
