"""Matrix products on a CPU with oneDNN, which adds the bias and applies GELU in the same call.

PyTorch computes fp32 products with MKL, which uses only half of the vector width of non-Intel processors. oneDNN, which
PyTorch includes for convolutions and bf16, is about twice as fast on them, and as fast as MKL on Intel processors. In
bf16, PyTorch first copies the bias into the whole output and then adds the product.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pvt_det.layers.cpu.switch import use_fast_cpu

HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and platform.machine().lower() in ("x86_64", "amd64")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
_HAS_BF16 = HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
# In products with fewer multiply-accumulates, the overhead of calling oneDNN exceeds the time it saves.
_MIN_MACS = 1 << 21


def product(
    a: Tensor, b: Tensor, bias: Tensor | None = None, *, gelu: bool = False, add: Tensor | None = None
) -> Tensor:
    """Compute `a bᵀ + bias` without gradients. Under autocast, the product has the autocast dtype.

    Args:
        a: Matrix or batch of matrices, `…×K`.
        b: Matrix `M×K`.
        bias: Bias `M`, or None.
        gelu: Whether to apply GELU to the result. Not together with `add`.
        add: Matrix or batch of matrices `…×M` to add to the result, or None.

    Returns:
        Matrix or batch of matrices, `…×M`.
    """
    dtype = _onednn_dtype(a, b, bias)
    if dtype is None or (add is not None and add.dtype != dtype):
        out = F.linear(a, b, bias)
        out = F.gelu(out) if gelu else out
        return out if add is None else out + add
    a, b, bias = a.to(dtype), b.to(dtype), None if bias is None else bias.to(dtype)
    # oneDNN is very slow if a matrix is neither contiguous nor the transpose of a contiguous one.
    b = b if b.is_contiguous() or b.t().is_contiguous() else b.contiguous()
    if add is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(a, add, b, bias, "add")
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, *(("gelu", [], "none") if gelu else ("none", [], "")))


def use_fast_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether `fast_linear` is faster than `F.linear`.

    Args:
        x: Input `…×K`.
        weight: Weight `M×K`.
        bias: Bias `M`, or None.
    """
    return _onednn_dtype(x, weight, bias) is not None


def fast_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `F.linear(x, weight, bias)` with support for autograd.

    Args:
        x: Input `…×K`.
        weight: Weight `M×K`.
        bias: Bias `M`, or None.

    Returns:
        Output `…×M`.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)
    return product(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            product(grad, weight.t()) if needs_x else None,
            weight_gradient(rows, x.reshape(-1, x.shape[-1])) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Compute `gradᵀ x`, the gradient of a linear layer's weight.

    Args:
        grad: Gradient of the output, `L×M`.
        x: Input `L×K`.

    Returns:
        Gradient of the weight, `M×K`.
    """
    # oneDNN is faster if the wider matrix is the second one.
    if x.shape[1] > grad.shape[1]:
        return product(grad.t(), x.t())
    return product(x.t(), grad.t()).t()


def _onednn_dtype(a: Tensor, b: Tensor, bias: Tensor | None) -> torch.dtype | None:
    """Return the dtype in which oneDNN computes a product faster than PyTorch, or None if it does not."""
    if not (HAS_ONEDNN and use_fast_cpu(a) and b.device.type == "cpu" and torch.backends.mkldnn.enabled):
        return None
    if a.numel() * b.shape[0] < _MIN_MACS:
        return None
    supported = (torch.float32, torch.bfloat16)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu") if a.dtype in supported and b.dtype in supported else None
    else:
        dtype = a.dtype if a.dtype == b.dtype else None
    # In bf16, PyTorch already uses oneDNN. A direct call is faster only with a bias, and not if gradients are needed.
    in_bf16 = dtype == torch.bfloat16 and _HAS_BF16 and bias is not None and not torch.is_grad_enabled()
    return dtype if dtype == torch.float32 or in_bf16 else None
