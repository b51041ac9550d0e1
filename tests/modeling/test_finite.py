"""The check for finite outputs works with any memory layout."""

from __future__ import annotations

import pytest
import torch

from pvt_det.errors import NumericError
from pvt_det.modeling.finite import require_finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_single_non_finite_value_is_found(value, memory):
    outputs = torch.randn(2, 5, 3, 4).contiguous(memory_format=memory)
    others = [torch.zeros(0, 4), torch.tensor(1.0), torch.ones(3).expand(2, 3), outputs[:, ::2]]
    require_finite([*others, outputs], "scores")
    outputs[1, 3, 2, 1] = value
    require_finite(others, "scores")
    with pytest.raises(NumericError, match="gives scores that are NaN or infinite"):
        require_finite([*others, outputs], "scores")
