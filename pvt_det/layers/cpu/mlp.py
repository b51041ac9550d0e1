"""Fast MLP of PVT v1 on a CPU: in chunks in training, with oneDNN's fused GELU in inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pvt_det.layers.cpu.chunked import accumulator, chunk_length
from pvt_det.layers.cpu.onednn import product, weight_gradient
from pvt_det.layers.cpu.switch import use_fast_cpu
from pvt_det.layers.linear import Linear

if TYPE_CHECKING:
    from pvt_det.layers.mlp import Mlp


def use_fast_mlp(mlp: Mlp, x: Tensor) -> bool:
    """Return whether `fast_mlp` supports `mlp(x)` and is faster.

    Args:
        mlp: The MLP to run.
        x: Tokens `N×L×C`.
    """
    if not (use_fast_cpu(x) and _is_plain(mlp.fc1)):
        return False
    if not torch.is_grad_enabled():
        return True
    is_large = x.shape[0] * x.shape[1] > chunk_length(mlp.fc1.out_features)
    return is_large and _is_plain(mlp.fc2) and _training_dtype(mlp, x) is not None


def fast_mlp(mlp: Mlp, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Compute `mlp(x)`. Call it only if `use_fast_mlp` is true.

    Args:
        mlp: The MLP to run.
        x: Tokens `N×L×C`.
        residual: Tokens `N×L×C` to add in inference, or None.

    Returns:
        Tokens `N×L×C`.
    """
    fc1, fc2 = mlp.fc1, mlp.fc2
    if not torch.is_grad_enabled():
        hidden = product(x, fc1.weight, fc1.bias, gelu=True)
        if residual is None:
            return fc2(hidden)
        return product(hidden, fc2.weight, fc2.bias, add=residual) if _is_plain(fc2) else fc2(hidden) + residual
    dtype = _training_dtype(mlp, x)
    parameters = (p.to(dtype) for p in (fc1.weight, fc1.bias, fc2.weight, fc2.bias))
    return ChunkedMlp.apply(x.flatten(0, 1).to(dtype), *parameters).unflatten(0, x.shape[:2])


def has_no_hooks(module: nn.Module) -> bool:
    """Return whether a module has no hooks, so that its computation can replace a call.

    Args:
        module: The module. Its submodules do not matter.
    """
    return not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _is_plain(layer: nn.Module) -> bool:
    """Return whether a layer is a `Linear` whose matrix product can replace a call."""
    return type(layer) is Linear and has_no_hooks(layer)


def _training_dtype(mlp: Mlp, x: Tensor) -> torch.dtype | None:
    """Return the dtype to train in, or None if the dtypes of `x` and the weights are not supported."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") if x.dtype != torch.float64 else None
    return x.dtype if x.dtype == mlp.fc1.weight.dtype else None


class ChunkedMlp(torch.autograd.Function):
    """`linear(gelu(linear(x, w1, b1)), w2, b2)` for training.

    Saves one hidden tensor instead of two, and recomputes GELU in the backward pass, chunk by chunk.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        """Compute the MLP.

        Args:
            ctx: Context of `torch.autograd.Function`.
            x: Tokens `M×C`.
            w1: Weight of the first layer, `H×C`.
            b1: Bias of the first layer, `H`.
            w2: Weight of the second layer, `C×H`.
            b2: Bias of the second layer, `C`.

        Returns:
            Tokens `M×C`.
        """
        length = chunk_length(w1.shape[0])
        out = x.new_empty(x.shape[0], w2.shape[0])
        hidden = []
        for x_chunk, out_chunk in zip(x.split(length), out.split(length), strict=True):
            hidden.append(product(x_chunk, w1, b1))
            out_chunk.copy_(product(F.gelu(hidden[-1]), w2, b2))
        ctx.save_for_backward(x, w1, w2, *hidden)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Compute the gradients of the input, the weights and the biases.

        Args:
            ctx: Context of `torch.autograd.Function`.
            grad: Gradient of the output, `M×C`.

        Returns:
            Gradients of `x`, `w1`, `b1`, `w2` and `b2`.
        """
        x, w1, w2, *hidden = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = torch.empty_like(x)
        grad_w1, grad_w2, grad_b1 = accumulator(w1), accumulator(w2), accumulator(w1[:, 0])
        # Use the chunks of the forward pass, because the number of threads may have changed since.
        lengths = [len(chunk) for chunk in hidden]
        for x_chunk, hidden_chunk, grad_chunk, grad_x_chunk in zip(
            x.split(lengths), hidden, grad.split(lengths), grad_x.split(lengths), strict=True
        ):
            grad_w2 += weight_gradient(grad_chunk, F.gelu(hidden_chunk))
            grad_hidden = torch.ops.aten.gelu_backward(product(grad_chunk, w2.t()), hidden_chunk)
            grad_w1 += weight_gradient(grad_hidden, x_chunk)
            grad_b1 += grad_hidden.sum(0)
            grad_x_chunk.copy_(product(grad_hidden, w1.t()))
        dtype = x.dtype
        return grad_x, grad_w1.to(dtype), grad_b1.to(dtype), grad_w2.to(dtype), grad.sum(0)
