"""Augmentations of the training and test images, drawn from NumPy's generator so that a sample can be replayed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch.nn import functional as F

from pvt_det.config.choices import require_choice
from pvt_det.data.augmentation.color import PhotometricDistortion


class ResizeTransform(T.ResizeTransform):
    """Resize to `new_h`×`new_w` by "pil" (bilinear, anti-aliased) or "cv2" (plain bilinear).

    "pil" runs in torch's uint8 kernels: four times as fast as Pillow and within one grey level of it.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, backend: str) -> None:
        super().__init__(h, w, new_h, new_w, interp=None)
        self.backend = backend

    def apply_image(self, img: npt.NDArray, interp: int | None = None) -> npt.NDArray:
        """Resize `H×W×C` pixels, or with `interp` (nearest) an `H×W` mask."""
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
    """Resize the short side to a drawn length unless the long side would pass `max_size`, then the long side to that.

    Both rules that recipes name, Detectron2's and MMDetection's, are this one:
    scale = min(short / min(h, w), max_size / max(h, w)), sides int(x · scale + 0.5), at least 1.
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
        """Make the augmentation.

        Args:
            short_sides: lengths to choose from, or the least and the greatest of a "range"; pixels.
            max_size: bound on the long side, pixels.
            sample_style: "choice" or "range".
            backend: "pil" or "cv2", see `ResizeTransform`.
            scale_range: least and greatest factor, drawn anew for each image, of both lengths (MMSegmentation's
                "ratio_range").
            divisor: sides are rounded up to multiples of this (MMSegmentation's "size_divisor" in PVT's AlignResize).
        """
        super().__init__()
        self.short_sides = tuple(short_sides)
        self.max_size = max_size
        self.sample_style = sample_style
        self.backend = backend
        self.scale_range = scale_range
        self.divisor = divisor

    def get_transform(self, image: npt.NDArray) -> T.Transform:
        """Draw a length and give the transform for this image."""
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
    """Flip, crop, resize and recolour as `cfg.INPUT` says; for test images resize only.

    Raises:
        ConfigError: an INPUT key has an unknown value.
    """
    backend = require_choice("INPUT.RESIZE_BACKEND", cfg.INPUT.RESIZE_BACKEND)
    if not is_train:
        return [ResizeShortSide((cfg.INPUT.MIN_SIZE_TEST,), cfg.INPUT.MAX_SIZE_TEST, "choice", backend)]
    augmentations: list[T.Augmentation] = []
    flip = require_choice("INPUT.RANDOM_FLIP", cfg.INPUT.RANDOM_FLIP)
    if flip != "none":
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    if cfg.INPUT.CROP.ENABLED:
        augmentations.append(T.RandomCrop(cfg.INPUT.CROP.TYPE, crop_size(cfg)))
    branch = cfg.INPUT.CROP_BRANCH
    if branch.ENABLED:
        # DETR's second branch (arXiv 2005.12872, section 4): resize, crop, then as all images.
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
        style = require_choice("INPUT.MIN_SIZE_TRAIN_SAMPLING", cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
        augmentations.append(ResizeShortSide(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, style, backend))
    if cfg.INPUT.COLOR_AUG_SSD:
        augmentations.append(PhotometricDistortion(cfg.INPUT.FORMAT))
    return augmentations


def build_tta_resizes(cfg: CfgNode) -> list[T.Augmentation]:
    """Build the resizing of each view of test-time augmentation, one for each of `TEST.AUG.MIN_SIZES`."""
    settings, backend = cfg.TEST.AUG, cfg.INPUT.RESIZE_BACKEND
    return [ResizeShortSide((side,), settings.MAX_SIZE, "choice", backend) for side in settings.MIN_SIZES]


def crop_size(cfg: CfgNode) -> tuple[float, ...]:
    """`INPUT.CROP.SIZE`, whose numbers are pixels for the absolute types and shares of the sides for the others."""
    is_absolute = cfg.INPUT.CROP.TYPE.startswith("absolute")
    return tuple(int(side) if is_absolute else side for side in cfg.INPUT.CROP.SIZE)


def crops(cfg: CfgNode) -> bool:
    """Whether training images are cropped, so that boxes may no longer be tight."""
    return bool(cfg.INPUT.CROP.ENABLED or cfg.INPUT.CROP_BRANCH.ENABLED or cfg.INPUT.LARGE_SCALE_JITTER.ENABLED)


@contextmanager
def numpy_random(seed: int, position: int) -> Iterator[None]:
    """Let NumPy's global generator, which Detectron2's augmentations draw from, follow (seed, position) alone.

    The generator's state is put back on leaving, so that nothing else sees the difference.
    """
    state = np.random.get_state()
    np.random.seed(np.random.SeedSequence((seed, position)).generate_state(4))
    try:
        yield
    finally:
        np.random.set_state(state)
