"""Work on a band of tokens at a time, for a CPU.

There most time beyond the matrix products goes to moving the large tensors inside of MLPs and attention between memory
and cache; those of a band stay in cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pvt_det.layers.cpu.onednn import product, weight_gradient

# Hidden values or scores that one thread works on at a time: 4 MB in fp32, a share of the last-level cache.
BAND_VALUES = 1 << 20


def band_length(hidden: int, itemsize: int = 4) -> int:
    """Number of tokens in a band, where each has so many hidden channels or scores of so many bytes."""
    return max(1, torch.get_num_threads() * BAND_VALUES * 4 // (hidden * itemsize))


class BandedMlp(torch.autograd.Function):
    """`linear(gelu(linear(x, w1, b1)), w2, b2)` of `M×C`, in training; keeps one hidden tensor instead of two.

    What GELU gives is computed again in the backward pass, band by band.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:  # noqa: D102
        length = band_length(w1.shape[0])
        out = x.new_empty(x.shape[0], w2.shape[0])
        hidden = []
        for x_band, out_band in zip(x.split(length), out.split(length), strict=True):
            hidden.append(product(x_band, w1, b1))
            out_band.copy_(product(F.gelu(hidden[-1]), w2, b2))
        ctx.save_for_backward(x, w1, w2, *hidden)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        x, w1, w2, *hidden = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = torch.empty_like(x)
        grad_w1, grad_w2, grad_b1 = _zeros_like(w1), _zeros_like(w2), _zeros_like(w1[:, 0])
        # The forward pass's bands: the number of threads may be another by now.
        lengths = [len(band) for band in hidden]
        for x_band, hidden_band, grad_band, grad_x_band in zip(
            x.split(lengths), hidden, grad.split(lengths), grad_x.split(lengths), strict=True
        ):
            grad_w2 += weight_gradient(grad_band, F.gelu(hidden_band))
            grad_hidden = torch.ops.aten.gelu_backward(product(grad_band, w2.t()), hidden_band)
            grad_w1 += weight_gradient(grad_hidden, x_band)
            grad_b1 += grad_hidden.sum(0)
            grad_x_band.copy_(product(grad_hidden, w1.t()))
        dtype = x.dtype
        return grad_x, grad_w1.to(dtype), grad_b1.to(dtype), grad_w2.to(dtype), grad.sum(0)


class BandedAttention(torch.autograd.Function):
    """Multi-head attention of `N×L×C` to `N×S×2C`; the scores of a band of queries are made when needed, never kept.

    As with any attention in bf16 that is made of matrix products, scores are rounded to bf16 before the softmax.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key_value: Tensor, num_heads: int) -> Tensor:  # noqa: D102
        ctx.save_for_backward(query, key_value)
        ctx.num_heads = num_heads
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        length = band_length(key_value.shape[1])
        for (q, o), (k, v) in zip(_heads(num_heads, query, out), _keys_and_values(num_heads, key_value), strict=True):
            k, v_t = scaled(k), v.t().contiguous()
            for q_band, o_band in zip(q.split(length), o.split(length), strict=True):
                o_band.copy_(product(product(q_band, k).softmax(-1), v_t))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: D102
        query, key_value = ctx.saved_tensors
        grad = grad.contiguous()
        grad_query, grad_key_value = torch.empty_like(query), torch.empty_like(key_value)
        length = band_length(key_value.shape[1])
        for (q, g, grad_q), (k, v), (grad_k, grad_v) in zip(
            _heads(ctx.num_heads, query, grad, grad_query),
            _keys_and_values(ctx.num_heads, key_value),
            _keys_and_values(ctx.num_heads, grad_key_value),
            strict=True,
        ):
            k, v = scaled(k), v.contiguous()
            sum_k, sum_v = _zeros_like(k), _zeros_like(v)
            for q_band, g_band, grad_q_band in zip(q.split(length), g.split(length), grad_q.split(length), strict=True):
                weights = product(q_band, k).softmax(-1)
                sum_v += weight_gradient(weights, g_band)
                scores = torch.ops.aten._softmax_backward_data(product(g_band, v), weights, -1, weights.dtype)
                grad_q_band.copy_(product(scores, k.t()))
                sum_k += weight_gradient(scores, q_band)
            grad_k.copy_(scaled(sum_k))
            grad_v.copy_(sum_v)
        return grad_query, grad_key_value, None


def _zeros_like(tensor: Tensor) -> Tensor:
    """A sum over bands to be, in fp32 at least: one of bf16 would lose digits."""
    return torch.zeros(tensor.shape, dtype=torch.promote_types(tensor.dtype, torch.float32))


def _heads(num_heads: int, *tokens: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """For each sample and head of tensors `N×L×C`, their parts `L×(C/heads)`."""
    for sample in zip(*tokens, strict=True):
        yield from zip(*(t.unflatten(-1, (num_heads, -1)).unbind(1) for t in sample), strict=True)


def _keys_and_values(num_heads: int, key_value: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """For each sample and head, keys and values, both `S×(C/heads)`."""
    return _heads(num_heads, *key_value.chunk(2, dim=-1))


def scaled(tokens: Tensor) -> Tensor:
    """Queries or keys of one head times 1/√d, the factor of equation 1 of https://arxiv.org/abs/1706.03762."""
    return tokens * tokens.shape[-1] ** -0.5
