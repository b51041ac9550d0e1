"""Fast forms of multi-head attention on a CPU: in chunks of queries, or as two plain matrix products."""

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

# Scores of one head from which chunks with oneDNN's products are faster on a CPU: in fp32 than PyTorch's fused kernel,
# in bf16 than plain products.
MANY_SCORES = {torch.bfloat16: 1 << 20} | ({torch.float32: 1 << 17} if HAS_ONEDNN else {})


def use_fast_attention(query: Tensor, key_value: Tensor) -> bool:
    """Whether `fast_attention` is faster than PyTorch's fused kernel, which is several times slower in bf16."""
    return use_fast_cpu(query) and (query.dtype == torch.bfloat16 or _has_many_scores(query, key_value))


def fast_attention(query: Tensor, key_value: Tensor, num_heads: int) -> Tensor:
    """Compute what `pvt_det.layers.attention.attend` computes.

    Args:
        query: `N×L×C`.
        key_value: `N×S×2C`, the channels of the keys before those of the values.
        num_heads: Number of heads; divides C.

    Returns:
        `N×L×C`, the heads side by side.
    """
    if _has_many_scores(query, key_value):
        return ChunkedAttention.apply(query, key_value, num_heads)
    q = query.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    k, v = key_value.unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return ((_scaled(q) @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)


def _has_many_scores(query: Tensor, key_value: Tensor) -> bool:
    return query.shape[1] * key_value.shape[1] >= MANY_SCORES.get(query.dtype, math.inf)


class ChunkedAttention(torch.autograd.Function):
    """Multi-head attention of `N×L×C` to `N×S×2C` in chunks of queries, whose scores are never kept.

    As in any attention in bf16 made of matrix products, scores are rounded to bf16 before the softmax.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key_value: Tensor, num_heads: int) -> Tensor:  # noqa: D102
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: D102
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
    """Write the gradients of one head of one sample, `L×d` and `S×d`, into the tensors given for them."""
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
    """Yield, for each sample and head of tensors `N×L×C`, their parts `L×(C/heads)`."""
    for sample in zip(*tokens, strict=True):
        yield from zip(*(t.unflatten(-1, (num_heads, -1)).unbind(1) for t in sample), strict=True)


def _keys_and_values(num_heads: int, key_value: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield, for each sample and head, the keys and the values, both `S×(C/heads)`."""
    return _heads(num_heads, *key_value.chunk(2, dim=-1))


def _scaled(tokens: Tensor) -> Tensor:
    """Multiply queries or keys `…×d` of one head by 1/√d, equation 1 of https://arxiv.org/abs/1706.03762."""
    return tokens * tokens.shape[-1] ** -0.5
