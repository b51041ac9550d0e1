"""Load trained classifiers and trunks, and preprocess images for them."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from numpy.typing import NDArray
from timm import is_model
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from pvt_det.config import load_config
from pvt_det.data.augmentation.transforms import ResizeShortSide
from pvt_det.data.mapper import build_augmentations
from pvt_det.errors import ConfigError
from pvt_det.models import create_model, list_models
from pvt_det.models.trunk import Trunk
from pvt_det.run_folder import config_file, run_weights
from pvt_det.weights import load_pretrained, read_translation

_CLASSIFIER_SIDE = 224


def trained_classifier(name: str, source: str, img_size: int = 224) -> Trunk:
    """Load a trained classifier. The number of classes is taken from the weights.

    Args:
        name: Model variant, such as "pvt_small".
        source: Weights of the model, in any form that `MODEL.WEIGHTS` accepts.
        img_size: Side of the input images in pixels.

    Raises:
        CheckpointError: The weights are missing, damaged, or do not cover a whole classifier of this variant.
        ConfigError: The name is unknown, or that of a model of timm.
    """
    if name not in list_models() and is_model(name):
        raise ConfigError(f"{name} is a model of timm. Attention maps need a PVT: {', '.join(list_models())}.")
    translation = read_translation(source)
    head = translation.tensors.get("head.weight")
    model = create_model(name, num_classes=1000 if head is None else len(head), img_size=img_size).eval()
    load_pretrained(model, translation).require_whole()
    return model


def detector_trunk(config: str, weights: str, pixels: NDArray[np.uint8]) -> tuple[Trunk, Tensor]:
    """Load the trunk of a trained detector or segmentor, and apply its test-time transforms to an image.

    Args:
        config: A run folder or a config file.
        weights: Weights of the model, in any form that `MODEL.WEIGHTS` accepts. "" selects the best weights next to
            the config.
        pixels: `H×W×3` uint8 RGB image.

    Returns:
        The trunk in evaluation mode, and the normalized `3×H×W` image without padding.

    Raises:
        CheckpointError: The weights are missing, damaged, or do not cover the whole model.
        ConfigError: The config is invalid, or its backbone is not a PVT.
    """
    path = config_file(config)
    cfg = load_config(path, ["MODEL.DEVICE", "cpu"], training=False)
    model = build_model(cfg).eval()
    trunk = getattr(model.backbone, "bottom_up", model.backbone)
    if not isinstance(trunk, Trunk):
        raise ConfigError(f"{path} has the backbone {cfg.MODEL.BACKBONE.NAME}. Attention maps need a PVT backbone.")
    load_pretrained(model, run_weights(path, weights)).require_whole()
    image = _resized(
        pixels if cfg.INPUT.FORMAT == "RGB" else pixels[:, :, ::-1], build_augmentations(cfg, is_train=False)
    )
    return trunk, (image - model.pixel_mean) / model.pixel_std


def classifier(name: str, weights: str, pixels: NDArray[np.uint8]) -> tuple[Trunk, Tensor]:
    """Load a trained classifier, and resize an image to a short side of 224 pixels.

    Args:
        name: Model variant, such as "pvt_small".
        weights: Weights of the model, in any form that `MODEL.WEIGHTS` accepts. "" selects the published weights.
        pixels: `H×W×3` uint8 RGB image.

    Returns:
        The model in evaluation mode, and the normalized `3×H×W` image.

    Raises:
        CheckpointError: The weights are missing, damaged, or do not match the classifier.
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
