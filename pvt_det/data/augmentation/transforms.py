"""Augmentations of detectors, drawn from NumPy's generator so that samples are reproducible."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch.nn import functional as F

from pvt_det.config.table import require_valid
from pvt_det.data.augmentation.color import PhotometricDistortion


class ResizeTransform(T.ResizeTransform):
    """Resize images by a backend: "pil" (bilinear with antialiasing) or "cv2" (plain bilinear).

    "pil" uses PyTorch's uint8 kernels, which are four times as fast as Pillow and differ from it by at most one level.

    Args:
        h: Height of the image in pixels.
        w: Width of the image in pixels.
        new_h: Height of the result in pixels.
        new_w: Width of the result in pixels.
        backend: "pil" or "cv2".
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, backend: str) -> None:
        super().__init__(h, w, new_h, new_w, interp=None)
        self.backend = backend

    def apply_image(self, img: npt.NDArray, interp: int | None = None) -> npt.NDArray:
        """Resize an image or a mask.

        Args:
            img: Pixels `H×W×C` of an image, or `H×W` of a mask if `interp` is set.
            interp: Any value selects nearest-neighbor interpolation, as for masks. None uses the backend.

        Returns:
            Pixels `new_h×new_w×C` or `new_h×new_w`.
        """
        if (self.h, self.w) == (self.new_h, self.new_w):
            return img
        img = np.ascontiguousarray(img)
        if interp is not None:
            return cv2.resize(img, (self.new_w, self.new_h), interpolation=cv2.INTER_NEAREST_EXACT)
        if self.backend == "cv2":
            return cv2.resize(img, (self.new_w, self.new_h), interpolation=cv2.INTER_LINEAR).reshape(
                self.new_h, self.new_w, -1
            )
        pixels = torch.from_numpy(img).permute(2, 0, 1)[None]
        resized = F.interpolate(pixels, (self.new_h, self.new_w), mode="bilinear", antialias=True)
        return resized[0].permute(1, 2, 0).numpy()


class ResizeShortSide(T.Augmentation):
    """Resize the short side to a random length, but keep the long side at or below `max_size`.

    Detectron2 and MMDetection use the same rule: scale = min(short / min(h, w), max_size / max(h, w)), and each side
    becomes int(side · scale + 0.5), at least 1.

    Args:
        short_sides: Lengths of the short side in pixels: the candidates for "choice", the two bounds for "range".
            A length of 0 leaves the image unchanged.
        max_size: Upper bound of the long side in pixels.
        sample_style: How the length is drawn: "choice" or "range".
        backend: Interpolation, "pil" or "cv2", as in `ResizeTransform`.
        scale_range: Range of a random factor on both sides (MMSegmentation's `ratio_range`).
        divisor: Sides are rounded up to multiples of this (MMSegmentation's `size_divisor` in PVT's AlignResize).
    """

    def __init__(
        self,
        short_sides: Sequence[int],
        max_size: float,
        sample_style: str,
        backend: str,
        *,
        scale_range: tuple[float, float] = (1.0, 1.0),
        divisor: int = 1,
    ) -> None:
        super().__init__()
        self.short_sides = tuple(short_sides)
        self.max_size = max_size
        self.sample_style = sample_style
        self.backend = backend
        self.scale_range = scale_range
        self.divisor = divisor

    def get_transform(self, image: npt.NDArray) -> T.Transform:
        """Draw a length and return the transform for an image.

        Args:
            image: Pixels `H×W×C`.
        """
        height, width = image.shape[:2]
        if self.sample_style == "range":
            short = int(np.random.randint(self.short_sides[0], self.short_sides[1] + 1))
        else:
            short = int(np.random.choice(self.short_sides))
        if short == 0:
            return T.NoOpTransform()
        scale = min(short / min(height, width), self.max_size / max(height, width))
        if self.scale_range != (1.0, 1.0):
            scale *= np.random.uniform(*self.scale_range)
        sides = (max(1, int(side * scale + 0.5)) for side in (height, width))
        new_height, new_width = (-(-side // self.divisor) * self.divisor for side in sides)
        return ResizeTransform(height, width, new_height, new_width, self.backend)


def build_detection_augmentations(cfg: CfgNode, *, is_train: bool) -> list[T.Augmentation]:
    """Build the augmentations of a detector.

    Training images are flipped, cropped, resized and recolored. Test images are only resized.

    Args:
        cfg: Config whose `INPUT` and `MODEL.SEM_SEG_HEAD.IGNORE_VALUE` are read.
        is_train: Build the augmentations of training images instead of test images.

    Raises:
        ConfigError: An `INPUT` key has an unknown value.
    """
    backend = require_valid("INPUT.RESIZE_BACKEND", cfg.INPUT.RESIZE_BACKEND)
    if not is_train:
        return [ResizeShortSide((cfg.INPUT.MIN_SIZE_TEST,), cfg.INPUT.MAX_SIZE_TEST, "choice", backend)]
    augmentations: list[T.Augmentation] = []
    flip = require_valid("INPUT.RANDOM_FLIP", cfg.INPUT.RANDOM_FLIP)
    if flip != "none":
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    if cfg.INPUT.CROP.ENABLED:
        augmentations.append(T.RandomCrop(cfg.INPUT.CROP.TYPE, crop_size(cfg)))
    branch = cfg.INPUT.CROP_BRANCH
    if branch.ENABLED:
        # DETR's second branch (arXiv 2005.12872, section 4): resize, crop, then resize like all other images.
        resize_and_crop: list[T.Augmentation] = [
            ResizeShortSide(branch.RESIZE, float("inf"), "choice", backend),
            T.RandomCrop("absolute_range", tuple(branch.SIZE)),
        ]
        augmentations.append(T.RandomApply(T.AugmentationList(resize_and_crop), prob=0.5))
    jitter = cfg.INPUT.LARGE_SCALE_JITTER
    if jitter.ENABLED:
        augmentations.append(T.ResizeScale(*jitter.SCALE, *jitter.SIZE))
        augmentations.append(T.FixedSizeCrop(tuple(jitter.SIZE), seg_pad_value=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE))
    else:
        style = require_valid("INPUT.MIN_SIZE_TRAIN_SAMPLING", cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
        augmentations.append(ResizeShortSide(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, style, backend))
    if cfg.INPUT.COLOR_AUG_SSD:
        augmentations.append(PhotometricDistortion(cfg.INPUT.FORMAT))
    return augmentations


def build_tta_resizes(cfg: CfgNode) -> list[T.Augmentation]:
    """Build the resize augmentations of test-time augmentation, one per entry of `TEST.AUG.MIN_SIZES`.

    Args:
        cfg: Config whose `TEST.AUG` and `INPUT.RESIZE_BACKEND` are read.
    """
    settings, backend = cfg.TEST.AUG, cfg.INPUT.RESIZE_BACKEND
    return [ResizeShortSide((side,), settings.MAX_SIZE, "choice", backend) for side in settings.MIN_SIZES]


def crop_size(cfg: CfgNode) -> tuple[float, ...]:
    """Return `INPUT.CROP.SIZE` as height and width.

    Args:
        cfg: Config whose `INPUT.CROP` is read.

    Returns:
        Height and width, in pixels for the absolute crop types and as fractions of the sides for the relative ones.
    """
    is_absolute = cfg.INPUT.CROP.TYPE.startswith("absolute")
    return tuple(int(side) if is_absolute else side for side in cfg.INPUT.CROP.SIZE)


def crops(cfg: CfgNode) -> bool:
    """Return whether training images are cropped, after which boxes may no longer be tight.

    Args:
        cfg: Config whose `INPUT` is read.
    """
    return bool(cfg.INPUT.CROP.ENABLED or cfg.INPUT.CROP_BRANCH.ENABLED or cfg.INPUT.LARGE_SCALE_JITTER.ENABLED)
