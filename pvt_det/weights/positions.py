"""Fit position embeddings of one training size to a model of another."""

from __future__ import annotations

import re
from math import isqrt

import torch
from torch import Tensor

from pvt_det.layers.position import resize_position

_NAME = re.compile(r"(?:.*\.)?pos_embed([1-4])")
Grid = tuple[int, int]


def position_stage(name: str) -> int | None:
    """Stage 1 … 4 whose position embeddings have this name; None for any other tensor."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def fit_position(table: Tensor, wanted: Tensor, stage: int, grid: Grid | None, needs_slot: bool) -> Tensor | None:
    """Resize a file's position embeddings to a model's, bilinearly; the class token's slot stays as it is.

    Args:
        table: The file's, `1×L×C`, made for a square image. In stage 4 the class token's slot comes first, or is left
            out, as MMDetection does.
        wanted: The model's, `1×L'×C`. In stage 4 the slot comes first.
        stage: 1 … 4.
        grid: Height and width in tokens of the model's; square if None.
        needs_slot: Whether the model has a class token, so that the slot may not be made up.

    Returns:
        `1×L'×C`, or None where the file's embeddings cannot be made to fit.
    """
    if table.dim() != 3 or table.shape[::2] != wanted.shape[::2]:
        return None
    slots = 1 if stage == 4 else 0
    slot, tokens = table[:, :slots], table[:, slots:]
    if slots and _side(tokens) is None and not needs_slot:
        slot, tokens = table.new_zeros(table[:, :1].shape), table
    old, new = _side(tokens), grid or _side(wanted[:, slots:])
    if old is None or new is None:
        return None
    return torch.cat([slot, resize_position(tokens, old, new)], dim=1)


def _side(tokens: Tensor) -> Grid | None:
    side = isqrt(tokens.shape[1])
    return (side, side) if side > 0 and side * side == tokens.shape[1] else None
