"""Every key layout is translated exactly: the original models and ours compute the same outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import timm
import torch
from torch import Tensor, nn

from pvt_det.errors import CheckpointError
from pvt_det.models import create_model
from pvt_det.models.variants import VARIANTS
from pvt_det.weights.dialects import DETECTORS, TRUNKS
from pvt_det.weights.translate import OPS, translate

CLASSES = 7
IMAGE = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
SQUARE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


@torch.no_grad()
def scramble(model: nn.Module) -> nn.Module:
    """Fill every tensor with different random values, so that mixed-up tensors are detected."""
    generator = torch.Generator().manual_seed(2)
    for t in model.state_dict().values():
        if t.is_floating_point():
            t.copy_(0.05 * torch.randn(t.shape, generator=generator) + (1.0 if t.dim() == 1 else 0.0))
    return model.eval()


def ours(name: str, tensors: Mapping[str, Tensor], dialect: str, img_size: int = 224) -> nn.Module:
    translation = translate(tensors, "x.pth")
    assert translation.dialect == dialect
    assert not translation.unknown
    model = create_model(name, num_classes=CLASSES, img_size=img_size)
    model.load_state_dict(translation.tensors, strict=True)
    return model.eval()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name, row in VARIANTS.items() if row.family == "v2"])
def test_timm_names_and_shapes_of_all_variants(name: str) -> None:
    theirs = timm.create_model(name)
    with torch.device("meta"):
        model = create_model(name)
    translation = translate(theirs.state_dict(), "x.pth")
    assert {k: v.shape for k, v in translation.tensors.items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_v2_b2_li"])
@torch.no_grad()
def test_timm(name: str) -> None:
    theirs = scramble(timm.create_model(name, num_classes=CLASSES))
    model = ours(name, theirs.state_dict(), "timm PVT v2")
    close(model(IMAGE), theirs(IMAGE))
    for a, b in zip(
        model.forward_pyramid(IMAGE), theirs.forward_intermediates(IMAGE, intermediates_only=True), strict=True
    ):
        close(a, b)


@torch.no_grad()
def test_transformers_v1(transformers):
    config = transformers.PvtConfig(image_size=64, depths=[2, 2, 2, 2], num_labels=CLASSES)
    theirs = scramble(transformers.PvtForImageClassification(config))
    model = ours("pvt_tiny", theirs.state_dict(), "transformers PVT", img_size=64)
    close(model(SQUARE), theirs(SQUARE).logits)


@pytest.mark.parametrize(("name", "linear"), [("pvt_v2_b0", False), ("pvt_v2_b2_li", True)])
@torch.no_grad()
def test_transformers_v2(transformers, name: str, linear: bool) -> None:
    row = VARIANTS[name]
    config = transformers.PvtV2Config(
        hidden_sizes=list(row.embed_dims),
        depths=list(row.depths),
        mlp_ratios=list(row.mlp_ratios),
        linear_attention=linear,
        num_labels=CLASSES,
    )
    theirs = scramble(transformers.PvtV2ForImageClassification(config))
    model = ours(name, theirs.state_dict(), "transformers PVT v2")
    close(model(IMAGE), theirs(IMAGE).logits)


def test_transformers_trunk_without_prefix(transformers):
    theirs = transformers.PvtV2Model(transformers.PvtV2Config())
    translation = translate(theirs.state_dict(), "x.pth")
    assert translation.tensors.keys() == create_model("pvt_v2_b0", num_classes=0).state_dict().keys()


# The layout of OpenMixup, which is not installed for tests, written from its source code.
OPENMIXUP = (
    (r"patch_embed(\d)\.proj\.", r"patch_embed\1.projection."),
    (r"^block(\d)\.", r"blocks\1."),
    (r"\.norm([12])\.", r".ln\1."),
    (r"\.mlp\.", ".ffn."),
    (r"^norm\.", "norm3."),
    (r"^(?!head)", "backbone."),
    (r"^head\.", "head.layers.head."),
)


def renamed(tensors: Mapping[str, Tensor], table: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    result = {}
    for key, value in tensors.items():
        for pattern, target in table:
            key = re.sub(pattern, target, key)
        result[key] = value
    return result


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_openmixup() -> None:
    state = scramble(create_model("pvt_tiny")).state_dict()
    there = renamed(state, OPENMIXUP)
    assert "backbone.blocks3.1.ln2.weight" in there
    assert "head.layers.head.bias" in there
    translation = translate(there, "x.pth")
    assert translation.dialect == "OpenMixup PVT"
    assert equal(translation.tensors, state)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "_orig_mod.", "module._orig_mod.", "module.backbone."])
def test_published_layout_with_prefixes(prefix: str) -> None:
    state = scramble(create_model("pvt_v2_b0", num_classes=0)).state_dict()
    translation = translate({prefix + k: v for k, v in state.items()}, "x.pth")
    assert translation.dialect == "published PVT"
    assert equal(translation.tensors, state)


def test_published_detector_has_mmdetection_heads_and_published_trunk() -> None:
    state = scramble(create_model("pvt_tiny", num_classes=0)).state_dict()
    heads = {
        "neck.lateral_convs.0.conv.weight": torch.randn(256, 128, 1, 1),
        "neck.fpn_convs.3.conv.bias": torch.randn(256),
        "bbox_head.cls_convs.2.conv.weight": torch.randn(256, 256, 3, 3),
        "bbox_head.retina_cls.weight": torch.randn(720, 256, 3, 3),
    }
    translation = translate({f"backbone.{k}": v for k, v in state.items()} | heads, "x.pth")
    assert translation.dialect == "MMDetection RetinaNet, published PVT"
    assert translation.is_detector
    assert not translation.unknown
    expected = {f"backbone.bottom_up.{k}": v for k, v in state.items()} | {
        "backbone.fpn_lateral3.weight": heads["neck.lateral_convs.0.conv.weight"],
        "backbone.top_block.p6.bias": heads["neck.fpn_convs.3.conv.bias"],
        "head.cls_subnet.4.weight": heads["bbox_head.cls_convs.2.conv.weight"],
        # Anchor 1 of MMDetection (ratio 0.5, second size) is anchor 3 of Detectron2.
        "head.cls_score.weight": translation.tensors["head.cls_score.weight"],
    }
    assert equal(translation.tensors, expected)
    moved = translation.tensors["head.cls_score.weight"]
    assert torch.equal(moved[3 * 80 : 4 * 80], heads["bbox_head.retina_cls.weight"][80:160])


@pytest.mark.parametrize("head", ["atss", "gfl"])
def test_published_detector_with_towers(head: str) -> None:
    state = scramble(create_model("pvt_v2_b0", num_classes=0)).state_dict()
    names = {
        "neck.fpn_convs.4.conv.weight": "backbone.top_block.p7.weight",
        "bbox_head.cls_convs.2.conv.weight": "head.cls_subnet.2.weight",
        "bbox_head.reg_convs.3.gn.bias": "head.bbox_subnet.3.norm.bias",
        f"bbox_head.{head}_cls.weight": "head.cls_score.weight",
        f"bbox_head.{head}_reg.bias": "head.bbox_pred.bias",
        "bbox_head.scales.4.scale": "head.scales.4",
    }
    names |= {"bbox_head.atss_centerness.bias": "head.centerness.bias"} if head == "atss" else {}
    tensors = {f"backbone.{k}": v for k, v in state.items()} | {name: torch.randn(5) for name in names}
    constant = {"bbox_head.integral.project": torch.arange(17).float()} if head == "gfl" else {}
    translation = translate(tensors | constant, "x.pth")
    assert translation.dialect == f"MMDetection {head.upper()}, published PVT"
    assert not translation.unknown
    expected = {f"backbone.bottom_up.{k}": v for k, v in state.items()}
    assert equal(translation.tensors, expected | {new: tensors[old] for old, new in names.items()})
    # Other values of the distribution would mean other boxes.
    other = translate(tensors | {name: 2 * value for name, value in constant.items()}, "x.pth")
    assert list(other.unknown) == list(constant)


def test_caffe2_resnet_matches_detectron2() -> None:
    from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names

    convs = ["conv1"] + [
        f"res{s}_{b}_branch{n}"
        for s, blocks in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True)
        for b in range(blocks)
        for n in ("2a", "2b", "2c", *(["1"] if b == 0 else []))
    ]
    norms = ["res_conv1_bn", *(f"{c}_bn" for c in convs[1:])]
    keys = [f"{c}_w" for c in convs] + [f"{n}_{p}" for n in norms for p in "sb"]
    translation = translate({k: torch.tensor(i) for i, k in enumerate(keys)}, "x.pth")
    assert translation.dialect == "Caffe2 ResNet"
    assert not translation.unknown
    assert {k: int(v) for k, v in translation.tensors.items()} == {
        k: i for i, k in enumerate(convert_basic_c2_names(keys))
    }


@pytest.mark.parametrize(
    ("name", "depth", "groups"), [("resnet18", 18, 1), ("resnet50", 50, 1), ("resnext50_32x4d", 50, 32)]
)
def test_torchvision_resnet(name: str, depth: int, groups: int) -> None:
    import torchvision
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import build_resnet_backbone

    from pvt_det.config import get_config

    theirs = scramble(getattr(torchvision.models, name)(weights=None))
    for k, v in theirs.state_dict().items():
        if k.endswith("running_var"):
            v.abs_().add_(0.5)
    cfg = get_config()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = groups, 64 if groups == 1 else 4
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    if depth == 18:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    model = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    translation = translate(theirs.state_dict(), "x.pth")
    assert translation.dialect == "torchvision ResNet"
    keys = model.state_dict().keys()
    assert {k for k in translation.tensors.keys() - keys if "num_batches" not in k} == {
        "stem.fc.weight",
        "stem.fc.bias",
    }
    model.load_state_dict({k: translation.tensors[k] for k in keys}, strict=True)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(IMAGE))))
        x = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        close(model(IMAGE)["res5"], x)


def test_half_of_a_joined_pair_is_unknown(transformers) -> None:
    theirs = transformers.PvtV2ForImageClassification(transformers.PvtV2Config()).state_dict()
    lost = "pvt_v2.encoder.layers.1.blocks.0.attention.key.weight"
    del theirs[lost]
    translation = translate(theirs, "x.pth")
    assert list(translation.unknown) == ["encoder.layers.1.blocks.0.attention.value.weight"]
    assert "block2.0.attn.kv.weight" not in translation.tensors


def test_tensor_with_impossible_shape_is_unknown() -> None:
    odd = {"layers.0.1.0.attn.attn.in_proj_weight": torch.tensor(1.0), "layers.0.1.0.norm1.weight": torch.ones(3)}
    translation = translate(odd, "x.pth")
    assert list(translation.unknown) == ["layers.0.1.0.attn.attn.in_proj_weight"]
    assert list(translation.tensors) == ["block1.0.norm1.weight"]


def test_unknown_layout() -> None:
    for names in (["layer.0.weight"], ["backbone.bottom_up.net.weight"], []):
        with pytest.raises(CheckpointError, match=rf"^x\.pth: its {len(names)} tensors match no known layout"):
            translate(dict.fromkeys(names, torch.zeros(1)), "x.pth")


@pytest.mark.parametrize("dialect", [*TRUNKS, *DETECTORS], ids=lambda d: d.name)
def test_tables_are_consistent(dialect: object) -> None:
    for rule in dialect.rules:
        assert rule.op in OPS
        for source in rule.sources:
            names = set(re.compile(source).groupindex)
            for target in rule.targets:
                assert set(re.findall(r"\{(\w+?)(?:[-+*]\d+)?\}", target)) <= names
