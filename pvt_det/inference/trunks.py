"""Trained classifiers, with as many classes as their weights have, and trunks with an image as they see it."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from numpy.typing import NDArray
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from pvt_det.config import load_config
from pvt_det.data.augmentation.transforms import ResizeShortSide
from pvt_det.data.mapper import build_augmentations
from pvt_det.errors import ConfigError
from pvt_det.models import create_model
from pvt_det.models.trunk import Trunk
from pvt_det.run_folder import config_file, run_weights
from pvt_det.weights import load_pretrained, read_translation

_CLASSIFIER_SIDE = 224


def trained_classifier(name: str, source: str, img_size: int = 224) -> Trunk:
    """Load a trained classifier.

    Args:
        name: A variant, such as "pvt_small".
        source: Anything that `MODEL.WEIGHTS` takes.
        img_size: Side of its images in pixels.

    Raises:
        CheckpointError: The weights are missing, damaged, or not of a whole classifier of this variant.
        ConfigError: The name is unknown.
    """
    translation = read_translation(source)
    head = translation.tensors.get("head.weight")
    model = create_model(name, num_classes=1000 if head is None else len(head), img_size=img_size).eval()
    load_pretrained(model, translation).require_whole()
    return model


def detector_trunk(config: str, weights: str, pixels: NDArray[np.uint8]) -> tuple[Trunk, Tensor]:
    """A trained detector's or segmentor's trunk, and an image as its test-time transforms make it, not padded.

    Args:
        config: A run's output folder, or a config file.
        weights: Anything that `MODEL.WEIGHTS` takes; "" takes the best beside the config.
        pixels: `H×W×3` uint8 RGB.

    Returns:
        The trunk in evaluation mode, and the normalised image, `3×H×W`.

    Raises:
        CheckpointError: The weights are missing, damaged, or not of the whole model.
        ConfigError: The config is wrong, or its backbone is no PVT.
    """
    path = config_file(config)
    cfg = load_config(path, ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg).eval()
    trunk = getattr(model.backbone, "bottom_up", model.backbone)
    if not isinstance(trunk, Trunk):
        raise ConfigError(f"{path}: its backbone is {cfg.MODEL.BACKBONE.NAME}; only a PVT has attention to show.")
    load_pretrained(model, run_weights(path, weights)).require_whole()
    image = _resized(
        pixels if cfg.INPUT.FORMAT == "RGB" else pixels[:, :, ::-1], build_augmentations(cfg, is_train=False)
    )
    return trunk, (image - model.pixel_mean) / model.pixel_std


def classifier(name: str, weights: str, pixels: NDArray[np.uint8]) -> tuple[Trunk, Tensor]:
    """A trained classifier, and an image, its short side 224 pixels.

    Args:
        name: A variant, such as "pvt_small".
        weights: Anything that `MODEL.WEIGHTS` takes; "" takes the published ones.
        pixels: `H×W×3` uint8 RGB.

    Returns:
        The model in evaluation mode, and the normalised image, `3×H×W`.

    Raises:
        CheckpointError: The weights are missing, damaged, or not of such a classifier.
        ConfigError: The name is unknown.
    """
    model = trained_classifier(name, weights or f"pvt://{name}")
    image = _resized(pixels, [ResizeShortSide((_CLASSIFIER_SIDE,), float("inf"), "choice", "pil")])
    mean, std = (255 * torch.tensor(values)[:, None, None] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return model, (image - mean) / std


def _resized(pixels: NDArray[np.uint8], augmentations: list[T.Augmentation]) -> Tensor:
    aug_input = T.AugInput(np.ascontiguousarray(pixels))
    T.AugmentationList(augmentations)(aug_input)
    return torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))).float()
