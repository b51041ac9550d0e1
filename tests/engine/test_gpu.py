"""Training, evaluation and resuming on a GPU, compared with the same run on the CPU."""

from __future__ import annotations

import json

import pytest
import torch

from pvt_det.api import train
from pvt_det.errors import Interrupted
from tests.tiny_runs import stop_in

GPU = "cuda"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("variant", "compiled"),
    [("pvt_v2_b0", ""), ("pvt_tiny", ""), ("pvt_tiny", "default"), ("pvt_tiny", "reduce-overhead")],
)
def test_bf16_run_matches_cpu_with_and_without_interruption(
    tmp_path, tiny_cfg, saved_weights, monkeypatch, variant, compiled
):
    def cfg(folder, **changes):
        settings = {
            "MODEL__PVT__VARIANT": variant,
            # Random numbers in the model differ between devices.
            "MODEL__PVT__DROP_PATH_RATE": 0.0,
            "SOLVER__MAX_ITER": 2,
            "SOLVER__STEPS": [],
            "TEST__VALIDATION_LOSS": True,
        }
        return tiny_cfg(tmp_path / folder, val=True, **settings | changes)

    on_gpu = {
        "MODEL__DEVICE": GPU,
        "MODEL__PVT__COMPILE": compiled,
        "SOLVER__AMP__ENABLED": True,
        "TEST__PRECISION": "bf16",
        "DATALOADER__NUM_WORKERS": 1,
    }
    train(cfg("cpu"))
    train(cfg("gpu", **on_gpu))
    with monkeypatch.context() as patch:
        stop_in(patch, 1)
        with pytest.raises(Interrupted):
            train(cfg("parts", **on_gpu))
    torch.cuda.manual_seed(99)
    train(cfg("parts", **on_gpu), resume=True)

    losses = [
        json.loads((tmp_path / folder / "results.json").read_text())["checkpoints"]["final"]["metrics"]["validation"][
            "total_loss"
        ]
        for folder in ("cpu", "gpu", "parts")
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=0.02)
    # Some GPU kernels are not deterministic.
    whole, parts = (saved_weights(tmp_path / folder / "model_final.pth") for folder in ("gpu", "parts"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_random_state_is_restored():
    from pvt_det.utils.rng import random_state, set_random_state

    torch.rand(3, device=GPU)
    state = random_state()
    drawn = torch.rand(3, device=GPU)
    set_random_state(state)
    assert torch.equal(torch.rand(3, device=GPU), drawn)
