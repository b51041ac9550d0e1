"""The models compute the same outputs as the PVTs of `transformers` and `timm` with the same weights."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import Tensor, nn

from benchmarks.textbook import Textbook
from pvt_det.models import create_model
from pvt_det.models.variants import VARIANTS

V1 = [name for name, row in VARIANTS.items() if row.family == "v1"]
V2 = [name for name, row in VARIANTS.items() if row.family == "v2"]


def random_model(name: str) -> nn.Module:
    """Build a model with weights large enough for every layer to affect the output."""
    with torch.device("meta"):
        model = create_model(name)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.05)
    return model.eval()


TRANSFORMERS_RULES = (
    (r"^(pos_embed)(\d)$", lambda m: f"patch_embeddings.{int(m[2]) - 1}.position_embeddings"),
    (r"^cls_token$", lambda m: "patch_embeddings.3.cls_token"),
    (r"^patch_embed(\d)\.proj", lambda m: f"patch_embeddings.{int(m[1]) - 1}.projection"),
    (r"^patch_embed(\d)\.norm", lambda m: f"patch_embeddings.{int(m[1]) - 1}.layer_norm"),
    (r"^block(\d)\.", lambda m: f"block.{int(m[1]) - 1}."),
    (r"\.norm(\d)\.", lambda m: f".layer_norm_{m[1]}."),
    (r"\.attn\.q\.", lambda m: ".attention.self.query."),
    (r"\.attn\.sr\.", lambda m: ".attention.self.sequence_reduction."),
    (r"\.attn\.norm\.", lambda m: ".attention.self.layer_norm."),
    (r"\.attn\.proj\.", lambda m: ".attention.output.dense."),
    (r"\.mlp\.fc(\d)\.", lambda m: f".mlp.dense{m[1]}."),
    (r"^norm\.", lambda m: "layer_norm."),
)


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    mapped = {}
    for key, tensor in state.items():
        if key.startswith("head."):
            mapped[key.replace("head", "classifier")] = tensor
            continue
        for pattern, replacement in TRANSFORMERS_RULES:
            key = re.sub(pattern, replacement, key)
        if ".attn.kv." in key:
            for part, half in zip(("key", "value"), tensor.chunk(2), strict=True):
                mapped["pvt.encoder." + key.replace(".attn.kv.", f".attention.self.{part}.")] = half
        else:
            mapped["pvt.encoder." + key] = tensor
    return mapped


@pytest.mark.parametrize("name", V1)
def test_logits_match_transformers(name):
    transformers = pytest.importorskip("transformers")
    ours = random_model(name)
    config = transformers.PvtConfig(depths=list(VARIANTS[name].depths), num_labels=1000)
    with torch.device("meta"):
        theirs = transformers.PvtForImageClassification(config).eval()
    theirs.load_state_dict(to_transformers(ours.state_dict()), assign=True)
    # transformers uses the same epsilon for all norms. The published code uses two.
    for key, module in theirs.named_modules():
        if isinstance(module, nn.LayerNorm) and re.search(r"patch_embeddings|attention", key):
            module.eps = 1e-5
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        want = theirs(image).logits
        torch.testing.assert_close(ours(image), want, rtol=1e-4, atol=1e-4 * float(want.std()))


def to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    rules = (
        (r"^patch_embed1\.", lambda m: "patch_embed."),
        (r"^patch_embed(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.downsample."),
        (r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
        (r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
        (r"dwconv\.dwconv", lambda m: "dwconv"),
    )
    mapped = {}
    for key, tensor in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        mapped[key] = tensor
    return mapped


@pytest.mark.parametrize("name", V2)
def test_features_and_logits_match_timm(name):
    ours = random_model(name)
    with torch.device("meta"):
        theirs = timm.create_model(name).eval()
    theirs.load_state_dict(to_timm(ours.state_dict()), assign=True)
    image = torch.randn(1, 3, 160, 224)
    with torch.inference_mode():
        want, want_maps = theirs.forward_intermediates(image)
        logits = theirs.forward_head(want)
        torch.testing.assert_close(ours(image), logits, rtol=1e-4, atol=1e-4 * float(logits.std()))
        for got, want in zip(ours.forward_pyramid(image), want_maps, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.std()))


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_li"])
def test_outputs_and_gradients_match_the_textbook_implementation(name):
    ours = random_model(name).double()
    textbook = Textbook(ours)
    image = torch.randn(2, 3, 97, 165, dtype=torch.float64)
    with torch.no_grad():
        for got, want in zip(ours.forward_pyramid(image), textbook.forward_pyramid(image), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    weight = torch.randn(2, 1000)
    (ours(image) * weight).sum().backward()
    (textbook(image) * weight).sum().backward()
    for (key, got), want in zip(ours.named_parameters(), textbook.trunk.parameters(), strict=True):
        assert got.grad is not None, key
        assert want.grad is not None, key
        scale = float(want.grad.abs().max())
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-6, atol=1e-9 * scale, msg=lambda m, key=key: key + m)
