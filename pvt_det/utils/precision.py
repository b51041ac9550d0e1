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


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether bf16 is faster than fp32: on GPUs, and on CPUs with AVX-512 BF16 or AMX instructions.

    Other CPUs emulate bf16, which makes a training step about twice as slow as in fp32.

    Args:
        device: The device that the model runs on.
    """
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def inference_autocast(cfg: CfgNode) -> torch.autocast:
    """Return the autocast context for inference. Heads disable it where it would round boxes or scores.

    Args:
        cfg: A config with `MODEL.DEVICE` and `TEST.PRECISION`.
    """
    return autocast(torch.device(cfg.MODEL.DEVICE), cfg.TEST.PRECISION)
