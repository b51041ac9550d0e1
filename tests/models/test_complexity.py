"""Parameter counts and costs match the published code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pvt_det.models import create_model, list_models
from pvt_det.models.complexity import count_gmacs, count_parameters

# name: (parameters of the classifier, tensors in its state dict, GMACs at 224², parameters of the trunk in millions)
PUBLISHED = {
    "pvt_tiny": (13_229_288, 161, 1.93, 12.71),
    "pvt_small": (24_485_864, 301, 3.82, 23.97),
    "pvt_medium": (44_208_104, 517, 6.66, 43.69),
    "pvt_large": (61_369_320, 751, 9.81, 60.85),
    "pvt_v2_b0": (3_666_760, 178, 0.57, 3.41),
    "pvt_v2_b1": (14_009_000, 178, 2.11, 13.50),
    "pvt_v2_b2": (25_362_856, 334, 4.03, 24.85),
    "pvt_v2_b2_li": (22_553_512, 346, 3.89, 22.04),
    "pvt_v2_b3": (45_238_696, 574, 6.90, 44.73),
    "pvt_v2_b4": (62_556_072, 834, 10.10, 62.04),
    "pvt_v2_b5": (81_956_008, 1054, 11.72, 81.44),
}


def test_every_variant_is_checked():
    assert list_models() == list(PUBLISHED)


@pytest.fixture(autouse=True)
def _on_meta():
    """Create models on the meta device, because weights and outputs do not matter here."""
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_size_and_cost(name):
    parameters, tensors, gmacs, trunk_millions = PUBLISHED[name]
    model = create_model(name)
    image = torch.zeros(1, 3, 224, 224)
    assert count_parameters(model) == parameters
    assert len(model.state_dict()) == tensors
    assert count_gmacs(model, image) == pytest.approx(gmacs, rel=0.01)
    assert round(count_parameters(create_model(name, num_classes=0)) / 1e6, 2) == trunk_millions


def test_cost_of_linear_attention_is_linear_in_the_area():
    model = create_model("pvt_v2_b2_li", num_classes=0)
    small, large = (count_gmacs(model.forward_pyramid, torch.zeros(1, 3, side, side)) for side in (256, 512))
    assert 3.8 < large / small < 4  # below 4, because a part of the cost does not depend on the size
    quadratic = create_model("pvt_v2_b2", num_classes=0)
    small, large = (count_gmacs(quadratic.forward_pyramid, torch.zeros(1, 3, side, side)) for side in (256, 512))
    assert large / small > 4.4


def test_count_gmacs_restores_modes_and_counts_convolutions():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Dropout())
    model[1].eval()
    # 5 output channels with 3·9 multiply-accumulates at each of 64 pixels.
    assert count_gmacs(model, torch.zeros(1, 3, 8, 8)) == 5 * 27 * 64 / 1e9
    assert model.training
    assert model[0].training
    assert not model[1].training


def test_cpu_attention_kernel_is_counted():
    cost = [count_gmacs(create_model("pvt_tiny", 0).forward_pyramid, torch.zeros(1, 3, 64, 64))]
    with torch.device("cpu"):
        cost.append(count_gmacs(create_model("pvt_tiny", 0).forward_pyramid, torch.zeros(1, 3, 64, 64)))
    assert cost[0] == cost[1]
