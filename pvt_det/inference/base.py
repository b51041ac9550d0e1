"""The base class of predictors, which run a trained model on images."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from numpy.typing import NDArray

from pvt_det.config import validate_config
from pvt_det.config.architecture import head_key, is_panoptic, is_segmentor
from pvt_det.data.augmentation.transforms import build_tta_resizes
from pvt_det.data.mapper import build_augmentations
from pvt_det.errors import ConfigError
from pvt_det.inference.pixels import Image, Prepared, load_pixels
from pvt_det.modeling.test_time_augmentation import build_tta
from pvt_det.run_folder import config_file, named_weights, run_weights
from pvt_det.runtimes.backends import is_exported
from pvt_det.runtimes.metadata import load_model_config
from pvt_det.runtimes.model import load_model, model_digest
from pvt_det.utils.devices import require_device
from pvt_det.utils.digest import value_digest
from pvt_det.utils.precision import inference_autocast
from pvt_det.utils.signing import verify_signed

Prediction = TypeVar("Prediction")
_KINDS = {
    "Predictor": "a detector",
    "Segmentor": "a semantic segmentation model",
    "PanopticPredictor": "a panoptic segmentation model",
}


class Preparation:
    """Resizes images for a model. It can be sent to another process without the model.

    Args:
        cfg: The config of the model, of which INPUT is read.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._augmentations = T.AugmentationList(build_augmentations(cfg, is_train=False))
        self._is_bgr = cfg.INPUT.FORMAT == "BGR"

    def __call__(self, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        """Return what the model is given: the resized `image` as a tensor, and the original `height` and `width`.

        Args:
            pixels: Image `H×W×3`, RGB.
        """
        height, width = pixels.shape[:2]
        aug_input = T.AugInput(np.ascontiguousarray(pixels[:, :, ::-1] if self._is_bgr else pixels))
        self._augmentations(aug_input)
        tensor = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}


class BasePredictor(ABC, Generic[Prediction]):
    """Runs a trained model on images. Its subclasses define what is returned for each image.

    An image is a file path, a Pillow image, or an `H×W×3` uint8 array in **RGB** order. Files and Pillow images are
    rotated upright according to their EXIF orientation. Convert a BGR image from OpenCV with `image[:, :, ::-1]`.
    Several threads may share a predictor: they preprocess images in parallel and take turns running the model. A
    predictor can be pickled with its weights, to send it to another process. With an exported file, the copy opens that
    file again.

    Args:
        config: A run folder, a config file, or an exported file.
        weights: Weights of the model, in any form that `MODEL.WEIGHTS` accepts. "" selects `model_best.pth`, or
            otherwise `model_final.pth`, next to the config.
        overrides: Config keys and values, such as `["TEST.AUG.ENABLED", "True"]`.
        batch_size: Maximum number of images per forward pass, at least 1. Only images that have the same size after
            resizing are batched, because padding would change the predictions.
        device: Device such as "cuda:1", "mps" or "cpu". "" selects the first GPU if one is available.
        public_key: PEM file with which the signature of the config's folder is verified before anything in it is read.
            The weights must be a file in that folder. "" verifies nothing.

    Attributes:
        class_names: Class names, by class index. They are "class 0", "class 1", … if neither the run nor its data set
            defines names.
        cfg: The complete config.
        preparation: Function that resizes the pixels of an image for the model. With `Prepared` images, it can run in
            another process.

    Raises:
        CheckpointError: The weights are missing, damaged, unsafe, or do not cover the whole model, or the signature of
            the folder does not match.
        ConfigError: The config is invalid or for a different kind of model, the weights are given twice, or the public
            key cannot be used.
    """

    def __init__(
        self,
        config: str | os.PathLike[str],
        weights: str | os.PathLike[str] = "",
        *,
        overrides: Sequence[str] = (),
        batch_size: int = 8,
        device: str = "",
        public_key: str | os.PathLike[str] = "",
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size}: expected at least 1.")
        weights, path = named_weights(weights, overrides), config_file(config)
        verify_signed(os.fspath(public_key), path, *([Path(weights)] if weights else []))
        cfg = load_model_config(path, overrides, training=False)
        cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() and not is_exported(path) else "cpu")
        validate_config(cfg, where=str(path), training=False)
        if not is_exported(path):
            require_device(torch.device(cfg.MODEL.DEVICE), f"Device {cfg.MODEL.DEVICE}")
        self.class_names = self._check(cfg, path)
        cfg.freeze()
        self.cfg = cfg
        self.batch_size = batch_size
        model = load_model(cfg, run_weights(path, weights))
        test_cfg, self._model = build_tta(cfg, model, build_tta_resizes(cfg))
        self._model.eval()
        self.preparation = Preparation(test_cfg)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    # mypy reports an overlap because a str is also a sequence of str.
    @overload
    def __call__(self, images: Image) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, images: Sequence[Image | Prepared]) -> list[Prediction]: ...
    def __call__(self, images: Image | Sequence[Image | Prepared]) -> Prediction | list[Prediction]:
        """Run the model on one or more images.

        Args:
            images: One image, or a list or tuple of images.

        Returns:
            The prediction for one image, or a list of predictions in the order of the images.

        Raises:
            DataError: An image cannot be read, or is an array that is not a non-empty `H×W×3` uint8 array.
            NumericError: The model's outputs are NaN or infinite.
        """
        if isinstance(images, (list, tuple)):
            return self._predict(images)
        return self._predict([images])[0]

    def fingerprint(self) -> str:
        """Return the SHA-256 of what the predictions depend on.

        This is the config without what is only for training, the paths, the device and the number of workers; the class
        names, and the weights.
        """
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = cfg.MODEL.WEIGHTS = ""
        sections = [cfg[name].dump() for name in ("MODEL", "INPUT", "TEST")]
        return value_digest([sections, self.class_names, model_digest(self._model)])

    @abstractmethod
    def _check(self, cfg: CfgNode, path: Path) -> tuple[str, ...]:
        """Raise `ConfigError` for a config that this predictor does not support. Return the class names."""

    @abstractmethod
    def _run(self, records: list[dict[str, Any]]) -> list[Any]:
        """Return the outputs on the CPU for records from `_prepare` whose images have the same shape."""

    @abstractmethod
    def _result(self, output: Any, image: Image) -> Prediction:
        """Return the prediction from an output of `_run`, with a reference to its image."""

    def _predict(self, images: Sequence[Any]) -> list[Prediction]:
        outputs: dict[int, Any] = {}
        for start in range(0, len(images), self.batch_size):
            by_shape: dict[torch.Size, dict[int, dict[str, Any]]] = {}
            for number in range(start, min(start + self.batch_size, len(images))):
                record = self._prepare(images[number], f"image {number}" if len(images) > 1 else "the image")
                by_shape.setdefault(record["image"].shape, {})[number] = record
            for records in by_shape.values():
                outputs |= zip(records, self._run(list(records.values())), strict=True)
        originals = [image.image if isinstance(image, Prepared) else image for image in images]
        return [self._result(outputs[number], image) for number, image in enumerate(originals)]

    def _prepare(self, image: Any, name: str) -> dict[str, Any]:
        return image.record if isinstance(image, Prepared) else self.preparation(load_pixels(image, name))

    def _outputs(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # Detectron2's models are not thread-safe: test-time augmentation switches the mask head off and on.
        with self._lock, torch.no_grad(), inference_autocast(self.cfg):
            return self._model(records)


def predictor_name(cfg: CfgNode) -> str:
    """Return which class of this package predicts with a model: "Predictor", "Segmentor" or "PanopticPredictor".

    Args:
        cfg: The config of the model.
    """
    if is_panoptic(cfg):
        return "PanopticPredictor"
    return "Segmentor" if is_segmentor(cfg) else "Predictor"


def require_kind_of_model(cfg: CfgNode, path: Path, name: str) -> None:
    """Check that a predictor is for the kind of model that a config describes.

    Args:
        cfg: The config of the model.
        path: The config file, for the message.
        name: "Predictor", "Segmentor" or "PanopticPredictor".

    Raises:
        ConfigError: The model is of a different kind.
    """
    found = predictor_name(cfg)
    if found != name:
        raise ConfigError(
            f"{path} is the config of {_KINDS[found]}, {cfg.MODEL.META_ARCHITECTURE}. Expected {_KINDS[name]}. "
            f"Use pvt_det.{found} for this model."
        )


def class_names(cfg: CfgNode) -> tuple[str, ...]:
    """Return the class names of a config's model, from the config, its data set, or otherwise numbered.

    Those of a model for panoptic segmentation are the classes of objects.

    Args:
        cfg: The config of the model.
    """
    return known_class_names(cfg) or tuple(f"class {index}" for index in range(_class_count(cfg)))


def known_class_names(cfg: CfgNode) -> tuple[str, ...]:
    """Return the class names of a config's model from the config or its data set, or () if they are not known.

    Args:
        cfg: The config of the model.
    """
    if is_segmentor(cfg):
        return known_label_names(cfg)
    return _find_names(cfg, _class_count(cfg), cfg.DATASETS.CLASS_NAMES, "thing_classes")


def stuff_names(cfg: CfgNode) -> tuple[str, ...]:
    """Return the names of the classes without objects of a model for panoptic segmentation.

    They come from the config, its data set, or are numbered. Class 0 of the label maps, which means any object, is
    left out.

    Args:
        cfg: The config of the model.
    """
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    return (known_label_names(cfg) or tuple(f"stuff {index}" for index in range(count)))[1:]


def known_label_names(cfg: CfgNode) -> tuple[str, ...]:
    """Return the names of the classes of a config's label maps, or () if they are not known.

    Args:
        cfg: The config of the model.
    """
    return _find_names(cfg, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.DATASETS.LABEL_NAMES, "stuff_classes")


def _find_names(cfg: CfgNode, count: int, given: Sequence[str], key: str) -> tuple[str, ...]:
    """Return the first list of `count` names: that of the config, or of its data sets; () if there is none."""
    registered = [name for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN) if name in DatasetCatalog]
    for names in (given, *(MetadataCatalog.get(name).get(key, []) for name in registered)):
        if len(names) == count:
            return tuple(names)
    return ()


def _class_count(cfg: CfgNode) -> int:
    head = "SEM_SEG_HEAD" if is_segmentor(cfg) else head_key(cfg)
    return int(cfg.MODEL[head].NUM_CLASSES)
