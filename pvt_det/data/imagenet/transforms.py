"""From an image file's bytes to the network's input: decoding, augmentation and evaluation crop.

The augmentations are timm's. Only their first step is replaced, decoding and the random crop's resize, with simplejpeg
(libjpeg-turbo; the same pixels as Pillow's) and torch's antialiased uint8 bicubic (at most a few levels from Pillow's):
together some 40 % more images per second and core. Evaluation resizes with Pillow, as the published numbers were made.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import Compose, InterpolationMode
from torchvision.transforms.v2 import functional as F

from pvt_det.data.images import FORMATS, MAX_PIXELS
from pvt_det.errors import ConfigError

# From an image, H×W×3 uint8, to the network's, 3×size×size uint8.
Transform = Callable[[np.ndarray], Tensor]
_THREE_CHANNELS = ("YCbCr", "RGB", "Gray")


class BrokenImageError(Exception):
    """An image cannot be decoded; the message says why."""


def decode_rgb(content: bytes) -> np.ndarray:
    """Decode an image file.

    Returns:
        H×W×3, uint8, RGB.

    Raises:
        BrokenImageError: If the content is no image, an incomplete one, or one of more pixels than are read.
    """
    if content.startswith(b"\xff\xd8"):
        try:
            height, width, channels, *_ = simplejpeg.decode_jpeg_header(content)
            # Of four-channel JPEGs the two libraries make slightly different colours.
            if channels in _THREE_CHANNELS and height * width <= MAX_PIXELS:
                return simplejpeg.decode_jpeg(content, "RGB", strict=True)
        except ValueError:
            # Broken, or with harmless faults: Pillow knows the difference.
            pass
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BrokenImageError(f"{image.width}x{image.height} is too large; {MAX_PIXELS:,} pixels are read")
            return np.array(image.convert("RGB"))
    except BrokenImageError:
        raise
    except UnidentifiedImageError as error:
        what = f"no image (it starts with {content[:16]!r})" if content else "empty (0 bytes)"
        raise BrokenImageError(what) from error
    # Pillow's decoders raise almost anything on a damaged file.
    except Exception as error:
        raise BrokenImageError(f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Augmentation:
    """What training does to an image; the defaults are the published recipe.

    Attributes:
        crop_scale: Range of the random crop's area, relative to the image's.
        crop_ratio: Range of its aspect ratio.
        flip: Probability of a horizontal flip.
        rand_augment: timm's description of RandAugment; empty for none.
        color_jitter: Strength for brightness, contrast and saturation. As in the published code (timm's rule), it has
            an effect only without RandAugment.
        interpolation: "bicubic" or "bilinear".
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.4
    interpolation: str = "bicubic"


class TrainTransform:
    """Random crop, flip, RandAugment or colour jitter; randomness from Python's, NumPy's and torch's global state.

    Args:
        size: Side of the result in pixels.
        augmentation: What to do.

    Raises:
        ConfigError: If timm does not understand `rand_augment`.
    """

    def __init__(self, size: int, augmentation: Augmentation) -> None:
        try:
            crop, *rest = create_transform(
                size,
                is_training=True,
                scale=augmentation.crop_scale,
                ratio=augmentation.crop_ratio,
                hflip=augmentation.flip,
                color_jitter=augmentation.color_jitter or None,
                auto_augment=augmentation.rand_augment or None,
                interpolation=augmentation.interpolation,
                use_prefetcher=True,
            ).transforms
        except (AssertionError, ValueError, KeyError) as error:
            raise ConfigError(
                f"rand_augment {augmentation.rand_augment!r}: not understood by timm; expected something like "
                "'rand-m9-mstd0.5-inc1', or '' for none."
            ) from error
        assert isinstance(crop, RandomResizedCropAndInterpolation)
        self._crop = crop
        self._rest = Compose(rest)
        self._size = [size, size]
        self._interpolation = InterpolationMode(augmentation.interpolation)
        for step in rest:
            if isinstance(step, RandAugment):
                _allow_zero_bits(step)

    def __call__(self, image: np.ndarray) -> Tensor:
        """H×W×3 uint8 → 3×size×size uint8."""
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        top, left, height, width = self._crop.get_params(pixels, self._crop.scale, self._crop.ratio)
        crop = F.resized_crop(pixels, top, left, height, width, self._size, self._interpolation, antialias=True)
        return self._rest(Image.fromarray(crop.permute(1, 2, 0).contiguous().numpy()))


class _Posterize:
    """timm's posterize, also for 0 bits: Pillow 13 refuses them, earlier versions gave a black image."""

    def __init__(self, posterize: Callable[..., Image.Image]) -> None:
        self._posterize = posterize

    def __call__(self, image: Image.Image, bits: int, **options: object) -> Image.Image:
        return self._posterize(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)


def _allow_zero_bits(augment: RandAugment) -> None:
    """With `inc1`, RandAugment asks for 0 bits whenever the magnitude comes out at its maximum."""
    for operation in augment.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _Posterize(operation.aug_fn)


class EvalTransform:
    """Resize the short side to size / crop_pct with Pillow and crop the centre: 256 → 224 for ImageNet.

    Args:
        size: Side of the result in pixels.
        crop_pct: Side of the crop relative to the resized short side.
        interpolation: "bicubic" or "bilinear".
    """

    def __init__(self, size: int, crop_pct: float, interpolation: str) -> None:
        self._transform = create_transform(size, crop_pct=crop_pct, interpolation=interpolation, use_prefetcher=True)

    def __call__(self, image: np.ndarray) -> Tensor:
        """H×W×3 uint8 → 3×size×size uint8."""
        return self._transform(Image.fromarray(image))


class DeviceInput:
    """The last steps, on batches and on the training device: normalise, then erase random rectangles.

    Args:
        device: Where to.
        erase_prob: Probability that an image loses a rectangle.
        erase_mode: "pixel" (noise), "rand" (one random colour) or "const" (the mean colour).
        channels_last: Memory format of the result.
    """

    def __init__(
        self, device: torch.device, erase_prob: float = 0.0, erase_mode: str = "pixel", channels_last: bool = False
    ) -> None:
        self._device = device
        self._mean = 255 * torch.tensor(IMAGENET_DEFAULT_MEAN, device=device).view(1, 3, 1, 1)
        self._std = 255 * torch.tensor(IMAGENET_DEFAULT_STD, device=device).view(1, 3, 1, 1)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._erase = RandomErasing(erase_prob, mode=erase_mode, device=str(device)) if erase_prob else None

    def __call__(self, images: Tensor) -> Tensor:
        """N×3×H×W uint8 on the CPU → N×3×H×W float32 on the device."""
        pixels = images.to(self._device, non_blocking=True).float().sub_(self._mean).div_(self._std)
        pixels = pixels.contiguous(memory_format=self._format)
        return self._erase(pixels) if self._erase else pixels
