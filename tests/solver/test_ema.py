import torch
from torch import nn

from pvt_det.solver.ema import build_ema


def test_weights_are_averaged_and_buffers_are_copied():
    model = nn.BatchNorm1d(3)
    decay = 0.6
    ema = build_ema(model, decay)
    expected = None
    for update in range(12):
        with torch.no_grad():
            model.weight.copy_(torch.randn(3))
            model.running_mean.fill_(update)
        ema.update_parameters(model)
        if expected is None:
            expected = model.weight.detach().clone()
        else:
            past = min(decay, (1 + update) / (10 + update))
            expected = past * expected + (1 - past) * model.weight.detach()
        torch.testing.assert_close(ema.module.weight.detach(), expected)
        assert torch.equal(ema.module.running_mean, model.running_mean)
    assert ema.n_averaged == 12
