"""Matrix products on a CPU by oneDNN, which also adds the bias and applies GELU in the same call.

PyTorch leaves fp32 products to MKL, which uses only half of the vector width of processors not made by Intel. oneDNN,
which PyTorch ships for convolutions and bf16, is about twice as fast there, and as fast on Intel's. In bf16, PyTorch
first copies the bias into the whole output and then adds the product.
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
# Multiply-accumulates below which oneDNN's call costs more than it saves.
_SMALL = 1 << 21


def product(a: Tensor, b: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """Compute `a bᵀ + bias` without gradients; under autocast, in its dtype.

    Args:
        a: `…×K`.
        b: `M×K`.
        bias: `M`, or None.
        gelu: Whether to apply GELU to the result.

    Returns:
        `…×M`.
    """
    dtype = _onednn_dtype(a, b, bias)
    if dtype is None:
        out = F.linear(a, b, bias)
        return F.gelu(out) if gelu else out
    a, b, bias = a.to(dtype), b.to(dtype), None if bias is None else bias.to(dtype)
    # oneDNN is very slow where a matrix is neither contiguous nor the transpose of a contiguous one.
    b = b if b.is_contiguous() or b.t().is_contiguous() else b.contiguous()
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, *(("gelu", [], "none") if gelu else ("none", [], "")))


def use_fast_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `fast_linear` is faster than `F.linear`."""
    return _onednn_dtype(x, weight, bias) is not None


def fast_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `F.linear(x, weight, bias)` and its gradients, of `…×K` with a weight `M×K`."""
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
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            product(grad, weight.t()) if wants_x else None,
            weight_gradient(rows, x.reshape(-1, x.shape[-1])) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Compute `gradᵀ x` of `L×M` and `L×K`, giving `M×K`."""
    # oneDNN is faster when the wider matrix comes second.
    if x.shape[1] > grad.shape[1]:
        return product(grad.t(), x.t())
    return product(x.t(), grad.t()).t()


def _onednn_dtype(a: Tensor, b: Tensor, bias: Tensor | None) -> torch.dtype | None:
    """The dtype in which oneDNN computes a product faster than PyTorch does; None where it does not."""
    if not (HAS_ONEDNN and use_fast_cpu(a) and b.device.type == "cpu" and torch.backends.mkldnn.enabled):
        return None
    if a.numel() * b.shape[0] < _SMALL:
        return None
    supported = (torch.float32, torch.bfloat16)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu") if a.dtype in supported and b.dtype in supported else None
    else:
        dtype = a.dtype if a.dtype == b.dtype else None
    # In bf16, PyTorch's own product already is oneDNN's. It is slower with a bias only, and not where it has gradients.
    in_bf16 = dtype == torch.bfloat16 and _HAS_BF16 and bias is not None and not torch.is_grad_enabled()
    return dtype if dtype == torch.float32 or in_bf16 else None
