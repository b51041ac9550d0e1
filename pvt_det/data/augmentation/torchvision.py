"""Use transforms of `torchvision.transforms.v2` as augmentations of Detectron2."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from numpy.typing import NDArray
from torchvision import tv_tensors
from torchvision.transforms import v2

from pvt_det.errors import ConfigError

__all__ = ["TorchvisionAugmentation", "as_augmentations"]

# Transforms of the boxes themselves. Here, boxes are moved after the image.
_OF_BOXES = (v2.RandomIoUCrop, v2.SanitizeBoundingBoxes, v2.ClampBoundingBoxes, v2.ConvertBoundingBoxFormat)
# Side of the grid of points that shows whether a transform moves anything.
_GRID = 5


class TorchvisionAugmentation(T.Augmentation):
    """Applies a transform of `torchvision.transforms.v2` to an image and its boxes, masks and label map.

    The transform runs once per image. Its random parameters are then applied to the objects. They come from PyTorch's
    generator.

    Args:
        transform: A transform that maps an image to an image, such as `v2.RandomRotation(10)` or `v2.ColorJitter()`. It
            may not convert the dtype or normalize: the model does that itself.
        image_format: Channel order of the images that are augmented, "RGB" or "BGR". The transform gets RGB.

    Raises:
        ConfigError: The transform depends on the boxes, or contains something that is not a transform of torchvision.
    """

    def __init__(self, transform: v2.Transform, image_format: str = "RGB") -> None:
        super().__init__()
        self.transform = transform
        self.image_format = image_format
        if of_boxes := next((part for part in _parts(transform) if isinstance(part, _OF_BOXES)), None):
            raise ConfigError(
                f"{of_boxes} cannot be used as an augmentation, because it depends on the boxes. Leave it out: boxes "
                "are clipped, and empty ones dropped, in any case."
            )

    def get_transform(self, image: NDArray[np.uint8]) -> T.Transform:
        """Transform an image, and return the result with the random parameters that were drawn.

        Args:
            image: Pixels `H×W×C` uint8.

        Raises:
            ConfigError: The transform needs more than the image, or does not return an image of the same dtype.
        """
        order = slice(None, None, -1 if self.image_format == "BGR" else 1)
        pixels = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(image[:, :, order])).permute(2, 0, 1))
        height, width = image.shape[:2]
        grid = _grid(height, width)
        inputs = (pixels, _points(grid, (height, width)), tv_tensors.Mask(torch.zeros(1, height, width).byte()))
        try:
            with _recorded(_parts(self.transform)) as steps:
                result, moved, _ = self.transform(*inputs)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{self.transform} cannot be used as an augmentation: {error}. Expected a transform that maps an "
                "image to an image."
            ) from error
        dtype = result.dtype if isinstance(result, torch.Tensor) else type(result).__name__
        if dtype != torch.uint8 or result.ndim != image.ndim:
            raise ConfigError(
                f"{self.transform} turns the uint8 image into {dtype}. Leave out conversions and normalization, "
                "which the model does itself."
            )
        drawn = _Drawn(result.permute(1, 2, 0).numpy()[:, :, order], (height, width), steps)
        if not np.array_equal(drawn.move(grid), moved[:, :2].numpy()):
            raise ConfigError(
                f"{self.transform} cannot be used as an augmentation, because it overrides `forward`. Override "
                "`make_params` and `transform` instead, as torchvision recommends."
            )
        drawn.moves = result.shape[1:] != (height, width) or not np.array_equal(drawn.move(grid), grid)
        return drawn

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.transform}, {self.image_format!r})"


_Step = tuple[type, Callable[[Any, dict[str, Any]], Any], dict[str, Any]]


class _Drawn(T.Transform):
    """A transformed image, with the steps that transformed it: transforms and the parameters that they drew."""

    def __init__(self, result: NDArray[np.uint8], size: tuple[int, int], steps: list[_Step]) -> None:
        super().__init__()
        self.result = np.ascontiguousarray(result)
        self.size = size
        self.steps = steps
        # False if only colors change, so that coordinates and masks are not affected.
        self.moves = True

    def move(self, coords: NDArray) -> NDArray:
        """Apply the steps to points `N×2`."""
        return self._replay(_points(coords, self.size))[:, :2].numpy()

    def _replay(self, other: Any) -> Any:
        for kind, transform, parameters in self.steps:
            if isinstance(other, kind):
                other = transform(other, parameters)
        return other

    def apply_image(self, img: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return self.result

    def apply_coords(self, coords: NDArray) -> NDArray:
        return self.move(coords).astype(coords.dtype) if self.moves and len(coords) else coords

    def apply_segmentation(self, segmentation: NDArray) -> NDArray:
        if not self.moves:
            return segmentation
        return self._replay(tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(segmentation))[None]))[0].numpy()


@contextmanager
def _recorded(parts: list[v2.Transform]) -> Iterator[list[_Step]]:
    """Record how transforms transform boxes and masks while they run."""
    steps: list[_Step] = []

    def record(transform: Callable[..., Any], inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            steps.append((type(inpt), transform, params))
        return transform(inpt, params)

    for part in parts:
        part.transform = partial(record, part.transform)
    try:
        yield steps
    finally:
        for part in parts:
            # Uncovers the method of the class.
            del part.transform


def _parts(transform: Any) -> list[v2.Transform]:
    """Return a transform and all transforms in it, each once."""
    if not isinstance(transform, v2.Transform):
        raise ConfigError(
            f"augmentations: {transform} is not a transform of torchvision.transforms.v2. Wrap a function of an image "
            "as v2.Lambda(function, tv_tensors.Image)."
        )
    below = [part for each in getattr(transform, "transforms", ()) for part in _parts(each)]
    return list({id(part): part for part in (transform, *below)}.values())


def _grid(height: int, width: int) -> NDArray[np.float32]:
    """Return points all over an image, in pixels."""
    x, y = np.meshgrid(np.linspace(0, width, _GRID), np.linspace(0, height, _GRID))
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


def _points(coords: NDArray, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """Return points as boxes without area: torchvision's own points are centers of pixels, as in COCO's keypoints."""
    points = torch.as_tensor(coords, dtype=torch.float32).repeat(1, 2)
    return tv_tensors.BoundingBoxes(points, format="XYXY", canvas_size=size, clamping_mode=None)


def as_augmentations(transforms: Sequence[Any], image_format: str = "RGB") -> list[T.Augmentation]:
    """Return augmentations of Detectron2 for those of users.

    Args:
        transforms: Augmentations or transforms of Detectron2, and transforms of `torchvision.transforms.v2`.
        image_format: Channel order of the images, "RGB" or "BGR". Detectron2's augmentations get this order,
            torchvision's transforms always get RGB.

    Raises:
        ConfigError: One is of neither kind.
    """
    return [_as_augmentation(transform, image_format) for transform in transforms]


def _as_augmentation(transform: Any, image_format: str) -> T.Augmentation:
    if isinstance(transform, T.Augmentation | T.Transform):
        return T.AugmentationList([transform]).augs[0]
    if isinstance(transform, v2.Transform):
        return TorchvisionAugmentation(transform, image_format)
    raise ConfigError(
        f"augmentations: {transform!r} is a {type(transform).__name__}. Expected an Augmentation of Detectron2 or a "
        "transform of torchvision.transforms.v2."
    )
