"""Exponential moving average of a model's weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

_Tensors = tuple[Tensor, ...] | list[Tensor]


def build_ema(model: nn.Module, decay: float) -> AveragedModel:
    """Build an exponential moving average of a model, to be updated by `update_parameters(model)`.

    Update n (from 0) uses the decay min(`decay`, (1 + n) / (10 + n)), like TensorFlow's ExponentialMovingAverage with
    `num_updates`. Otherwise the average of a short run would contain too much of the random initialization. Buffers are
    copied, not averaged.

    Args:
        model: The model without any wrapper for distributed training.
        decay: Final weight of the previous average, in [0, 1).
    """

    def average(averages: _Tensors, weights: _Tensors, updates: Tensor | int) -> None:
        count = int(updates)
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averages, weights, updates)

    return AveragedModel(model, multi_avg_fn=average)
