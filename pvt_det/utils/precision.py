"""Precision of the forward pass: the names used in configs and options, and their autocast contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # classification also uses this module and must not import Detectron2
    from detectron2.config import CfgNode

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return an autocast context for a precision.

    Args:
        device: The device that the model is on.
        precision: A key of `PRECISIONS`. "fp32" disables autocast.
    """
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


def inference_autocast(cfg: CfgNode) -> torch.autocast:
    """Return the autocast context for inference. Heads disable it where it would round boxes or scores.

    Args:
        cfg: A config with `MODEL.DEVICE` and `TEST.PRECISION`.
    """
    return autocast(torch.device(cfg.MODEL.DEVICE), cfg.TEST.PRECISION)
