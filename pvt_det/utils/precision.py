"""Precision of the forward pass: the names used in configs and options, and their autocast contexts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:  # classification also uses this module and must not import Detectron2
    from detectron2.config import CfgNode

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# As named by `torch.cpu.get_capabilities` and by Linux: on x86, then on ARM.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
_CPU_INFO = Path("/proc/cpuinfo")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return an autocast context for a precision.

    Args:
        device: The device that the model is on.
        precision: A key of `PRECISIONS`. "fp32" disables autocast.
    """
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether bf16 is faster than fp32: on GPUs, and on CPUs with bf16 instructions.

    Other CPUs emulate bf16, which makes a training step about twice as slow as in fp32.

    Args:
        device: The device that the model runs on.
    """
    if device.type != "cpu":
        return True
    # oneDNN also reports bf16 as supported where it emulates it.
    return torch.backends.mkldnn.is_available() and any(_cpu_capabilities().get(name) for name in _BF16_INSTRUCTIONS)


def _cpu_capabilities() -> Mapping[str, Any]:
    """Return the instruction sets of this processor as keys. Older PyTorch does not know them, but Linux does."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    return dict.fromkeys(_CPU_INFO.read_text().split(), True) if _CPU_INFO.is_file() else {}


def inference_autocast(cfg: CfgNode) -> torch.autocast:
    """Return the autocast context for inference. Heads disable it where it would round boxes or scores.

    Args:
        cfg: A config with `MODEL.DEVICE` and `TEST.PRECISION`.
    """
    return autocast(torch.device(cfg.MODEL.DEVICE), cfg.TEST.PRECISION)
