"""Use transforms of `torchvision.transforms.v2` as augmentations of Detectron2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from numpy.typing import NDArray
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from pvt_det.errors import ConfigError

# Transforms whose result depends on the boxes, which are moved after the image here.
_OF_BOXES = (v2.RandomIoUCrop, v2.SanitizeBoundingBoxes, v2.ClampBoundingBoxes)


class TorchvisionAugmentation(T.Augmentation):
    """Applies a transform of `torchvision.transforms.v2` to an image and its boxes, masks and label map.

    The randomness comes from NumPy's generator like that of all augmentations here, so runs stay reproducible.

    Args:
        transform: A transform that maps an image to an image, such as `v2.RandomRotation(10)` or `v2.ColorJitter()`. It
            may not convert the dtype or normalize: the model does that itself.

    Raises:
        ConfigError: The transform depends on the boxes.
    """

    def __init__(self, transform: Callable[..., Any]) -> None:
        super().__init__()
        nested = transform.modules() if isinstance(transform, nn.Module) else ()
        if of_boxes := next((each for each in nested if isinstance(each, _OF_BOXES)), None):
            raise ConfigError(
                f"{of_boxes} cannot be used as an augmentation, because it depends on the boxes. Leave it out: boxes "
                "are clipped, and empty ones dropped, in any case."
            )
        self.transform = transform

    def get_transform(self, image: NDArray[np.uint8]) -> T.Transform:
        """Draw the random parameters.

        Args:
            image: Pixels `H×W×C` uint8.

        Raises:
            ConfigError: The transform needs more than the image, or does not return an image of the same dtype.
        """
        return _Drawn(self.transform, image, int(np.random.randint(2**31)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.transform})"


class _Drawn(T.Transform):
    """A torchvision transform with one draw of its random parameters, which are those after a fixed seed."""

    def __init__(self, transform: Callable[..., Any], image: NDArray[np.uint8], seed: int) -> None:
        super().__init__()
        self.transform = transform
        self.seed = seed
        self.image = image
        height, width = image.shape[:2]
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float32)
        try:
            self.result, moved = self._apply(_points(corners, image))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{transform} cannot be used as an augmentation: {error}. Expected a transform that maps an "
                "image to an image."
            ) from error
        if self.result.dtype != image.dtype or self.result.ndim != image.ndim:
            raise ConfigError(
                f"{transform} turns the uint8 image into {self.result.dtype}. Leave out conversions and normalization, "
                "which the model does itself."
            )
        # Of colors only: coordinates and masks need not be moved one by one.
        self.moves = self.result.shape != image.shape or not np.array_equal(moved[:, :2].numpy(), corners)

    def _apply(self, other: torch.Tensor) -> tuple[NDArray, torch.Tensor]:
        pixels = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(self.image)).permute(2, 0, 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            image, moved = self.transform(pixels, other)
        return np.ascontiguousarray(image.permute(1, 2, 0).numpy()), moved.as_subclass(torch.Tensor)

    def apply_image(self, img: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return self.result

    def apply_coords(self, coords: NDArray) -> NDArray:
        if not self.moves or not len(coords):
            return coords
        return self._apply(_points(coords, self.image))[1][:, :2].numpy().astype(coords.dtype)

    def apply_segmentation(self, segmentation: NDArray) -> NDArray:
        if not self.moves:
            return segmentation
        mask = tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(segmentation))[None])
        return self._apply(mask)[1][0].numpy()


def _points(coords: NDArray, image: NDArray[np.uint8]) -> tv_tensors.BoundingBoxes:
    """Return points as boxes without area: torchvision's own points are centers of pixels, as in COCO's keypoints."""
    points = torch.as_tensor(coords, dtype=torch.float32).repeat(1, 2)
    return tv_tensors.BoundingBoxes(points, format="XYXY", canvas_size=image.shape[:2], clamping_mode=None)


def as_augmentations(transforms: Sequence[Any]) -> list[T.Augmentation]:
    """Return augmentations of Detectron2 for those of users.

    Args:
        transforms: Augmentations or transforms of Detectron2, and transforms of `torchvision.transforms.v2`.

    Raises:
        ConfigError: One is of neither kind.
    """
    return [_as_augmentation(transform) for transform in transforms]


def _as_augmentation(transform: Any) -> T.Augmentation:
    if isinstance(transform, T.Augmentation | T.Transform):
        return T.AugmentationList([transform]).augs[0]
    if isinstance(transform, v2.Transform):
        return TorchvisionAugmentation(transform)
    raise ConfigError(
        f"augmentations: {transform!r} is a {type(transform).__name__}. Expected an Augmentation of Detectron2 or a "
        "transform of torchvision.transforms.v2."
    )
