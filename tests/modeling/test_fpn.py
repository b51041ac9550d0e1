"""FPNs on PVT and ResNet, with P6 and P7 as published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_backbone

from pvt_det.config import load_config
from pvt_det.errors import ConfigError
from pvt_det.modeling.fpn import P6P7

CONFIGS = Path(__file__).parents[2] / "configs"


def build(name, *overrides):
    return build_backbone(load_config(CONFIGS / f"{name}.yaml", overrides))


@pytest.mark.parametrize(("name", "last"), [("retinanet_pvt_v2_b0", "stage4"), ("retinanet_R_18", "res5")])
@pytest.mark.parametrize("relu", [True, False])
def test_p6_is_computed_from_the_last_map_and_p7_from_p6(name, last, relu):
    backbone = build(name, "MODEL.FPN.P7_RELU", str(relu)).eval()
    image = torch.randn(1, 3, 160, 224)
    maps, bottom = backbone(image), backbone.bottom_up(image)
    state = backbone.state_dict()
    weights = [state[f"top_block.{level}.{kind}"] for level in ("p6", "p7") for kind in ("weight", "bias")]
    p6 = F.conv2d(bottom[last], weights[0], weights[1], stride=2, padding=1)
    p7 = F.conv2d(p6.clamp(min=0) if relu else p6, weights[2], weights[3], stride=2, padding=1)
    assert (p6 < 0).any()  # otherwise the ReLU has no effect
    torch.testing.assert_close(maps["p6"], p6)
    torch.testing.assert_close(maps["p7"], p7)


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("retinanet_pvt_tiny", {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}),
        ("mask_rcnn_pvt_v2_b0", {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}),
        ("retinanet_R_50", {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}),
    ],
)
def test_levels_and_keys(name, strides):
    backbone = build(name).eval()
    assert {level: shape.stride for level, shape in backbone.output_shape().items()} == strides
    assert backbone.size_divisibility == 32
    maps = backbone(torch.randn(1, 3, 64, 128))
    assert {k: tuple(v.shape) for k, v in maps.items()} == {
        level: (1, 256, -(-64 // stride), -(-128 // stride)) for level, stride in strides.items()
    }
    bottom = set(backbone.bottom_up.state_dict())
    assert {k.removeprefix("bottom_up.") for k in backbone.state_dict() if k.startswith("bottom_up.")} == bottom


def test_resnets_match_torchvision():
    """ResNet-18 has 11,166,912 convolution weights. Bottlenecks have their stride in the 3×3 convolution."""
    assert sum(p.numel() for p in build("retinanet_R_18").bottom_up.parameters()) == 11_166_912
    bottleneck = build("retinanet_R_50").bottom_up.res3[0]
    assert (bottleneck.conv1.stride, bottleneck.conv2.stride) == ((1, 1), (2, 2))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["MODEL.PVT.OUT_FEATURES", "['stage2', 'stage3']", "MODEL.FPN.IN_FEATURES", "['stage2', 'stage3']"], "stage4"),
        (["MODEL.FPN.IN_FEATURES", "['stage1', 'stage2']"], "stage2, stage3, stage4"),
        (["MODEL.FPN.IN_FEATURES", "[]"], "MODEL.FPN.IN_FEATURES"),
    ],
)
def test_missing_feature_maps_are_refused(overrides, expected):
    with pytest.raises(ConfigError, match=expected):
        build("retinanet_pvt_tiny", *overrides)


def test_gradients_of_p6_and_p7_are_complete_for_a_1x1_input():
    block = P6P7(32, 32, "stage4", relu=False)
    image = torch.randn(2, 32, 1, 1)

    def gradient(autocast):
        # Fill memory with NaN and free it. Uninitialized parts of a gradient would then be NaN.
        junk = [torch.full((32, 32, 3, 3), float("nan"), dtype=torch.bfloat16) for _ in range(4)]
        del junk
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            maps = block(image)
        sum(level.float().square().sum() for level in maps).backward()
        return [block.p6.weight.grad.clone(), block.p7.weight.grad.clone()]

    torch.testing.assert_close(gradient(autocast=True), gradient(autocast=False))
