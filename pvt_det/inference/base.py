"""A trained model as a function from images to what is in them."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from numpy.typing import NDArray

from pvt_det.checkpoint import CheckpointStore
from pvt_det.config import load_config, validate_config
from pvt_det.config.architecture import is_segmentor
from pvt_det.data.images import read_image
from pvt_det.data.mapper import augmentations_of
from pvt_det.data.sets import head_key
from pvt_det.engine.results import CONFIG_NAME
from pvt_det.errors import CheckpointError, ConfigError, DataError
from pvt_det.modeling.test_time_augmentation import with_views
from pvt_det.run_folder import OPTIONS_NAME
from pvt_det.utils.paths import file_fault, folder_fault
from pvt_det.utils.precision import inference_autocast
from pvt_det.weights import load_pretrained

Image: TypeAlias = str | os.PathLike[str] | NDArray[np.uint8]
Found = TypeVar("Found")

# In the order in which they are looked for beside a run's config.
_WEIGHTS = ("model_best.pth", "model_final.pth")


class TrainedModel(ABC, Generic[Found]):
    """A trained model as a function from images to what it finds in each; `Predictor` and `Segmentor` say what that is.

    An image is a file, or an array `H×W×3` of uint8 in **RGB** order, as Pillow and this package's configs have it; one
    of OpenCV's, in BGR, is turned by `image[:, :, ::-1]`. Several threads may share a model: they prepare their images
    side by side and take turns at it.

    Args:
        config: A run's output folder, or a config file.
        weights: Anything that `MODEL.WEIGHTS` takes; "" takes `model_best.pth`, or `model_final.pth`, beside the
            config.
        overrides: Keys of the config and their values, such as `["TEST.AUG.ENABLED", "True"]`.
        batch_size: Images of one call that go through the model together, where they have the same size after
            resizing: padding one to another's size would change what is found.
        device: Such as "cuda:1" or "cpu"; "" takes the first GPU where there is one.

    Attributes:
        class_names: Name of each class, by its number; "class 0", "class 1" … where neither the run nor its data set
            tells.
        cfg: The complete config.

    Raises:
        CheckpointError: The weights are missing, damaged, unsafe, or not of a whole model of this config.
        ConfigError: The config is wrong, or of another kind of model; or weights are named twice.
    """

    def __init__(
        self,
        config: str | os.PathLike[str],
        weights: str | os.PathLike[str] = "",
        *,
        overrides: Sequence[str] = (),
        batch_size: int = 8,
        device: str = "",
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size}: expected 1 or more.")
        weights, path = named_weights(weights, overrides), config_file(config)
        cfg = load_config(path, overrides)
        cfg.MODEL.DEVICE = _usable(device) or ("cuda" if torch.cuda.is_available() else "cpu")
        validate_config(cfg, where=str(path))
        self.class_names = self._check(cfg, path)
        cfg.freeze()
        self.cfg = cfg
        self.batch_size = batch_size
        model = build_model(cfg).eval()
        load_pretrained(model, run_weights(path, weights)).require_whole()
        test_cfg, self._model = with_views(cfg, model)
        self._model.eval()
        self._augmentations = T.AugmentationList(augmentations_of(test_cfg, is_train=False))
        self._lock = threading.Lock()

    # A str is a sequence of images too; it means one.
    @overload
    def __call__(self, images: Image) -> Found: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, images: Sequence[Image]) -> list[Found]: ...
    def __call__(self, images: Image | Sequence[Image]) -> Found | list[Found]:
        """Look at images.

        Args:
            images: One image, or a list or tuple of them.

        Returns:
            What is in one image, as the class tells; for a list, a list in the same order.

        Raises:
            DataError: An image cannot be read, or is no `H×W×3` array of uint8 with pixels.
            NumericError: The model's outputs are NaN or infinite.
        """
        if isinstance(images, (list, tuple)):
            return self._predict(images)
        return self._predict([images])[0]

    @abstractmethod
    def _check(self, cfg: CfgNode, path: Path) -> tuple[str, ...]:
        """Refuse the config of another kind of model; gives the names of the classes."""

    @abstractmethod
    def _run(self, records: list[dict[str, Any]]) -> list[Found]:
        """What is in the images of records as `_prepare` gives them, all of one shape; on the CPU."""

    def _predict(self, images: Sequence[Any]) -> list[Found]:
        found: dict[int, Found] = {}
        for start in range(0, len(images), self.batch_size):
            of_shape: dict[torch.Size, dict[int, dict[str, Any]]] = {}
            for number in range(start, min(start + self.batch_size, len(images))):
                record = self._prepare(images[number], f"image {number}" if len(images) > 1 else "the image")
                of_shape.setdefault(record["image"].shape, {})[number] = record
            for records in of_shape.values():
                found |= zip(records, self._run(list(records.values())), strict=True)
        return [found[number] for number in range(len(images))]

    def _prepare(self, image: Any, name: str) -> dict[str, Any]:
        pixels = read_image(image, "RGB") if isinstance(image, (str, os.PathLike)) else check_pixels(image, name)
        height, width = pixels.shape[:2]
        if self.cfg.INPUT.FORMAT == "BGR":
            pixels = pixels[:, :, ::-1]
        aug_input = T.AugInput(np.ascontiguousarray(pixels))
        self._augmentations(aug_input)
        tensor = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}

    def _outputs(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # Detectron2's models keep state while they run (its test-time augmentation turns the mask head off and on).
        with self._lock, torch.no_grad(), inference_autocast(self.cfg):
            return self._model(records)


def _usable(device: str) -> str:
    gpus = torch.cuda.device_count()
    number = device.removeprefix("cuda").removeprefix(":")
    if device.startswith("cuda") and int(number if number.isdecimal() else 0) >= gpus:
        has = f"{gpus} GPU{'s' if gpus > 1 else ''} that torch can use" if gpus else "no GPU that torch can use"
        raise ConfigError(f"device {device}: this machine has {has}; pvt-det doctor tells why.")
    return device


def check_pixels(image: Any, name: str) -> NDArray[np.uint8]:
    """Check that an image is `H×W×3` of uint8 with at least one pixel, and give it back.

    Raises:
        DataError: It is not; `name` says which image.
    """
    expected = "expected an array H x W x 3 of uint8 in RGB order, or a file's path"
    if image is None:
        raise DataError(f"{name} is None, as cv2.imread gives for a file that it cannot read; {expected}")
    if not isinstance(image, np.ndarray):
        raise DataError(f"{name} is a {type(image).__name__}; {expected}")
    if image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"{name} has the shape {image.shape}; {expected}{_way_out(image)}")
    if image.size == 0:
        raise DataError(f"{name} is empty, of shape {image.shape}; {expected}")
    if image.dtype != np.uint8:
        wrong = " and holds NaN" if image.dtype.kind == "f" and np.isnan(image).any() else ""
        raise DataError(f"{name} is of {image.dtype}{wrong}; {expected}, with values from 0 to 255")
    return image


def _way_out(image: NDArray[Any]) -> str:
    if image.ndim == 2:
        return ". A gray image becomes one by np.repeat(image[:, :, None], 3, axis=2)"
    if image.ndim == 3 and image.shape[2] == 4:
        return ". An alpha channel goes by image[:, :, :3]"
    if image.ndim == 4:
        return ". Several images come as a list"
    return ""


def config_file(config: str | os.PathLike[str]) -> Path:
    """The config file that a path means: itself, or `config.yaml` in a run's output folder.

    Raises:
        ConfigError: Nothing is there, or a folder without one.
    """
    path = Path(config)
    fault = file_fault(path)
    if fault and folder_fault(path):
        raise ConfigError(f"{path} {fault}: expected a run's output folder, or a config file.")
    if not fault:
        return path
    if not (path / CONFIG_NAME).is_file():
        of_classifier = (path / OPTIONS_NAME).is_file()
        what = "is of a classifier, not of a detector or segmentor" if of_classifier else f"holds no {CONFIG_NAME}"
        raise ConfigError(f"{path} {what}: expected a run's output folder, or a config file.")
    return path / CONFIG_NAME


def run_weights(config: Path, weights: str | os.PathLike[str] = "") -> str:
    """The weights to use with a config: those given, or the best ones beside it, verified where a run lists them.

    Raises:
        CheckpointError: None are given and none are there, or they are damaged.
    """
    if weights:
        path = Path(weights)
    else:
        beside = (config.parent / name for name in _WEIGHTS)
        found = next((path for path in beside if path.is_file()), None)
        if found is None:
            raise CheckpointError(
                f"no {' or '.join(_WEIGHTS)} lies beside {config}: name the weights to use, or the folder of a run "
                "instead of its config."
            )
        path = found
    if not file_fault(path):
        CheckpointStore(path.parent).verify_if_listed(path)
        return str(path)
    return str(weights)


def named_weights(weights: str | os.PathLike[str], overrides: Sequence[str]) -> str | os.PathLike[str]:
    """The weights that a user names, by themselves or as `MODEL.WEIGHTS` among keys of the config; "" for none.

    Raises:
        ConfigError: Both are given.
    """
    key = dict(zip(overrides[::2], overrides[1::2], strict=False)).get("MODEL.WEIGHTS", "")
    if weights and key:
        raise ConfigError(f"weights are named twice, {weights} and MODEL.WEIGHTS {key}: leave one out.")
    return weights or key


def class_names(cfg: CfgNode) -> tuple[str, ...]:
    """Names of the classes that a config's model finds: the run's, its named data set's, or else their numbers."""
    if is_segmentor(cfg):
        number, given, key = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.DATASETS.LABEL_NAMES, "stuff_classes"
    else:
        number, given, key = cfg.MODEL[head_key(cfg)].NUM_CLASSES, cfg.DATASETS.CLASS_NAMES, "thing_classes"
    registered = [name for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN) if name in DatasetCatalog]
    for names in (given, *(MetadataCatalog.get(name).get(key, []) for name in registered)):
        if len(names) == number:
            return tuple(names)
    return tuple(f"class {index}" for index in range(number))
