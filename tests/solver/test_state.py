"""An optimizer loads its own state and refuses others."""

import pytest
import torch

from pvt_det.errors import CheckpointError
from pvt_det.solver.state import load_optimizer


def optimizer_of(size: int, kind: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    parameter = torch.nn.Parameter(torch.ones(size, 3))
    optimizer = kind([parameter], lr=0.1, **{"momentum": 0.9} if kind is torch.optim.SGD else {})
    parameter.sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_state_with_different_shapes_is_refused(kind):
    """PyTorch's fused kernel would write past the end of the smaller tensor."""
    saved = optimizer_of(4, kind).state_dict()
    same, other = optimizer_of(4, kind), optimizer_of(400, kind)
    load_optimizer(same, saved)
    for name, value in saved["state"][0].items():
        assert torch.equal(next(iter(same.state.values()))[name], value)
    with pytest.raises(CheckpointError, match=r"has shape \(4, 3\), but the model's parameter has \(400, 3\)"):
        load_optimizer(other, saved)
    assert not other.state
