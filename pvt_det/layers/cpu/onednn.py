"""Matrix products on a CPU, by oneDNN in fp32 as well, and what follows them in the same call.

PyTorch leaves fp32 products to MKL, which on processors that are not Intel's uses half of their vector width. oneDNN,
which PyTorch ships for convolutions and bf16, is about twice as fast there, and as fast elsewhere. In bf16 PyTorch
first copies the bias into the whole output, and adds the product to that.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and platform.machine().lower() in ("x86_64", "amd64")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
_HAS_BF16 = HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
# Multiply-accumulates below which oneDNN's call costs more than it saves.
_SMALL = 1 << 21


def runs_on_cpu(tensor: Tensor) -> bool:
    """Whether what is done with a tensor now is done by a CPU, and not recorded: compiled, exported or traced.

    Recorded programs shall hold what runs everywhere.
    """
    return tensor.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.jit.is_tracing())


def product(a: Tensor, b: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """Compute `a bᵀ + bias`, or GELU of it, of `…×K` and `N×K`, giving `…×N`; under autocast in its format.

    Not for autograd, which `linear` is for.
    """
    dtype = _onednn_dtype(a, b, bias)
    if dtype is None:
        out = F.linear(a, b, bias)
        return F.gelu(out) if gelu else out
    a, b, bias = a.to(dtype), b.to(dtype), None if bias is None else bias.to(dtype)
    # Of a matrix that is neither contiguous nor the transpose of one, oneDNN makes a very slow product.
    b = b if b.is_contiguous() or b.t().is_contiguous() else b.contiguous()
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, *(("gelu", [], "none") if gelu else ("none", [], "")))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute what `F.linear` computes, forwards and backwards, of `…×K` with a weight `N×K`."""
    if _onednn_dtype(x, weight, bias) is None:
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)
    return product(x, weight, bias)


class Linear(nn.Linear):
    """PyTorch's linear layer, faster in fp32 on some CPUs."""

    def forward(self, input: Tensor) -> Tensor:
        """Transform `…×in_features` into `…×out_features`."""
        return linear(input, self.weight, self.bias)


def is_plain(layer: nn.Module) -> bool:
    """Whether calling a layer does no more than `linear`: nobody hooked on to it, or put another in its place."""
    return type(layer) is Linear and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)


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
    """Compute `gradᵀ x` of `M×N` and `M×K`, giving `N×K`."""
    # oneDNN is faster with the wider matrix second.
    if x.shape[1] > grad.shape[1]:
        return product(grad.t(), x.t())
    return product(x.t(), grad.t()).t()


def _onednn_dtype(a: Tensor, b: Tensor, bias: Tensor | None) -> torch.dtype | None:
    """The number format of a product that is better made by a call of oneDNN; None for the others."""
    if not (HAS_ONEDNN and runs_on_cpu(a) and b.device.type == "cpu" and torch.backends.mkldnn.enabled):
        return None
    if a.numel() * b.shape[0] < _SMALL:
        return None
    formats = (torch.float32, torch.bfloat16)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu") if a.dtype in formats and b.dtype in formats else None
    else:
        dtype = a.dtype if a.dtype == b.dtype else None
    # In bf16 PyTorch's own product is oneDNN's already, which a bias spoils a little, and a graph of our own more.
    in_bf16 = dtype == torch.bfloat16 and _HAS_BF16 and bias is not None and not torch.is_grad_enabled()
    return dtype if dtype == torch.float32 or in_bf16 else None
