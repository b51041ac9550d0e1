"""Position embeddings are resized to the size of the map."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pvt_det.layers.position import resize_position

side = st.integers(1, 9)


def naive_resize(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Interpolate bilinearly between pixel centers, with repeated edges, in plain loops."""
    grid = table.reshape(*old, -1)
    out = torch.empty(*new, grid.shape[-1])
    for i in range(new[0]):
        for j in range(new[1]):
            y = max((i + 0.5) * old[0] / new[0] - 0.5, 0.0)
            x = max((j + 0.5) * old[1] / new[1] - 0.5, 0.0)
            y0, x0 = min(int(y), old[0] - 1), min(int(x), old[1] - 1)
            y1, x1 = min(y0 + 1, old[0] - 1), min(x0 + 1, old[1] - 1)
            top = grid[y0, x0] * (1 - (x - x0)) + grid[y0, x1] * (x - x0)
            bottom = grid[y1, x0] * (1 - (x - x0)) + grid[y1, x1] * (x - x0)
            out[i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
    return out.reshape(1, -1, grid.shape[-1])


@settings(deadline=None, max_examples=30)
@given(old=st.tuples(side, side), new=st.tuples(side, side))
def test_resize_is_bilinear_between_pixel_centers(old, new):
    table = torch.randn(1, old[0] * old[1], 3)
    torch.testing.assert_close(resize_position(table, old, new), naive_resize(table, old, new), rtol=1e-5, atol=1e-5)


def test_map_with_equal_area_but_different_shape_is_resized():
    table = torch.arange(12.0).reshape(1, 12, 1)
    assert not torch.equal(resize_position(table, (3, 4), (2, 6)), table)
    assert resize_position(table, (3, 4), (3, 4)) is table
