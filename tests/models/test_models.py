"""Properties of all variants that do not depend on their weights."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pvt_det.errors import ConfigError
from pvt_det.layers.block import Block
from pvt_det.models import create_model, list_models
from pvt_det.models.trunk import drop_path_rates
from pvt_det.models.variants import VARIANTS

SMALLEST = ["pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_li"]


@pytest.fixture(scope="module")
def trunks():
    return {name: create_model(name, num_classes=0).eval() for name in SMALLEST}


def stage_sizes(family: str, height: int, width: int) -> list[tuple[int, int]]:
    sizes = []
    height, width = max(32, height), max(32, width)
    for stride in (4, 2, 2, 2):
        if family == "v2":
            height, width = height + stride - 1, width + stride - 1
        height, width = height // stride, width // stride
        sizes.append((height, width))
    return sizes


@settings(deadline=None, max_examples=12)
@given(
    name=st.sampled_from(SMALLEST),
    size=st.tuples(st.integers(1, 140), st.integers(1, 140)),
)
def test_any_image_size_works_and_batching_does_not_change_results(trunks, name, size):
    model = trunks[name]
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        maps = model.forward_pyramid(images)
        alone = model.forward_pyramid(images[1:])
    dims = model.embed_dims
    assert [tuple(m.shape) for m in maps] == [
        (2, dim, *grid) for dim, grid in zip(dims, stage_sizes(VARIANTS[name].family, *size), strict=True)
    ]
    for batched, single in zip(maps, alone, strict=True):
        torch.testing.assert_close(batched[1:], single, rtol=1e-4, atol=1e-4)
        assert batched.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(448, 448), (896, 224), (333, 517)])
def test_sizes_that_fail_in_the_published_code(trunks, size):
    # The published code compares the grid of every stage with that of stage 1.
    with torch.inference_mode():
        maps = trunks["pvt_tiny"].forward_pyramid(torch.randn(1, 3, *size))
    assert [tuple(m.shape[2:]) for m in maps] == stage_sizes("v1", *size)


def test_small_images_are_padded_with_zeros_at_the_bottom_and_right(trunks):
    image = torch.randn(1, 3, 20, 50)
    padded = torch.zeros(1, 3, 32, 50)
    padded[:, :, :20] = image
    with torch.inference_mode():
        for a, b in zip(*(trunks["pvt_tiny"].forward_pyramid(x) for x in (image, padded)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", SMALLEST)
def test_single_stages_compute_the_pyramid(trunks, name):
    model = trunks[name]
    x = image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        for i, want in enumerate(model.forward_pyramid(image), start=1):
            x = model.forward_stage(i, x)
            assert torch.equal(x, want)


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0"])
def test_stage_modules_contain_everything_but_the_classifier(name):
    model = create_model(name)
    staged = set()
    for i in range(1, 5):
        for part in model.stage_modules(i):
            own = {part} if isinstance(part, nn.Parameter) else set(part.parameters())
            assert not own & staged
            staged |= own
    remaining = {key for key, parameter in model.named_parameters() if parameter not in staged}
    classifier = {"head.weight", "head.bias"}
    assert remaining == (classifier | {"cls_token", "norm.weight", "norm.bias"} if name == "pvt_tiny" else classifier)


@pytest.mark.parametrize("name", SMALLEST)
def test_every_parameter_of_a_classifier_gets_a_gradient(name):
    model = create_model(name, num_classes=7, drop_path_rate=0.0)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    without_gradient = [key for key, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert without_gradient == []


@pytest.mark.parametrize("name", SMALLEST)
def test_checkpointing_only_changes_memory(name):
    plain = create_model(name, num_classes=0, drop_path_rate=0.3)
    checkpointed = copy.deepcopy(plain)
    checkpointed.checkpoint_stages = {1, 3}
    images = torch.randn(3, 3, 64, 64)
    runs = []
    for model in (plain, checkpointed):
        torch.manual_seed(5)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            maps = model.forward_pyramid(images)
        sum(m.sin().sum() for m in maps).backward()
        runs.append((maps, [p.grad for p in model.parameters()], sum(saved)))
    for a, b in zip(runs[0][0], runs[1][0], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(runs[0][1], runs[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert runs[1][2] < 0.8 * runs[0][2]


@pytest.mark.parametrize("name", SMALLEST)
def test_copies_and_pickles_compute_the_same(trunks, name):
    model = trunks[name]
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        want = model.forward_pyramid(image)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            for a, b in zip(copied.forward_pyramid(image), want, strict=True):
                assert torch.equal(a, b)


def test_optimizer_step_affects_the_next_evaluation():
    model = create_model("pvt_tiny", num_classes=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        model.forward_pyramid(image)
    sum(m.sum() for m in model.forward_pyramid(image)).backward()
    optimizer.step()
    fresh = create_model("pvt_tiny", num_classes=0)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        for a, b in zip(model.forward_pyramid(image), fresh.forward_pyramid(image), strict=True):
            assert torch.equal(a, b)


def test_position_embeddings_for_another_image_size():
    model = create_model("pvt_tiny", num_classes=0, img_size=(64, 96))
    assert [model.get_parameter(f"pos_embed{i}").shape[1] for i in range(1, 5)] == [16 * 24, 8 * 12, 4 * 6, 2 * 3 + 1]
    assert create_model("pvt_tiny", img_size=224).pos_embed4.shape == (1, 50, 512)


def test_trunk_is_the_classifier_without_its_last_layers():
    classifier, trunk = create_model("pvt_tiny"), create_model("pvt_tiny", num_classes=0)
    dropped = {"cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert {k: v.shape for k, v in trunk.state_dict().items()} == {
        k: v.shape for k, v in classifier.state_dict().items() if k not in dropped
    }
    v2 = create_model("pvt_v2_b0", num_classes=0)
    assert {"norm1.weight", "norm4.bias"} <= set(v2.state_dict())
    assert "head.weight" not in v2.state_dict()


def test_epsilons():
    for name in ("pvt_tiny", "pvt_v2_b2_li"):
        for key, module in create_model(name).named_modules():
            if isinstance(module, nn.LayerNorm):
                assert module.eps == (1e-5 if "patch_embed" in key or "attn" in key else 1e-6), key


def test_initial_values():
    v1, v2 = create_model("pvt_tiny"), create_model("pvt_v2_b0")
    for tensor in (v1.head.weight, v1.pos_embed1, v1.block3[0].mlp.fc1.weight, v2.block4[0].attn.kv.weight):
        assert float(tensor.detach().std()) == pytest.approx(0.02, rel=0.05)
    for layer in (v1.head, v1.block1[0].attn.q, v2.block1[0].mlp.fc2, v2.patch_embed2.proj):
        assert not layer.bias.any()
    # PyTorch's default for a convolution: uniform within 1/√fan_in.
    sr = v1.block1[0].attn.sr.weight.detach()
    assert float(sr.abs().max()) == pytest.approx(1 / (64 * 64) ** 0.5, rel=0.01)
    depthwise = v2.block3[0].mlp.dwconv.dwconv.weight.detach()
    assert float(depthwise.std()) == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    dense = v2.patch_embed4.proj.weight.detach()
    assert float(dense.std()) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.05)


def test_drop_path_rate_rises_linearly_over_all_blocks():
    assert drop_path_rates(0.3, (1, 2, 1)) == [[0.0], [pytest.approx(0.1), pytest.approx(0.2)], [pytest.approx(0.3)]]
    with torch.device("meta"):
        model = create_model("pvt_small", drop_path_rate=0.15)
    rates = [m.drop_path.p for m in model.modules() if isinstance(m, Block)]
    assert rates == [pytest.approx(0.15 * n / 15) for n in range(16)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "pvt_smal"}, "Did you mean pvt_small"),
        ({"name": "resnet50"}, "pvt_v2_b5"),
        ({"num_classes": -1}, "num_classes"),
        ({"num_classes": 2.5}, "num_classes"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"drop_path_rate": -0.1}, "drop_path_rate"),
        ({"img_size": 0}, "img_size"),
        ({"img_size": (224, -1)}, "img_size"),
        ({"img_size": (224, 224, 3)}, "img_size"),
        ({"img_size": 224.0}, "img_size"),
    ],
)
def test_invalid_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        create_model(**({"name": "pvt_tiny"} | arguments))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 64, 64, 3), (1, 3, 0, 64)])
def test_invalid_input_shapes_are_rejected(trunks, shape):
    with pytest.raises(ConfigError, match="shape"):
        trunks["pvt_tiny"].forward_pyramid(torch.zeros(shape))


def test_trunk_without_classifier_refuses_to_classify(trunks):
    with pytest.raises(ConfigError, match="num_classes=0"):
        trunks["pvt_tiny"](torch.zeros(1, 3, 64, 64))


def test_list_models():
    assert list_models() == list(VARIANTS)
    assert len(list_models()) == 11
