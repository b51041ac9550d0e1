"""Recipes and published weights by name, with the functions of Detectron2's `model_zoo`.

Example:
    >>> from pvt_det import model_zoo
    >>> cfg = model_zoo.get_config("retinanet_pvt_small")
    >>> model = model_zoo.get("retinanet_pvt_small", trained=True)
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from pvt_det.config import load_config
from pvt_det.errors import ConfigError
from pvt_det.recipes import list_recipes, recipe_file
from pvt_det.weights import load_pretrained
from pvt_det.weights.catalog import CATALOG, DETECTORS

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file", "list_configs"]


def list_configs() -> list[str]:
    """Return the names of all recipes, such as "retinanet_pvt_small"."""
    return list_recipes()


def get_config_file(name: str) -> str:
    """Return the path of a recipe's config file.

    Args:
        name: Name of the recipe, such as "retinanet_pvt_small".

    Raises:
        ConfigError: If the recipe does not exist.
    """
    return str(recipe_file(name))


def get_checkpoint_url(name: str) -> str:
    """Return the URL of the published weights of a trained detector.

    Args:
        name: Name of its recipe, such as "retinanet_pvt_small".

    Raises:
        ConfigError: If the recipe does not exist, or no weights were published for it.
    """
    return CATALOG[_detector(name)].url


def get_config(name: str, trained: bool = False) -> CfgNode:
    """Return a recipe as a config.

    Args:
        name: Name of the recipe, such as "retinanet_pvt_small".
        trained: Whether `MODEL.WEIGHTS` is the published trained detector. Otherwise it is what training starts from,
            usually ImageNet weights of the backbone.

    Returns:
        A config that is not frozen.

    Raises:
        ConfigError: If the recipe does not exist, or with `trained`, no weights were published for it.
    """
    return load_config(recipe_file(name), _trained(name) if trained else [])


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Build the model of a recipe, in evaluation mode, and load its weights.

    The weights are downloaded on first use.

    Args:
        name: Name of the recipe, such as "retinanet_pvt_small".
        trained: Whether to load the published trained detector. Otherwise only what training starts from is loaded,
            and the heads have random weights.
        device: Device of the model, such as "cpu". None takes a GPU if there is one.

    Returns:
        The model. It takes and returns what Detectron2's models do.

    Raises:
        ConfigError: If the recipe does not exist, or with `trained`, no weights were published for it.
        CheckpointError: If the weights cannot be downloaded or are broken.
    """
    cfg = get_config(name, trained)
    cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
    model = build_model(cfg).eval()
    if cfg.MODEL.WEIGHTS:
        report = load_pretrained(model, cfg.MODEL.WEIGHTS)
        if trained:
            report.require_whole()
    return model


def _trained(name: str) -> list[str]:
    # MMDetection, where these detectors were trained, has a different epsilon in the norm after the patch embedding.
    return ["MODEL.WEIGHTS", f"pvt://{_detector(name)}", "MODEL.PVT.EMBED_NORM_EPS", "1e-6"]


def _detector(name: str) -> str:
    """Return the name in the catalog of weights of a recipe's trained detector."""
    recipe_file(name)
    if name not in DETECTORS:
        raise ConfigError(
            f"{name}: no weights of this detector were published. Those with weights are {', '.join(DETECTORS)}."
        )
    return DETECTORS[name]
