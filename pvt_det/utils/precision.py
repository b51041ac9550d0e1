"""Number formats of the forward pass, by the names that configs and options have for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # classification, which takes its autocast from here too, does without Detectron2
    from detectron2.config import CfgNode

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to a format of `PRECISIONS`; "fp32" switches it off."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


def inference_autocast(cfg: CfgNode) -> torch.autocast:
    """Autocast as `TEST.PRECISION` says. Heads leave it where it would round boxes or scores."""
    return autocast(torch.device(cfg.MODEL.DEVICE), cfg.TEST.PRECISION)
