"""The models that are profiled: a trunk by its name, or a detector or segmentor by its config or output folder."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model as build_from_config
from detectron2.utils.events import EventStorage
from torch import nn

from pvt_det.config import load_config
from pvt_det.engine.hooks import BEST_NAME
from pvt_det.engine.trainer import FINAL_NAME
from pvt_det.errors import ConfigError
from pvt_det.inference.base import config_file, run_weights
from pvt_det.models import create_model
from pvt_det.models.variants import VARIANTS
from pvt_det.profiling.case import Case
from pvt_det.weights import load_pretrained

# A model and the function that runs it on a batch.
Runnable = tuple[nn.Module, Callable[[Any], Any]]
_ALL_STAGES = {1, 2, 3, 4}


def check_model(name: str) -> None:
    """Refuse what is neither a variant nor a valid config.

    Raises:
        ConfigError: The name is unknown, or its config is wrong.
    """
    if name not in VARIANTS:
        load_config(_config_path(name))


def find_weights(name: str) -> str:
    """Return the weights file of a trained run, or "" for a variant or a config that was not trained.

    Args:
        name: A variant, a config file or a run's output folder.

    Raises:
        CheckpointError: The run's weights are damaged.
    """
    if name in VARIANTS:
        return ""
    path = _config_path(name)
    is_trained = any((path.parent / weights).is_file() for weights in (BEST_NAME, FINAL_NAME))
    return run_weights(path) if is_trained else ""


def build_model(case: Case, device: torch.device, *, compiled: bool = False) -> Runnable:
    """Build the model of a case in its mode on `device`, with the weights of its run or random ones.

    Args:
        case: What to measure.
        device: Where the model goes.
        compiled: Run the model through `torch.compile`. Not for a detector, which is compiled as its config says.
    """
    torch.manual_seed(0)
    module, forward = (_build_detector if case.task == "detector" else _build_trunk)(case, device)
    module.to(device).train(case.mode == "training")
    return module, _compile(forward, case) if compiled else forward


def _compile(forward: Callable[[Any], Any], case: Case) -> Callable[[Any], Any]:
    # In inference, CUDA graphs save a small batch the time of the interpreter.
    return torch.compile(forward, mode="reduce-overhead" if case.mode == "inference" else "default")


def _build_trunk(case: Case, device: torch.device) -> Runnable:
    model = create_model(case.model, num_classes=1000 if case.task == "classifier" else 0)
    if case.checkpointed:
        model.checkpoint_stages = set(_ALL_STAGES)
    return model, model.forward_pyramid if case.task == "pyramid" else model


def _build_detector(case: Case, device: torch.device) -> Runnable:
    overrides: list[Any] = ["MODEL.DEVICE", str(device)]
    if case.checkpointed:
        overrides += ["MODEL.PVT.CHECKPOINT_STAGES", sorted(_ALL_STAGES)]
    model = build_from_config(load_config(_config_path(case.model), overrides))
    if weights := find_weights(case.model):
        load_pretrained(model, weights).require_whole()
    return model, partial(_run_detector, model)


def _run_detector(model: nn.Module, records: list[dict[str, Any]]) -> Any:
    # Detectron2's models log to a storage in training.
    with EventStorage():
        return model(records)


def _config_path(name: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    if path.exists():
        return config_file(path)
    near = difflib.get_close_matches(name, VARIANTS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"Unknown model {name}.{hint} Expected a config file, such as configs/retinanet_pvt_small.yaml, a run's output "
        f"folder, or one of {', '.join(VARIANTS)}."
    )
