"""The models compute the same outputs as the published code.

`tests/golden/pvt_reference.json` contains samples of the outputs of the published code with reproducible weights and
images, which this test generates again.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pvt_det.models import create_model

RECORDS = json.loads((Path(__file__).parents[1] / "golden" / "pvt_reference.json").read_text())


def reference_tensor(key: str, shape: torch.Size) -> Tensor:
    v = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if v.dim() >= 2 and not key.startswith(("pos_embed", "cls_token")):
        return v / v[0].numel() ** 0.5
    return 1 + 0.1 * v if v.dim() == 1 and key.endswith("weight") else 0.02 * v


def load_reference_weights(model: nn.Module) -> nn.Module:
    model.load_state_dict({key: reference_tensor(key, t.shape) for key, t in model.state_dict().items()})
    return model.eval()


def reference_image(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height * 10007 + width))


def assert_matches(actual: Tensor, record: dict, tolerance: float = 1e-4) -> None:
    """Compare shape, mean, standard deviation and 32 samples. Errors are relative to the standard deviation."""
    assert list(actual.shape) == record["shape"]
    n = actual.numel()
    samples = actual.reshape(-1)[[(j * n) // 32 for j in range(32)]]
    got = torch.cat([actual.mean()[None], actual.std()[None], samples]).double()
    want = torch.tensor([record["mean"], record["std"], *record["samples"]], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * record["std"])


CASES = [(name, tuple(case["size"]), case) for name, record in RECORDS.items() for case in record["cases"]]


@pytest.mark.parametrize(("name", "size", "case"), CASES, ids=[f"{name}-{h}x{w}" for name, (h, w), _ in CASES])
def test_pyramid_and_logits_match_the_published_code(name, size, case):
    model = load_reference_weights(create_model(name))
    image = reference_image(*size)
    with torch.inference_mode():
        for actual, record in zip(model.forward_pyramid(image), case["pyramid"], strict=True):
            assert_matches(actual, record)
        if "logits" in case:
            assert_matches(model(image), case["logits"])
