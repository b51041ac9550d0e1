"""Create models of timm, and rename published weights for them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor, nn

from pvt_det.errors import ConfigError
from pvt_det.utils.text import did_you_mean

# Options of models that expect images of one size by default. Windows are shifted in small maps too, as in detectors.
_ANY_SIZE = {"strict_img_size": False, "always_partition": True}


def require_timm_model(name: str, key: str) -> None:
    """Check that timm has a model.

    Args:
        name: Name of the model, such as "resnet18".
        key: The config key that names it, for the message.

    Raises:
        ConfigError: timm has no such model.
    """
    if not timm.is_model(name):
        raise ConfigError(
            f"{key} {name!r}: timm {timm.__version__} has no such model.{did_you_mean(name, timm.list_models())} "
            "timm.list_models() lists them."
        )


def create_timm_model(
    name: str, drop_path_rate: float, *, img_size: int | None = None, **options: Any
) -> tuple[nn.Module | None, str]:
    """Create a model with random weights that takes images of any size if possible.

    Args:
        name: Name of a model of timm.
        drop_path_rate: Stochastic depth rate of the last block, in [0, 1).
        img_size: Side of the images in pixels, for models that take images of one size only. None refuses them.
        **options: Further options of the model.

    Returns:
        The model and "", or None and the option that it does not have.
    """
    wanted = {**options, "drop_path_rate": drop_path_rate}
    choices: list[dict[str, Any]] = [{**_ANY_SIZE, **wanted}]
    choices += [{"img_size": img_size, **wanted}] if img_size is not None else []
    choices += [wanted] + ([options] if drop_path_rate == 0 else [])
    reason = ""
    for choice in choices:
        try:
            return timm.create_model(name, pretrained=False, **choice), ""
        except TypeError as error:  # the model does not have an option
            reason = str(error)
    return None, reason


def convert_checkpoint(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of a classifier for a model of timm.

    Args:
        tensors: Tensors by timm's names, or by those of the code that was published with the model, if timm converts
            them.
        model: The model.

    Returns:
        The tensors under timm's names.
    """
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return dict(convert(dict(tensors), model)) if convert else dict(tensors)


def is_timm_model(model: nn.Module) -> bool:
    """Return whether a model is one of timm's.

    Args:
        model: Any module.
    """
    return type(model).__module__.startswith("timm.models.")
