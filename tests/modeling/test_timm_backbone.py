"""Tests of the backbones of timm: shapes, parity with other implementations, weights, freezing, errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from detectron2.modeling import build_model
from safetensors.torch import save_file

from pvt_det.config import get_config, validate_config
from pvt_det.errors import CheckpointError, ConfigError
from pvt_det.modeling.backbone import create_backbone
from pvt_det.modeling.timm_backbone import TimmBackbone
from pvt_det.weights import load_pretrained

SMALL = "test_convnext"
SIZES = [(64, 96), (70, 101)]


def saved(model: torch.nn.Module, folder: Path) -> Path:
    """Give all weights random values, and save them."""
    generator = torch.Generator().manual_seed(0)
    state = {
        key: value + 0.1 * torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.mark.parametrize("name", [SMALL, "test_resnet", "pvt_v2_b0", "poolformer_s12"])
def test_maps_have_the_strides_of_a_pyramid_and_all_weights_are_used(name):
    backbone = TimmBackbone(name)
    maps = backbone(torch.randn(2, 3, 70, 101))
    assert [tuple(value.shape[2:]) for value in maps.values()] == [(24, 32), (12, 16), (6, 8), (3, 4)]
    for feature, spec in backbone.output_shape().items():
        assert (spec.channels, spec.stride) == (maps[feature].shape[1], 4 * 2 ** (int(feature[-1]) - 1))
    sum(value.square().mean() for value in maps.values()).backward()
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("size", SIZES)
def test_pvt_v2_through_timm_equals_ours(size, tmp_path):
    file = saved(timm.create_model("pvt_v2_b0"), tmp_path)
    ours, theirs = create_backbone("pvt_v2_b0").eval(), TimmBackbone("pvt_v2_b0").eval()
    for backbone in (ours, theirs):
        load_pretrained(backbone, file)
    height, width = (-side % 32 + side for side in size)
    image = torch.zeros(1, 3, height, width)
    image[:, :, : size[0], : size[1]] = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = ours(image), theirs(image[:, :, : size[0], : size[1]])
    for feature in expected:
        torch.testing.assert_close(found[feature], expected[feature], atol=1e-4, rtol=1e-4)


def from_torchvision(key: str) -> str:
    """Rename a key of torchvision's Swin."""
    if found := re.match(r"features\.0\.(\d)\.(.+)", key):
        return f"patch_embed.{'proj' if found[1] == '0' else 'norm'}.{found[2]}"
    number, rest = re.match(r"features\.(\d)\.(.+)", key).groups()
    stage, is_merging = divmod(int(number) - 1, 2)
    if is_merging:
        return f"layers.{stage + 1}.downsample.{rest}"
    return f"layers.{stage}.blocks.{rest.replace('mlp.0', 'mlp.fc1').replace('mlp.3', 'mlp.fc2')}"


def test_swin_equals_torchvision():
    """Windows are shifted in the last stage too, although its map has the size of one window at 224 pixels.

    At 448 pixels, the sides of all maps are multiples of the window. Otherwise, timm shifts the windows before it pads.
    """
    swin = torchvision.models.swin_t().eval()
    backbone = TimmBackbone("swin_tiny_patch4_window7_224").eval()
    state = {from_torchvision(key): value for key, value in swin.state_dict().items() if key.startswith("features")}
    index = "relative_position_index"
    missing, unexpected = backbone.timm.load_state_dict(
        {k: v for k, v in state.items() if index not in k}, strict=False
    )
    assert (missing, unexpected) == ([], [])
    x = torch.randn(1, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = backbone(x)
        for number, layer in enumerate(swin.features):
            x = layer(x)
            if number % 2:
                expected = x.permute(0, 3, 1, 2)
                torch.testing.assert_close(found[f"stage{number // 2 + 1}"], expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["LN", "GN"])
def test_output_norms(kind):
    maps = TimmBackbone(SMALL, output_norm=kind, out_features=["stage2", "stage4"])(torch.randn(1, 3, 64, 96))
    assert list(maps) == ["stage2", "stage4"]
    axes = 1 if kind == "LN" else (1, 2, 3)
    for value in maps.values():
        torch.testing.assert_close(value.mean(axes), torch.zeros_like(value.mean(axes)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [SMALL, "poolformer_s12"])
def test_frozen_stages_do_not_change(name):
    backbone = TimmBackbone(name, frozen_stages=2, drop_path_rate=0.5).train()
    frozen = [key for key, parameter in backbone.timm.named_parameters() if not parameter.requires_grad]
    assert frozen == [key for key, _ in backbone.timm.named_parameters() if re.match(r"stem|stages\.[01]\.", key)]
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(backbone(x)["stage2"], backbone(x)["stage2"])
    assert not torch.equal(backbone(x)["stage4"], backbone(x)["stage4"])


def retinanet(*, output_norm: str = "") -> torch.nn.Module:
    cfg = get_config()
    cfg.MODEL.META_ARCHITECTURE = "PVTRetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_timm_fpn_backbone"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.TIMM.NAME = SMALL
    cfg.MODEL.TIMM.OUTPUT_NORM = output_norm
    cfg.MODEL.TIMM.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["stage2", "stage3", "stage4"]
    return build_model(cfg)


def test_classifier_weights_load_into_a_detector_and_every_tensor_is_accounted_for(tmp_path):
    classifier = timm.create_model(SMALL)
    file, detector = saved(classifier, tmp_path), retinanet(output_norm="LN")
    report = load_pretrained(detector, file)
    trunk = detector.backbone.bottom_up
    assert len(report.loaded) + len(report.dropped["classifier"]) == len(classifier.state_dict()) == report.total
    assert len(report.dropped["classifier"]) == len(trunk.unused) > 0
    assert len(report.new["output norms"]) == 6
    assert "fpn" in report.new
    key = "stages.0.blocks.0.conv_dw.weight"
    saved_detector = saved(detector, tmp_path)
    again = retinanet(output_norm="LN")
    report = load_pretrained(again, saved_detector)
    report.require_whole()
    assert not torch.equal(again.backbone.bottom_up.timm.state_dict()[key], trunk.timm.state_dict()[key])


def test_weights_of_another_model_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"does not fit the model|cannot convert"):
        load_pretrained(TimmBackbone(SMALL), saved(timm.create_model("test_resnet"), tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "test_convnxt"}, r"has no such model\. Did you mean test_convnext"),
        ({"name": "test_vit"}, "expected a pyramid with maps of strides 4, 8, 16 and 32"),
        ({"name": "maxvit_tiny_tf_224"}, "takes images of any size"),
        ({"name": "densenet121", "drop_path_rate": 0.1}, r"Set MODEL\.TIMM\.DROP_PATH_RATE 0\.0"),
    ],
)
def test_unusable_models_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        TimmBackbone(**arguments)


def test_name_is_required():
    cfg = get_config()
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    with pytest.raises(ConfigError, match=r"MODEL\.TIMM\.NAME"):
        validate_config(cfg)
