"""Exponential moving average of a model's weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

_Tensors = tuple[Tensor, ...] | list[Tensor]


def build_ema(model: nn.Module, decay: float) -> AveragedModel:
    """Build an average that `update_parameters(model)` moves towards the model's weights.

    After update n (from 0) the weight of the past is min(`decay`, (1 + n) / (10 + n)), the rule of TensorFlow's
    ExponentialMovingAverage with `num_updates`: without it, short runs would average the random start. Buffers are
    copied, not averaged.

    Args:
        model: The bare model, not wrapped for distributed training.
        decay: Weight of the past in the long run, in [0, 1).
    """

    def average(averages: _Tensors, weights: _Tensors, updates: Tensor | int) -> None:
        count = int(updates)
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averages, weights, updates)

    return AveragedModel(model, multi_avg_fn=average)
