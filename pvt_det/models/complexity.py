"""Count the parameters and the multiply-accumulates of a model, including those of attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from pvt_det.layers.cpu.onednn import HAS_ONEDNN


def count_parameters(module: nn.Module) -> int:
    """Count parameters, trainable and frozen. Shared parameters are counted once.

    Args:
        module: The module to count in.
    """
    return sum(parameter.numel() for parameter in module.parameters())


def count_gmacs(call: Callable[..., object], *inputs: object) -> float:
    """Count the multiply-accumulates of one forward pass, in units of 10⁹ ("GFLOPs" in papers).

    Counts linear layers, convolutions and both matrix products of attention. Ignores norms, activations and resizing.
    The forward pass is actually run.

    Args:
        call: A module, or a function such as `trunk.forward_pyramid`. A module runs in evaluation mode. Its mode is
            restored afterwards.
        *inputs: Arguments of `call`: a batch of images for a trunk, or a list of dictionaries for a Detectron2
            detector.
    """
    modes = {part: part.training for part in call.modules()} if isinstance(call, nn.Module) else {}
    # PyTorch's counter does not know the kernels that attention and linear layers use on a CPU.
    mapping: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    if HAS_ONEDNN:
        mapping[torch.ops.mkldnn._linear_pointwise] = _linear_flops
    try:
        for part in modes:
            part.training = False
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            call(*inputs)
    finally:
        for part, training in modes.items():
            part.training = training
    return counter.get_total_flops() / 2e9


def _attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: object, out_shape: object = None, **__: object
) -> int:
    return sdpa_flop_count(query, key, value)


def _linear_flops(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    return 2 * math.prod(x) * weight[0]
