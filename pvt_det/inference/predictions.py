"""What predictors return: detections and label maps that can be counted, drawn and saved."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from detectron2.structures import BoxMode, Instances
from numpy.typing import NDArray

from pvt_det.errors import ConfigError, DataError
from pvt_det.inference.pixels import Image, load_pixels
from pvt_det.structures.masks import RunLengthMasks
from pvt_det.utils.text import listed
from pvt_det.utils.visualizer import MAX_SHOWN, Picture, draw, draw_labels

__all__ = ["Detections", "LabelMap"]

_MIN_WIDTH = 640  # of drawings, in pixels
_MOST_SHARES = 5  # classes of a label map that are named in its description


class Detections(Instances):
    """The objects that `Predictor` finds in an image: Detectron2's `Instances` that can be drawn and saved.

    It can be used wherever `Instances` can. `found[found.scores > 0.9]` and `found.to(device)` are `Detections` too. It
    refers to the image that was passed to the predictor, without a copy, and reads a file again to draw it.

    Args:
        image_size: Height and width of the image in pixels.
        class_names: Class names, by class index.
        image: The image that the objects were found in, as passed to the predictor. None if it is not known.
        fields: Fields such as `pred_boxes`, each with one element for each object.
    """

    def __init__(
        self, image_size: tuple[int, int], *, class_names: Sequence[str] = (), image: Image | None = None, **fields: Any
    ) -> None:
        super().__init__(image_size, **fields)
        self._class_names = tuple(class_names)
        self._image = image

    @classmethod
    def of(cls, instances: Instances, class_names: Sequence[str], image: Image | None) -> Detections:
        """Return instances as detections with the same fields.

        Args:
            instances: The instances.
            class_names: Class names, by class index.
            image: The image that the objects were found in, as passed to the predictor. None if it is not known.
        """
        return cls(instances.image_size, class_names=class_names, image=image, **instances.get_fields())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, by class index."""
        return self._class_names

    def to(self, *args: Any, **kwargs: Any) -> Detections:
        """Return the detections on another device.

        Args:
            args: Arguments of `torch.Tensor.to`, such as "cpu".
            kwargs: Keyword arguments of `torch.Tensor.to`.
        """
        return Detections.of(super().to(*args, **kwargs), self._class_names, self._image)

    def __getitem__(self, item: Any) -> Detections:
        return Detections.of(super().__getitem__(item), self._class_names, self._image)

    def counts(self) -> dict[str, int]:
        """Return the number of objects of each class that was found, by class name."""
        return count_classes(self, self._class_names)

    def plot(self, width: int | None = None) -> Picture:
        """Draw at most 300 objects on the image, the highest score on top, as `pvt-det predict` does.

        Args:
            width: Width of the drawing in pixels. None keeps the width of the image, but enlarges small images to 640
                pixels.

        Returns:
            The drawing, `H×W×3` uint8 RGB.

        Raises:
            ConfigError: The image is not known.
            DataError: The image file cannot be read any more, or has changed its size.
        """
        return draw_detections(original_pixels(self._image, self.image_size), self, self._class_names, width)

    def save(self, path: str | os.PathLike[str], width: int | None = None) -> Path:
        """Draw the objects on the image as `plot` does, and write the drawing.

        Args:
            path: Image file to write, such as "found.jpg". Its folder is created if it does not exist.
            width: Width of the drawing in pixels. None keeps the width of the image, but enlarges small images to 640
                pixels.

        Returns:
            The path of the file.

        Raises:
            ConfigError: The image is not known, or the path has no suffix of an image format.
            DataError: The image file cannot be read any more, or has changed its size.
        """
        return write_picture(self.plot(width), Path(path))


class LabelMap(np.ndarray[Any, np.dtype[np.uint8]]):
    """The classes of the pixels of an image, from `Segmentor`: an `H×W` uint8 array that can be drawn and saved.

    It can be used wherever an array can. Results of computations with it, such as `labels == 3`, are plain arrays. It
    refers to the image that was passed to the segmentor, without a copy, and reads a file again to draw it.

    Args:
        labels: Class index of each pixel, `H×W` uint8; 255 for no class.
        class_names: Class names, by class index.
        image: The image, as passed to the segmentor. None if it is not known.
    """

    class_names: tuple[str, ...]
    _image: Image | None

    def __new__(
        cls, labels: NDArray[np.uint8], class_names: Sequence[str] = (), image: Image | None = None
    ) -> LabelMap:
        """Return an array as a label map, without a copy."""
        created = np.asarray(labels).view(cls)
        created.class_names, created._image = tuple(class_names), image
        return created

    def __array_finalize__(self, source: Any) -> None:
        self.class_names = getattr(source, "class_names", ())
        self._image = getattr(source, "_image", None)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)

    def __reduce__(self) -> tuple[Any, ...]:
        return LabelMap, (np.asarray(self), self.class_names, self._image)

    def shares(self) -> dict[str, float]:
        """Return the fraction of the pixels of each class that was found, by class name, the largest first."""
        return class_shares(self, self.class_names)

    def plot(self, width: int | None = None) -> Picture:
        """Draw the classes and their names on the image, as `pvt-det predict` does.

        Args:
            width: Width of the drawing in pixels. None keeps the width of the image, but enlarges small images to 640
                pixels.

        Returns:
            The drawing, `H×W×3` uint8 RGB.

        Raises:
            ConfigError: The image is not known.
            DataError: The image file cannot be read any more, or has a different size than the label map.
        """
        pixels = original_pixels(self._image, (self.shape[0], self.shape[1]))
        return draw_label_map(pixels, self, self.class_names, width)

    def save(self, path: str | os.PathLike[str], width: int | None = None) -> Path:
        """Draw the classes on the image as `plot` does, and write the drawing.

        `PIL.Image.fromarray(labels).save("labels.png")` writes the class indices instead.

        Args:
            path: Image file to write, such as "found.jpg". Its folder is created if it does not exist.
            width: Width of the drawing in pixels. None keeps the width of the image, but enlarges small images to 640
                pixels.

        Returns:
            The path of the file.

        Raises:
            ConfigError: The image is not known, or the path has no suffix of an image format.
            DataError: The image file cannot be read any more, or has a different size than the label map.
        """
        return write_picture(self.plot(width), Path(path))


def count_classes(found: Instances, class_names: Sequence[str]) -> dict[str, int]:
    """Return the number of objects of each class that was found, by class name.

    Args:
        found: The detections in an image.
        class_names: Class names, by class index.
    """
    indices, counts = np.unique(found.pred_classes.cpu().numpy(), return_counts=True)
    return {class_names[index]: count for index, count in zip(indices.tolist(), counts.tolist(), strict=True)}


def class_shares(labels: NDArray[np.uint8], class_names: Sequence[str]) -> dict[str, float]:
    """Return the fraction of the pixels of each class in a label map, by class name, the largest first.

    Args:
        labels: `H×W` label map. Indices without a name are left out.
        class_names: Class names, by class index.
    """
    counts = np.bincount(np.ravel(labels), minlength=256)[: len(class_names)]
    order = np.argsort(-counts, kind="stable")
    return {class_names[index]: float(counts[index] / labels.size) for index in order if counts[index]}


def describe_counts(counts: Mapping[str, int]) -> str:
    """Return the number of objects of each class, such as "4 cat, 1 dog", or "no objects".

    Args:
        counts: Number of objects by class name.
    """
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "no objects"


def describe_shares(shares: Mapping[str, float]) -> str:
    """Return the shares of the largest classes, such as "sky 45%; road 30%", or "no classes".

    Args:
        shares: Fraction of the pixels by class name, the largest first.
    """
    # Names such as ADE20K's "road, route" contain commas.
    parts = [f"{name} {_percent(share)}" for name, share in shares.items()]
    return listed(parts, _MOST_SHARES, separator="; ") or "no classes"


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def draw_detections(
    pixels: Picture,
    found: Instances,
    class_names: Sequence[str],
    width: int | None = None,
    *,
    distinct: bool = True,
) -> Picture:
    """Draw at most 300 detections on their image, the highest score on top.

    Args:
        pixels: `H×W×3` uint8 RGB image.
        found: The detections in the image, by descending score.
        class_names: Class names, by class index.
        width: Width of the drawing in pixels. None keeps the width of the image, but enlarges small images to 640
            pixels.
        distinct: Whether neighboring objects of one class have different colors, which would flicker in a video.
    """
    objects = _as_objects(found[:MAX_SHOWN])
    return draw(pixels, objects[::-1], class_names, width or drawing_width(pixels), distinct=distinct)


def draw_label_map(
    pixels: Picture, labels: NDArray[np.uint8], class_names: Sequence[str], width: int | None = None
) -> Picture:
    """Draw a label map on its image.

    Args:
        pixels: `H×W×3` uint8 RGB image.
        labels: `H×W` label map of the image.
        class_names: Class names, by class index.
        width: Width of the drawing in pixels. None keeps the width of the image, but enlarges small images to 640
            pixels.
    """
    return draw_labels(pixels, np.asarray(labels), class_names, width or drawing_width(pixels))


def write_picture(picture: Picture, path: Path) -> Path:
    """Write an image in the format of the file name's suffix.

    Args:
        picture: `H×W×3` uint8 RGB image.
        path: The file to write. Its folder is created if it does not exist.

    Returns:
        The path.

    Raises:
        ConfigError: The suffix is not that of an image format.
    """
    if path.suffix.lower() not in PIL.Image.registered_extensions():
        raise ConfigError(
            f"{path} has no suffix of an image format. Expected a file name that ends with .jpg, .png or .webp."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without subsampling, which blurs thin colored lines. Formats other than JPEG ignore it.
    PIL.Image.fromarray(picture).save(path, quality=90, subsampling=0)
    return path


def original_pixels(image: Image | None, size: tuple[int, int]) -> Picture:
    """Return the pixels of the image that was predicted on, `H×W×3` RGB, to draw the predictions on them.

    Args:
        image: The image as passed to the predictor. None if it is not known.
        size: Height and width of the image in pixels when it was predicted on.

    Raises:
        ConfigError: The image is not known.
        DataError: The image file cannot be read any more, or has changed its size.
    """
    if image is None:
        raise ConfigError(
            "The image of these predictions is not known, so they cannot be drawn. Pass it to the predictor, or as "
            "the argument image when you create them."
        )
    pixels = load_pixels(image, "the image")
    if pixels.shape[:2] != size:
        name = image if isinstance(image, (str, os.PathLike)) else "The image"
        raise DataError(
            f"{name} has {pixels.shape[1]}x{pixels.shape[0]} pixels, but the predictions are for {size[1]}x{size[0]}. "
            "Predict again, or draw the predictions for the whole image."
        )
    return pixels


def drawing_width(pixels: Picture) -> int:
    """Return the width of a drawing in pixels: that of the image, but at least 640.

    Args:
        pixels: The image, `H×W×3`.
    """
    return max(pixels.shape[1], _MIN_WIDTH)


def _as_objects(detections: Instances) -> list[dict[str, Any]]:
    """Convert detections to the objects that `pvt_det.utils.visualizer.draw` expects."""
    objects: list[dict[str, Any]] = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, "score": score}
        for box, label, score in zip(
            detections.pred_boxes.tensor.tolist(),
            detections.pred_classes.tolist(),
            detections.scores.tolist(),
            strict=True,
        )
    ]
    if detections.has("track_ids"):
        for obj, track_id in zip(objects, detections.track_ids.tolist(), strict=True):
            obj.update({"track_id": track_id} if track_id > 0 else {})
    if detections.has("pred_masks"):
        masks = detections.pred_masks
        encoded = masks if isinstance(masks, RunLengthMasks) else RunLengthMasks.encode(masks)
        for obj, rle in zip(objects, encoded.rles(), strict=True):
            obj["segmentation"] = rle
    return objects
