"""PVT backbones: feature maps by name, unchanged keys, frozen and checkpointed stages, compilation."""

from __future__ import annotations

import copy
import importlib
import pickle
import shutil

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, Backbone
from torch._inductor.cudagraph_trees import CUDAGraphTreeManager

import pvt_det.modeling.fpn
from pvt_det.config import get_config
from pvt_det.errors import ConfigError
from pvt_det.modeling.backbone import PVTBackbone, build_pvt_backbone, create_backbone
from pvt_det.modeling.registration import register
from pvt_det.models import create_model, list_models
from pvt_det.models.variants import STAGES
from tests.shallow import shallow

ONE_OF_EACH = ["pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_li"]


@pytest.mark.parametrize("variant", list_models())
def test_state_dict_matches_the_trunk(variant):
    with torch.device("meta"):
        ours = create_backbone(variant).state_dict()
        trunk = create_model(variant, num_classes=0).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in trunk.items()}
    assert list(ours) == list(trunk)


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_maps_match_the_trunk(variant):
    trunk = create_model(variant, num_classes=0).eval()
    backbone = create_backbone(variant).eval()
    backbone.load_state_dict(trunk.state_dict())
    image = torch.randn(2, 3, 75, 130)
    with torch.no_grad():
        maps, expected = backbone(image), trunk.forward_pyramid(image)
    assert list(maps) == list(STAGES)
    for ours, theirs in zip(maps.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_detectron2_backbone_interface():
    backbone = create_backbone("pvt_v2_b0", out_features=["stage2", "stage4"])
    assert isinstance(backbone, Backbone)
    assert backbone.size_divisibility == 32
    assert backbone.output_shape() == {
        "stage2": ShapeSpec(channels=64, stride=8),
        "stage4": ShapeSpec(channels=256, stride=32),
    }
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert {name: tuple(m.shape) for name, m in maps.items()} == {"stage2": (1, 64, 8, 12), "stage4": (1, 256, 2, 3)}


@pytest.mark.parametrize("variant", ONE_OF_EACH)
@pytest.mark.parametrize("size", [(1, 1), (31, 500), (224, 224), (97, 33)])
def test_any_image_size(variant, size):
    maps = create_backbone(variant).eval()(torch.randn(1, 3, *size))
    assert all(m.isfinite().all() and m.shape[-1] >= 1 for m in maps.values())


def test_stages_after_the_last_output_neither_run_nor_train():
    backbone = create_backbone("pvt_tiny", out_features=["stage2"])
    ran = []
    for name, module in backbone.named_children():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for _, block in module.named_children():
            block.register_forward_hook(lambda *_, name=name: ran.append(name))
    backbone(torch.randn(1, 3, 64, 64))["stage2"].sum().backward()
    assert {name[-1] for name in ran} == {"1", "2"}
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in backbone.named_parameters() if p.grad is not None}
    assert {name.split(".")[0][-1] for name in trained} == {"1", "2"}


@pytest.mark.parametrize("variant", ["pvt_tiny", "pvt_v2_b0"])
def test_frozen_stages_get_no_gradient_and_stay_in_evaluation_mode(variant):
    backbone = create_backbone(variant, frozen_stages=2, drop_path_rate=0.9)
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    parts = ("patch_embed1", "block1", "patch_embed2", "block2")
    parts += ("pos_embed1", "pos_embed2") if variant == "pvt_tiny" else ("norm1", "norm2")
    assert frozen == {name for name, _ in backbone.named_parameters() if name.split(".")[0] in parts}
    for model in (backbone, backbone.eval().train()):
        assert model.training
        assert not any(m.training for part in ("patch_embed1", "block2") for m in getattr(model, part).modules())
        assert all(m.training for m in model.block3.modules())
    image = torch.randn(1, 3, 64, 64)
    first, second = backbone(image), backbone(image)
    assert torch.equal(first["stage2"], second["stage2"])
    assert not torch.equal(first["stage4"], second["stage4"])


@pytest.mark.parametrize("variant", ["pvt_tiny", "pvt_v2_b0"])
def test_checkpointing_does_not_change_gradients(variant):
    image = torch.randn(1, 3, 64, 64)
    gradients = []
    for stages in ([], [1, 2, 3, 4]):
        torch.manual_seed(0)
        backbone = create_backbone(variant, drop_path_rate=0.3, checkpoint_stages=stages)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            loss = sum(m.square().mean() for m in backbone(image).values())
        loss.backward()
        gradients.append(([p.grad for p in backbone.parameters()], sum(saved)))
    (plain, plain_size), (checkpointed, checkpointed_size) = gradients
    torch.testing.assert_close(plain, checkpointed, rtol=1e-6, atol=1e-9)
    assert checkpointed_size < plain_size / 3


@pytest.mark.parametrize("variant", ["pvt_tiny", "pvt_v2_b0"])
def test_copies_and_pickles_compute_the_same(variant):
    backbone = create_backbone(variant, frozen_stages=1).eval()
    image = torch.randn(1, 3, 40, 64)
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert type(other) is type(backbone)
        assert torch.equal(other(image)["stage4"], backbone(image)["stage4"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"variant": "pvt_smal"}, "Did you mean pvt_small"),
        ({"variant": "pvt_tiny", "out_features": ["res2"]}, "stage1"),
        ({"variant": "pvt_tiny", "out_features": []}, "stage1"),
        ({"variant": "pvt_tiny", "out_features": ["stage2", "stage1"]}, "in this order"),
        ({"variant": "pvt_tiny", "pretrain_img_size": 100}, "multiple of 32"),
        ({"variant": "pvt_tiny", "frozen_stages": 5}, "0 to 4"),
        ({"variant": "pvt_tiny", "checkpoint_stages": [5]}, "1, 2, 3, 4"),
        ({"variant": "pvt_tiny", "drop_path_rate": 1.0}, "less than 1"),
    ],
)
def test_invalid_arguments_are_named(arguments, expected):
    with pytest.raises(ConfigError, match=expected):
        create_backbone(**arguments)


def test_builder_reads_the_config():
    cfg = get_config()
    cfg.MODEL.PVT.update(
        VARIANT="pvt_tiny",
        OUT_FEATURES=["stage1", "stage3"],
        DROP_PATH_RATE=0.25,
        PRETRAIN_IMG_SIZE=256,
        FROZEN_STAGES=1,
        CHECKPOINT_STAGES=[3],
    )
    backbone = build_pvt_backbone(cfg, ShapeSpec(channels=3))
    assert list(backbone.output_shape()) == ["stage1", "stage3"]
    assert backbone.pos_embed1.shape == (1, 64 * 64, 64)
    assert backbone.checkpoint_stages == {3}
    assert not backbone.pos_embed1.requires_grad
    image = torch.randn(8, 3, 32, 32)
    assert not torch.equal(backbone(image)["stage3"], backbone(image)["stage3"])
    with pytest.raises(ConfigError, match="three channels"):
        build_pvt_backbone(cfg, ShapeSpec(channels=1))


def test_import_registers_builders_and_reload_is_allowed():
    names = {
        BACKBONE_REGISTRY: ["build_pvt_backbone", "build_pvt_fpn_backbone", "build_retinanet_pvt_fpn_backbone"],
        META_ARCH_REGISTRY: ["PVTRetinaNet"],
        ROI_HEADS_REGISTRY: ["PVTROIHeads", "PVTCascadeROIHeads"],
    }
    assert all(name in registry for registry, listed in names.items() for name in listed)
    importlib.reload(pvt_det.modeling.fpn)

    def build_pvt_backbone(cfg, input_shape):
        """Builder of another package with the same name."""

    with pytest.raises(AssertionError, match="already registered"):
        register(BACKBONE_REGISTRY)(build_pvt_backbone)


@pytest.mark.parametrize(
    ("device", "key", "expected"),
    [("cuda", "default", False), ("cuda:1", "reduce-overhead", True), ("cuda", "", None), ("mps", "default", None)],
)
def test_config_compiles_the_trunk_on_a_gpu(monkeypatch, device, key, expected):
    called = []
    monkeypatch.setattr(PVTBackbone, "compile_trunk", lambda self, *, cuda_graphs: called.append(cuda_graphs))
    cfg = get_config()
    cfg.MODEL.PVT.VARIANT, cfg.MODEL.PVT.COMPILE, cfg.MODEL.DEVICE = "pvt_tiny", key, device
    build_pvt_backbone(cfg, ShapeSpec(channels=3))
    assert called == ([] if expected is None else [expected])


class CompiledGraphs:
    """Replaces `torch.compile` with only its front end, because code generation needs a C++ compiler.

    Attributes:
        cuda_graphs: Whether CUDA graphs were requested, for each compiled graph.
        generations: CUDA graph generation of each run of a graph. Outputs are valid until the next generation.
    """

    def __init__(self):
        self.cuda_graphs, self.generations = [], []
        self._compile = torch.compile

    def compile(self, function, *, options, **arguments):
        def backend(graph, _):
            self.cuda_graphs.append(options["triton.cudagraphs"])

            def run(*inputs):
                self.generations.append(CUDAGraphTreeManager.get_curr_generation())
                return graph(*inputs)

            return run

        return self._compile(function, backend=backend, **arguments)


@pytest.fixture
def compiled_graphs(monkeypatch):
    graphs = CompiledGraphs()
    monkeypatch.setattr(torch, "compile", graphs.compile)
    return graphs


@pytest.mark.parametrize(("variant", "trains", "copied"), [("pvt_tiny", True, True), ("pvt_v2_b0", False, False)])
def test_compiled_trunk_has_one_graph_per_stage_for_all_sizes(compiled_graphs, variant, trains, copied):
    plain = shallow(create_backbone(variant, out_features=["stage1", "stage2"]))
    backbone = copy.deepcopy(plain)
    backbone.compile_trunk(cuda_graphs=True)
    backbone = copy.deepcopy(backbone) if copied else backbone
    for size in ((64, 96), (96, 128), (224, 224)):
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            got, expected = backbone(image), plain(image)
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-5)
    assert compiled_graphs.cuda_graphs == [True] * 2
    generations = compiled_graphs.generations.copy()
    assert [generations.count(generation) for generation in dict.fromkeys(generations)] == [2, 2, 2]
    backbone(torch.randn(2, 3, 64, 96))["stage2"].sum().backward()
    assert compiled_graphs.cuda_graphs == [True] * 2 + ([False] * 2 if trains else [])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.parametrize(("variant", "training"), [("pvt_tiny", True), ("pvt_v2_b0", False)])
def test_compiled_maps_and_gradients_match_for_all_sizes(variant, training):
    plain = shallow(create_backbone(variant)).train(training)
    compiled = copy.deepcopy(plain)
    compiled.compile_trunk(cuda_graphs=False)
    torch._dynamo.utils.counters.clear()
    for size in ((8, 12), (16, 12), (20, 20)):
        coarse = torch.randn(2, plain.embed_dims[1], *size)
        results = []
        for backbone in (plain, compiled):
            x = coarse.clone(memory_format=torch.channels_last).requires_grad_(training)
            backbone.zero_grad()
            with torch.set_grad_enabled(training):
                out = backbone.forward_stage(3, x)
            if training:
                out.square().mean().backward()
            results.append([out, x.grad, *(p.grad for p in backbone.parameters())])
        for plain_tensor, compiled_tensor in zip(*results, strict=True):
            torch.testing.assert_close(plain_tensor, compiled_tensor, rtol=1e-3, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", ["pvt_small", "pvt_v2_b2"])
def test_maps_with_cuda_graphs_match_the_plain_trunk(variant):
    plain = create_backbone(variant).eval().cuda()
    compiled = copy.deepcopy(plain)
    compiled.compile_trunk(cuda_graphs=True)
    with torch.inference_mode():
        for size in ((224, 224), (224, 320), (512, 512), (224, 320), (224, 224)) * 2:
            image = torch.randn(1, 3, *size, device="cuda")
            expected = plain(image)
            for name, got in compiled(image).items():
                torch.testing.assert_close(got, expected[name], rtol=1e-2, atol=1e-2)
