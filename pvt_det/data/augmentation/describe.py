"""Describe augmentations as text that is the same in every process, to compare those of two runs."""

from __future__ import annotations

import hashlib
from enum import Enum
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

_LONGEST = 400
# Objects may refer to each other.
_DEPTH = 6
_OF_MODULES = frozenset(vars(nn.Module()))


def describe_augmentation(augmentation: Any) -> str:
    """Describe an augmentation by its class and all its parameters.

    Args:
        augmentation: An augmentation of Detectron2 or a transform of torchvision.

    Returns:
        The description, such as "RandomFlip(horizontal=True, prob=0.5, vertical=False)". The end of a very long one is
        replaced by a digest.
    """
    text = _describe(augmentation, _DEPTH)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… {_digest(text.encode())}"


def _describe(value: Any, depth: int) -> str:
    if value is None or isinstance(value, bool | int | float | str | bytes | np.generic):
        return repr(value)
    if isinstance(value, np.ndarray | torch.Tensor):
        array = np.ascontiguousarray(value if isinstance(value, np.ndarray) else value.detach().cpu().numpy())
        return f"{type(value).__name__}{array.shape} {_digest(array.tobytes())}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_describe(item, depth)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple | nn.ModuleList):
        return f"[{', '.join(_describe(item, depth) for item in value)}]"
    if isinstance(value, partial):
        return _describe([value.func, value.args, value.keywords], depth)
    if hasattr(value, "__qualname__"):
        # The names of two functions defined in functions, or of two lambdas, can be the same.
        is_local = isinstance(value, FunctionType) and "<" in value.__qualname__
        return f"{value.__module__}.{value.__qualname__}{f' {_digest(value.__code__.co_code)}' if is_local else ''}"
    if not depth or isinstance(value, Enum) or not hasattr(value, "__dict__"):
        return str(value) if isinstance(value, Enum) else type(value).__qualname__
    return f"{type(value).__qualname__}({', '.join(_parameters(value, depth - 1))})"


def _parameters(value: Any, depth: int) -> list[str]:
    shown = dict(vars(value))
    if isinstance(value, nn.Module):
        shown = {name: item for name, item in shown.items() if name not in _OF_MODULES}
        shown |= {**value._modules, **value._parameters, **value._buffers}
    return [f"{name}={_describe(shown[name], depth)}" for name in sorted(shown)]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
