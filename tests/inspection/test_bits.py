"""Tests of the comparison of image hashes."""

from __future__ import annotations

import numpy as np
import pytest

from pvt_det.inspection.files import _count_bits


@pytest.mark.parametrize("version", [1, 2])
def test_bits_are_counted_with_numpy_1_and_2(monkeypatch, version):
    if version == 1:
        monkeypatch.delattr(np, "bitwise_count", raising=False)
    values = np.array([[0, 1], [2**64 - 1, 5]], np.uint64)
    assert _count_bits(values).tolist() == [1, 66]
