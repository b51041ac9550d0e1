"""Decide what to train: the model, its initial weights and the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pvt_det.errors import CheckpointError
from pvt_det.inspection.backbones import Backbone
from pvt_det.inspection.request import BATCHES, Request
from pvt_det.weights.source import locate


@dataclass(frozen=True)
class Plan:
    """What to train, on which device and from which weights.

    Attributes:
        task: "semantic" or one of `pvt_det.inspection.tasks.TASKS`.
        backbone: The backbone. It changes no other setting.
        weights: Value of MODEL.WEIGHTS. "" trains from random weights.
        weights_reason: Why `weights` is "". Not used otherwise.
        on_cpu: Whether to train on a CPU instead of GPUs.
        batch: Number of images per iteration.
        on_error: Value of DATASETS.ON_ERROR.
        allow_outside: Value of DATASETS.ALLOW_OUTSIDE.
    """

    task: str
    backbone: Backbone
    weights: str
    weights_reason: str
    on_cpu: bool
    batch: int
    on_error: str
    allow_outside: bool


def make_plan(request: Request, task: str, backbone: Backbone, note: Callable[[str], object]) -> Plan:
    """Decide what to train.

    Args:
        request: What the user asked for.
        task: The task.
        backbone: The backbone.
        note: Called with a sentence if weights could not be downloaded.
    """
    on_cpu = (request.device or ("gpu" if torch.cuda.is_available() else "cpu")) == "cpu"
    weights, reason = _weights(request.weights, backbone, note)
    return Plan(
        task=task,
        backbone=backbone,
        weights=weights,
        weights_reason=reason,
        on_cpu=on_cpu,
        batch=request.batch or BATCHES["cpu" if on_cpu else "gpu"],
        on_error=request.on_error,
        allow_outside=request.allow_outside,
    )


def _weights(given: str | None, backbone: Backbone, note: Callable[[str], object]) -> tuple[str, str]:
    """Return `MODEL.WEIGHTS`, and the reason if it is "".

    Default weights that cannot be downloaded must not keep the user from training.
    """
    if given:
        return ("", "--weights none") if given == "none" else (given, "")
    try:
        locate(backbone.weights)
    except CheckpointError as error:
        note(f"The config starts from random weights: {error}")
        return "", f"{backbone.weights} could not be downloaded"
    return backbone.weights, ""
