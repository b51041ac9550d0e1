"""Fast multi-head attention on a CPU: in chunks of queries, or as two plain matrix products."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pvt_det.layers.cpu.chunked import accumulator, chunk_length
from pvt_det.layers.cpu.onednn import HAS_ONEDNN, product, weight_gradient
from pvt_det.layers.cpu.switch import use_fast_cpu

# Number of scores per head from which chunks with oneDNN products are faster than PyTorch's fused kernel (fp32) or than
# plain matrix products (bf16).
CHUNK_THRESHOLDS = {torch.bfloat16: 1 << 20} | ({torch.float32: 1 << 17} if HAS_ONEDNN else {})


def use_fast_attention(query: Tensor, key_value: Tensor) -> bool:
    """Return whether `fast_attention` is faster than PyTorch's fused kernel.

    In bf16, it is several times as fast.

    Args:
        query: Queries `N×L×C`.
        key_value: Keys and values `N×S×2C`.
    """
    return use_fast_cpu(query) and (query.dtype == torch.bfloat16 or _use_chunks(query, key_value))


def fast_attention(query: Tensor, key_value: Tensor, num_heads: int) -> Tensor:
    """Compute the same as `pvt_det.layers.attention.attend`.

    Args:
        query: Queries `N×L×C`.
        key_value: Keys and values `N×S×2C`, concatenated along the channels.
        num_heads: Number of heads. Must divide C.

    Returns:
        Tokens `N×L×C`, with the heads concatenated along the channels.
    """
    if _use_chunks(query, key_value):
        return ChunkedAttention.apply(query, key_value, num_heads)
    q = query.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    k, v = key_value.unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return ((_scaled(q) @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)


def _use_chunks(query: Tensor, key_value: Tensor) -> bool:
    return query.shape[1] * key_value.shape[1] >= CHUNK_THRESHOLDS.get(query.dtype, math.inf)


class ChunkedAttention(torch.autograd.Function):
    """Multi-head attention in chunks of queries. Scores are recomputed in the backward pass.

    In bf16, scores are rounded to bf16 before the softmax, as in any attention built from matrix products.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key_value: Tensor, num_heads: int) -> Tensor:
        """Compute attention.

        Args:
            ctx: Context of `torch.autograd.Function`.
            query: Queries `N×L×C`.
            key_value: Keys and values `N×S×2C`, concatenated along the channels.
            num_heads: Number of heads. Must divide C.

        Returns:
            Tokens `N×L×C`, with the heads concatenated along the channels.
        """
        ctx.save_for_backward(query, key_value)
        ctx.num_heads = num_heads
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        length = chunk_length(key_value.shape[1])
        for (q, o), (k, v) in zip(_heads(num_heads, query, out), _keys_and_values(num_heads, key_value), strict=True):
            k, v_t = _scaled(k), v.t().contiguous()
            for q_chunk, o_chunk in zip(q.split(length), o.split(length), strict=True):
                o_chunk.copy_(product(product(q_chunk, k).softmax(-1), v_t))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Compute the gradients of queries, keys and values.

        Args:
            ctx: Context of `torch.autograd.Function`.
            grad: Gradient of the output, `N×L×C`.

        Returns:
            Gradients of `query` and `key_value`, and None for `num_heads`.
        """
        query, key_value = ctx.saved_tensors
        grad = grad.contiguous()
        grad_query, grad_key_value = torch.empty_like(query), torch.empty_like(key_value)
        for queries, keys_and_values, gradients in zip(
            _heads(ctx.num_heads, query, grad, grad_query),
            _keys_and_values(ctx.num_heads, key_value),
            _keys_and_values(ctx.num_heads, grad_key_value),
            strict=True,
        ):
            _head_backward(*queries, *keys_and_values, *gradients)
        return grad_query, grad_key_value, None


def _head_backward(
    query: Tensor, grad: Tensor, grad_query: Tensor, key: Tensor, value: Tensor, grad_key: Tensor, grad_value: Tensor
) -> None:
    """Write the gradients of one head of one sample to `grad_query`, `grad_key` and `grad_value`."""
    key, value = _scaled(key), value.contiguous()
    sum_key, sum_value = accumulator(key), accumulator(value)
    length = chunk_length(len(key))
    for q, g, grad_q in zip(query.split(length), grad.split(length), grad_query.split(length), strict=True):
        weights = product(q, key).softmax(-1)
        sum_value += weight_gradient(weights, g)
        scores = torch.ops.aten._softmax_backward_data(product(g, value), weights, -1, weights.dtype)
        grad_q.copy_(product(scores, key.t()))
        sum_key += weight_gradient(scores, q)
    grad_key.copy_(_scaled(sum_key))
    grad_value.copy_(sum_value)


def _heads(num_heads: int, *tokens: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the slices `L×(C/heads)` of tensors `N×L×C` for each sample and head."""
    for sample in zip(*tokens, strict=True):
        yield from zip(*(t.unflatten(-1, (num_heads, -1)).unbind(1) for t in sample), strict=True)


def _keys_and_values(num_heads: int, key_value: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the keys and the values, both `S×(C/heads)`, for each sample and head."""
    return _heads(num_heads, *key_value.chunk(2, dim=-1))


def _scaled(tokens: Tensor) -> Tensor:
    """Scale queries or keys `…×d` by 1/√d (equation 1 of https://arxiv.org/abs/1706.03762)."""
    return tokens * tokens.shape[-1] ** -0.5
