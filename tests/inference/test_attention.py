"""Attention maps equal the weights used by the layers, and are drawn at the right position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pvt_det.errors import ConfigError
from pvt_det.inference.attention import Attention, compute_attention, draw_attention
from pvt_det.models import create_model
from pvt_det.utils.cli import run_cli
from tests.command_line import run_command

SIZE = (96, 160)


@pytest.fixture(scope="module", params=["pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_li"])
def model(request):
    torch.manual_seed(0)
    return create_model(request.param, num_classes=3).eval()


@pytest.fixture(scope="module")
def image():
    return torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("stage", "times"), [(1, 3), (3, 1), (4, 1)])
def test_weights_times_values_match_the_layer_output(model, image, stage, times):
    """Include a larger image, whose stage 1 is computed in chunks."""
    image = image.repeat(1, times, times)
    attention = compute_attention(model, image, stage=stage, block=-1)
    layer = getattr(model, f"block{stage}")[-1].attn
    values, outputs = [], []
    hooks = [
        layer.kv.register_forward_hook(lambda module, inputs, output: values.append(output[0])),
        layer.proj.register_forward_pre_hook(lambda module, inputs: outputs.append(inputs[0][0])),
    ]
    has_token = stage == 4 and hasattr(model, "cls_token")
    with torch.no_grad():
        x = image[None]
        for i in range(1, stage + 1):
            x = model(image[None]) if i == 4 else model.forward_stage(i, x)
    for hook in hooks:
        hook.remove()
    height, width = (side >> (stage + 1) for side in image.shape[1:])
    assert attention.queries == (height, width)
    assert attention.weights.shape[:2] == (layer.num_heads, height * width)
    weights, wanted = attention.weights, torch.cat(outputs)
    if has_token:
        # The remaining attention of each query belongs to the class token.
        weights = torch.cat([1 - weights.sum(2, keepdim=True), weights], dim=2)
        wanted = wanted[1:]
    v = values[0].chunk(2, dim=-1)[1].unflatten(-1, (layer.num_heads, -1)).transpose(0, 1)
    torch.testing.assert_close((weights @ v).transpose(0, 1).flatten(1), wanted, atol=1e-5, rtol=1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_class_token_exists_in_v1_classifiers_only(model, image):
    if not hasattr(model, "cls_token"):
        with pytest.raises(ConfigError, match="PVT v1 classifier only"):
            compute_attention(model, image, stage=4, block=-1, class_token=True)
        return
    attention = compute_attention(model, image, stage=4, block=-1, class_token=True)
    assert attention.queries is None
    assert tuple(attention.weights.shape) == (8, 1, 15)
    assert attention.weights.sum().item() < 8
    with pytest.raises(ConfigError, match="PVT v1 classifier only"):
        compute_attention(model, image, stage=3, block=-1, class_token=True)


def test_query_position_selects_a_row_of_the_weights():
    weights = torch.rand(2, 12, 6)
    attention = Attention(weights, (3, 4), (2, 3))
    assert torch.equal(attention.maps((0.99, 0.4)), weights[:, 7].reshape(2, 2, 3))
    assert torch.equal(attention.maps((1.0, 1.0)), weights[:, 11].reshape(2, 2, 3))
    assert torch.equal(attention.maps(), weights.mean(1).reshape(2, 2, 3))


@pytest.mark.parametrize(("stage", "block"), [(0, 0), (5, 0), (2, 2), (2, -3)])
def test_invalid_stage_or_block_is_refused(image, stage, block):
    with pytest.raises(ConfigError, match=r"[Ss]tage"):
        compute_attention(create_model("pvt_v2_b0"), image, stage=stage, block=block)


def test_heat_map_is_bright_where_attention_is_high(tmp_path):
    maps = torch.zeros(2, 2, 4)
    maps[0, 0, 0] = maps[1, 1, 3] = 1.0
    draw_attention(np.zeros((50, 100, 3), np.uint8), maps, [0, 1], tmp_path / "a/figure.png", at=(0.1, 0.1))
    figure = np.asarray(Image.open(tmp_path / "a/figure.png").convert("L")).astype(float)
    rows = np.flatnonzero((figure < 250).mean(1) > 0.5)
    # Three panels side by side: the query, then the two heads.
    _, first, second = np.array_split(figure[rows[0] : rows[-1]], 3, axis=1)

    def mean(panel, bottom, right):
        half, third = panel.shape[0] // 2, panel.shape[1] // 3
        return panel[half:, -third:-20].mean() if bottom and right else panel[:half, 20:third].mean()

    assert mean(first, False, False) > 10 + mean(first, True, True)
    assert mean(second, True, True) > 10 + mean(second, False, False)


def test_explain_command_on_detectors_and_classifiers(untrained_run, shapes, tmp_path, capsys):
    photo = str(shapes / "val/000002.png")
    output = ["--output", str(tmp_path / "maps.png")]
    detector = [photo, "--config-file", str(untrained_run), "--stage", "3", "--query", "20,30", *output]
    assert run_command("explain", detector) == 0
    assert "stage 3, last block: attention of 4x4 queries to 2x2 keys" in capsys.readouterr().out
    assert Image.open(tmp_path / "maps.png").width > 500
    weights = tmp_path / "cls.pth"
    torch.save(create_model("pvt_tiny", num_classes=5).state_dict(), weights)
    classifier = [photo, "--model", "pvt_tiny", "--weights", str(weights), "--query", "class", "--head", "2", *output]
    assert run_command("explain", classifier) == 0
    assert "attention of the class token to 7x7 keys" in capsys.readouterr().out
    for words, message in (
        ([*detector, "--query", "64,0"], "expected a pixel of the 64x64 image"),
        ([*detector, "--head", "5"], "expected 0 to 4, the heads"),
        ([*detector, "--query", "a"], "expected X,Y"),
        ([*detector, "--output", "a.jpg"], "ends in .png"),
    ):
        assert run_cli(lambda words=words: run_command("explain", words)) == 2
        assert message in capsys.readouterr().err
