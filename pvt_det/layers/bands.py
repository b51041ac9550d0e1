"""Work on a band of tokens at a time, for a CPU.

There most time beyond the matrix products goes to moving the large hidden tensors of the MLPs between memory and cache;
those of a band stay in cache.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Hidden values of an MLP that one thread works on at a time: 4 MB in fp32, a share of the last-level cache.
BAND_VALUES = 1 << 20


def band_length(hidden: int) -> int:
    """Number of tokens in a band, for an MLP with so many hidden channels."""
    return max(1, torch.get_num_threads() * BAND_VALUES // hidden)


class BandedMlp(torch.autograd.Function):
    """`linear(gelu(linear(x, w1, b1)), w2, b2)` of `M×C`, in training; keeps one hidden tensor instead of two.

    What GELU gives is computed again in the backward pass, band by band.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:  # noqa: D102
        length = band_length(w1.shape[0])
        hidden, out = x.new_empty(x.shape[0], w1.shape[0]), x.new_empty(x.shape[0], w2.shape[0])
        for x_band, hidden_band, out_band in zip(*(t.split(length) for t in (x, hidden, out)), strict=True):
            torch.addmm(b1, x_band, w1.t(), out=hidden_band)
            torch.addmm(b2, F.gelu(hidden_band), w2.t(), out=out_band)
        ctx.save_for_backward(x, hidden, w1, w2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        x, hidden, w1, w2 = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x, grad_w1, grad_w2 = torch.empty_like(x), torch.zeros_like(w1), torch.zeros_like(w2)
        grad_b1 = x.new_zeros(w1.shape[0])
        bands = zip(*(t.split(band_length(w1.shape[0])) for t in (x, hidden, grad, grad_x)), strict=True)
        for x_band, hidden_band, grad_band, grad_x_band in bands:
            grad_w2.addmm_(grad_band.t(), F.gelu(hidden_band))
            grad_hidden = torch.ops.aten.gelu_backward(grad_band @ w2, hidden_band)
            grad_w1.addmm_(grad_hidden.t(), x_band)
            grad_b1 += grad_hidden.sum(0)
            torch.mm(grad_hidden, w1, out=grad_x_band)
        return grad_x, grad_w1, grad_b1, grad_w2, grad.sum(0)
