"""Tests of the shipped configs: they load, are short, and build their models; every added key is used."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from pvt_det.config import get_config, load_config
from pvt_det.config.detectron2_keys import NOT_OURS
from pvt_det.config.keys import ADDED_KEYS
from pvt_det.config.table import SECTIONS, TABLE
from pvt_det.models import list_models
from pvt_det.reports.published import published_results
from tests.drills.config_values import keys_read

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
# configs/classification has a different loader.
FILES = sorted(p for p in CONFIGS.rglob("*.yaml") if "classification" not in p.parts)
LEAVES = [p for p in FILES if p.parent.name != "base"]
PUBLISHED = [
    p.stem
    for p in LEAVES
    if p.parent == CONFIGS
    and p.stem.startswith(("retinanet_", "atss_", "gfl_", "mask_rcnn_", "faster_rcnn_", "cascade_"))
]


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def load(name: str) -> CfgNode:
    return load_config(CONFIGS / f"{name}.yaml", ["MODEL.DEVICE", "cpu"])


def build_without_memory(cfg: CfgNode) -> torch.nn.Module:
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_is_short(path):
    assert len(path.read_text().splitlines()) <= 45


@pytest.mark.parametrize("path", LEAVES, ids=name_of)
def test_leaf_loads_and_builds(path):
    cfg = load_config(path)
    model = build_without_memory(cfg)
    assert model.backbone.size_divisibility == 32
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    if path.parent == CONFIGS:
        assert len(path.read_text().splitlines()) < 15


def test_every_published_result_has_a_config():
    v1 = [f"pvt_{size}" for size in ("tiny", "small", "medium", "large")]
    baselines = [f"R_{depth}" for depth in (18, 50, 101)]
    v2 = [name for name in list_models() if name.startswith("pvt_v2")]
    expected = {
        f"{task}_{backbone}{recipe}"
        for task, backbone, recipe in itertools.product(("retinanet", "mask_rcnn"), v1 + baselines, ("", "_3x", "_d2"))
    }
    expected |= {f"{task}_{backbone}" for task, backbone in itertools.product(("retinanet", "mask_rcnn"), v2)}
    expected |= {f"mask_rcnn_pvt_v2_{size}_3x" for size in ("b0", "b2", "b2_li")}
    expected |= {"cascade_mask_rcnn_pvt_v2_b2", "cascade_mask_rcnn_pvt_v2_b2_li"}
    expected |= {f"{task}_pvt_v2_{size}_3x" for task, size in itertools.product(("atss", "gfl"), ("b2", "b2_li"))}
    expected |= {"faster_rcnn_pvt_small", "cascade_mask_rcnn_pvt_small"}
    assert expected <= set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_name_matches_backbone_and_weights(name):
    cfg = load(name)
    if timm_name := cfg.MODEL.TIMM.NAME:
        assert cfg.MODEL.WEIGHTS.startswith(f"hf://timm/{timm_name}.")
        return
    backbone = re.search(r"(pvt_(?:v2_)?[a-z0-9]+(?:_li)?|R_\d+)", name)[1]
    if backbone.startswith("R_"):
        depth = int(backbone[2:])
        assert (depth, f"torchvision://resnet{depth}") == (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.WEIGHTS)
    else:
        assert (backbone, f"pvt://{backbone}") == (cfg.MODEL.PVT.VARIANT, cfg.MODEL.WEIGHTS)
        assert (0.0 if backbone in ("pvt_medium", "pvt_large") else 0.1) == cfg.MODEL.PVT.DROP_PATH_RATE


# Parameters in millions: published totals for PVT v1 and ResNet; backbones for v2, whose RetinaNets add 10.25.
RETINANET = {"R_18": 21.3, "R_50": 37.7, "R_101": 56.7}
RETINANET |= {"pvt_tiny": 23.0, "pvt_small": 34.2, "pvt_medium": 53.9, "pvt_large": 71.1}
V2_BACKBONES = {"b0": 3.41, "b1": 13.50, "b2": 24.85, "b2_li": 22.04, "b3": 44.73, "b4": 62.04, "b5": 81.44}
MASK_RCNN = {"R_18": 31.2, "R_50": 44.2, "R_101": 63.2}
MASK_RCNN |= {"pvt_tiny": 32.9, "pvt_small": 44.1, "pvt_medium": 63.9, "pvt_large": 81.0}


@pytest.mark.parametrize(
    ("name", "millions"),
    [(f"retinanet_{k}", v) for k, v in RETINANET.items()] + [(f"mask_rcnn_{k}", v) for k, v in MASK_RCNN.items()],
)
def test_parameter_counts_match_the_published_ones(name, millions):
    """The published counts of ResNets exclude the frozen stem and res2, but include BatchNorms of later stages."""
    model = build_without_memory(load(name))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    norms = sum(b.numel() for k, b in model.named_buffers() if re.search(r"res[345].*norm\.(weight|bias)$", k))
    assert (trained + norms) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("R_18", 15.5), ("R_50", 28.5), ("R_101", 47.5), ("X_101_32x4d", 47.1), ("X_101_64x4d", 86.4)],
)
def test_semantic_fpn_has_about_the_published_number_of_parameters(name, millions):
    """The published counts include the scale and shift of BatchNorms, which FrozenBN keeps as buffers."""
    model = build_without_memory(load(f"semantic_fpn_{name}"))
    norms = sum(b.numel() for key, b in model.named_buffers() if re.search(r"norm\.(weight|bias)$", key))
    assert (count(model) + norms) / 1e6 == pytest.approx(millions, abs=0.12)


@pytest.mark.parametrize(
    "row",
    [r for r in published_results() if "_pvt_" in r.config and r.parameters_millions],
    ids=lambda row: row.config,
)
def test_models_with_pvt_have_the_published_number_of_parameters(row):
    assert count(build_without_memory(load(row.config))) / 1e6 == pytest.approx(row.parameters_millions, abs=0.31)


@pytest.mark.parametrize("name", [n for n in PUBLISHED if re.fullmatch(r"retinanet_pvt_(tiny|small|v2_b\d(_li)?)", n)])
def test_retinanet_adds_10_25_million_parameters_to_the_backbone(name):
    model = build_without_memory(load(name))
    backbone = count(model.backbone.bottom_up) / 1e6
    if "v2" in name:
        assert backbone == pytest.approx(V2_BACKBONES[name.removeprefix("retinanet_pvt_v2_")], abs=0.006)
    # b0 has fewer channels in its last maps than the other variants.
    assert count(model) / 1e6 - backbone == pytest.approx(9.54 if name.endswith("b0") else 10.25, abs=0.006)


# --- recipes ---------------------------------------------------------------------------------------------------------
def lr_and_batch(name: str) -> tuple[float, int]:
    cfg = load(name)
    return cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH


def test_published_learning_rates():
    for name in ("tiny", "small", "medium", "large", "v2_b0", "v2_b2_li", "v2_b3"):
        assert lr_and_batch(f"retinanet_pvt_{name}") == (1e-4, 16)
    for name in ("tiny", "small", "medium", "v2_b0", "v2_b2_li", "v2_b3"):
        assert lr_and_batch(f"mask_rcnn_pvt_{name}") == (2e-4, 16)
    for name in ("retinanet_pvt_v2_b4", "retinanet_pvt_v2_b5"):
        assert lr_and_batch(name) == (pytest.approx(1e-4 / 1.4), 8)
    for name in ("mask_rcnn_pvt_large", "mask_rcnn_pvt_v2_b4", "mask_rcnn_pvt_v2_b5"):
        assert lr_and_batch(name) == (pytest.approx(2e-4 / 1.4), 8)
    assert lr_and_batch("retinanet_R_50") == (0.01, 16)
    assert lr_and_batch("mask_rcnn_R_50") == (0.02, 16)


@pytest.mark.parametrize("name", [n for n in PUBLISHED if not n.endswith("_d2")])
def test_paper_recipe(name):
    cfg = load(name)
    solver, epoch = cfg.SOLVER, 7330 * 16 // cfg.SOLVER.IMS_PER_BATCH
    long = name.endswith("_3x") or name.startswith("cascade_mask_rcnn_pvt_v2")
    epochs = (36, 27, 33) if long else (12, 8, 11)
    assert (solver.MAX_ITER, *solver.STEPS) == tuple(n * epoch for n in epochs)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.WARMUP_METHOD) == (500, 0.001, "linear")
    assert not solver.CLIP_GRADIENTS.ENABLED
    short, longest = (640, 1066) if name.endswith("_640") else (800, 1333)
    assert ("cv2", longest) == (cfg.INPUT.RESIZE_BACKEND, cfg.INPUT.MAX_SIZE_TRAIN)
    assert (short, longest) == (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    assert (cfg.MODEL.RETINANET.LOSS_NORMALIZER, cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA) == ("batch", 0.0)
    assert not cfg.MODEL.FPN.P7_RELU
    assert (not name.startswith(("faster", "cascade"))) == cfg.MODEL.ROI_HEADS.ALLOW_LOW_QUALITY_MATCHES
    if "v2" in name and long:
        assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (1e-4, 0.05, 0.0)
        assert tuple(range(480, 801, 32)) == cfg.INPUT.MIN_SIZE_TRAIN
        assert cfg.INPUT.CROP_BRANCH == {"ENABLED": True, "RESIZE": (400, 500, 600), "SIZE": (384, 600)}
    else:
        assert solver.WEIGHT_DECAY == 1e-4
        assert not cfg.INPUT.CROP_BRANCH.ENABLED
        assert ((640, 800) if long else (short,)) == cfg.INPUT.MIN_SIZE_TRAIN
        assert ("range" if long else "choice") == cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if "_R_" in name:
        assert (solver.OPTIMIZER, solver.MOMENTUM) == ("sgd", 0.9)
        assert (cfg.MODEL.RESNETS.STRIDE_IN_1X1, cfg.MODEL.RESNETS.NORM) == (False, "FrozenBN")
        assert cfg.MODEL.BACKBONE.FREEZE_AT == 2
    else:
        assert solver.OPTIMIZER == "adamw"
        assert long or solver.WEIGHT_DECAY_NORM == 1e-4
        assert solver.WEIGHT_DECAY_BIAS is None


@pytest.mark.parametrize("name", [n for n in PUBLISHED if n.endswith("_d2")])
def test_detectron2_recipe(name):
    cfg = load(name)
    assert (cfg.SOLVER.MAX_ITER, *cfg.SOLVER.STEPS, cfg.SOLVER.IMS_PER_BATCH) == (90000, 60000, 80000, 16)
    assert (cfg.INPUT.RESIZE_BACKEND, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING) == ("pil", "choice")
    assert cfg.INPUT.MIN_SIZE_TRAIN == (640, 672, 704, 736, 768, 800)
    assert (cfg.MODEL.RETINANET.LOSS_NORMALIZER, cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA) == ("ema", 0.1)
    assert cfg.MODEL.FPN.P7_RELU
    assert not cfg.MODEL.ROI_HEADS.ALLOW_LOW_QUALITY_MATCHES


SEMANTIC_FPN = [p.stem for p in LEAVES if p.parent == CONFIGS and p.stem.startswith("semantic_fpn_")]


@pytest.mark.parametrize("name", SEMANTIC_FPN)
def test_semantic_fpn_recipe(name):
    """The published code trains its ResNets and ResNeXts with SGD, and PVT with AdamW."""
    solver = load(name).SOLVER
    assert (solver.MAX_ITER, solver.IMS_PER_BATCH, solver.WARMUP_ITERS) == (40000, 32, 0)
    assert (solver.LR_SCHEDULER_NAME, solver.POLY_LR_POWER) == ("WarmupPolyLR", 0.9)
    expected = ("adamw", 2e-4, 1e-4, 1e-4) if "_pvt_" in name else ("sgd", 0.02, 5e-4, 5e-4)
    assert expected == (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM)
    assert (solver.MOMENTUM, solver.NESTEROV, solver.WEIGHT_DECAY_BIAS) == (0.9, False, None)
    assert not solver.CLIP_GRADIENTS.ENABLED


def test_anchor_sizes_are_fractions_of_octaves():
    sizes = load("retinanet_pvt_tiny").MODEL.ANCHOR_GENERATOR.SIZES
    for level, row in enumerate(sizes):
        assert row == pytest.approx([4 * 8 * 2**level * 2 ** (k / 3) for k in range(3)], rel=1e-14)


# --- keys ------------------------------------------------------------------------------------------------------------
def keys_of(cfg: CfgNode, prefix: str = "") -> set[str]:
    keys = set()
    for name, value in cfg.items():
        keys |= keys_of(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else {f"{prefix}{name}"}
    return keys


ADDED = sorted(keys_of(get_config()) - keys_of(get_cfg()))


@pytest.mark.parametrize("key", ADDED)
def test_every_added_key_is_used(key):
    """A file outside `pvt_det/config` contains both the section and the name of the key."""
    section, name = f"cfg.{key}".split(".")[-2:]
    sources = [p for p in (ROOT / "pvt_det").rglob("*.py") if "config" not in p.relative_to(ROOT).parts]
    # TRAIN_JSON and VAL_JSON are also read as f"{part}_JSON".
    read = rf"\.{name}\b|\}}_{name.partition('_')[2] or name}\b"
    contents = [p.read_text() for p in sources]
    assert any(re.search(rf"\b{section}\b", text) and re.search(read, text) for text in contents), (
        f"no code reads {key}"
    )


# --- the table of keys -----------------------------------------------------------------------------------------------
def keys_in(tree: dict, prefix: str = "") -> set[str]:
    """The keys that a YAML file sets."""
    nested = [(f"{prefix}{name}", value) for name, value in tree.items() if name != "_BASE_"]
    return {
        key for name, value in nested for key in (keys_in(value, f"{name}.") if isinstance(value, dict) else {name})
    }


def is_not_ours(key: str) -> bool:
    return key.startswith(tuple(NOT_OURS))


def test_every_key_has_a_row_or_a_reason_for_none():
    known = keys_of(get_config())
    assert known == set(TABLE) | {key for key in known if is_not_ours(key)}
    assert [key for key in TABLE if is_not_ours(key)] == []
    # The table has this package's keys exactly once, with their defaults, and the others have Detectron2's.
    added = [row.key for rows in ADDED_KEYS.values() for row in rows]
    assert sorted(added) == sorted(set(ADDED))
    assert len(TABLE) == sum(map(len, SECTIONS.values()))
    assert [row.key for row in TABLE.values() if len(row.meaning) < 10 or not row.meaning.endswith(".")] == []
    assert [prefix for prefix in NOT_OURS if not any(key.startswith(prefix) for key in known)] == []


def test_every_key_that_a_shipped_config_sets_has_a_row():
    used = set().union(*(keys_in(yaml.safe_load(path.read_text())) for path in FILES))
    assert len(used) > 60
    assert used - set(TABLE) == set()


ONE_OF_EACH = [
    "retinanet_pvt_tiny",
    "retinanet_R_18",
    "atss_pvt_v2_b2_3x",
    "gfl_pvt_v2_b2_3x",
    "mask_rcnn_pvt_v2_b0",
    "mask_rcnn_R_50",
    "cascade_mask_rcnn_pvt_small",
    "semantic_fpn_pvt_tiny",
    "shapes/panoptic_fpn_pvt_tiny",
]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_key_that_a_builder_reads_has_a_row(name):
    read = keys_read(load(name))
    assert {"MODEL.META_ARCHITECTURE", "MODEL.PIXEL_MEAN", "MODEL.BACKBONE.NAME"} <= read
    assert {key for key in read - set(TABLE) if not is_not_ours(key)} == set()


def test_the_package_does_not_read_keys_that_are_not_ours():
    contents = [path.read_text() for path in (ROOT / "pvt_det").rglob("*.py") if path.parent.name != "config"]
    for key in keys_of(get_config()) - set(TABLE):
        section, _, name = key.rpartition(".")
        pattern = rf"\b{re.escape(section.rpartition('.')[2])}\.{name}\b" if section else rf"\bcfg\.{name}\b"
        assert not any(re.search(pattern, text) for text in contents), key


@pytest.mark.parametrize("name", ["sparse_rcnn_pvt_v2_b2", "sparse_rcnn_pvt_v2_b2_li"])
def test_sparse_rcnn_recipe(name):
    cfg = load(name)
    solver, epoch = cfg.SOLVER, 117264 // 8
    assert (8, pytest.approx(2.5e-5 / 1.4)) == (solver.IMS_PER_BATCH, solver.BASE_LR)
    assert [step / epoch for step in (solver.MAX_ITER, *solver.STEPS)] == pytest.approx([36, 27, 33], abs=0.01)
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.BACKBONE_MULTIPLIER) == (1e-4, 1e-4, 1.0)
    assert (solver.CLIP_GRADIENTS.CLIP_TYPE, solver.CLIP_GRADIENTS.CLIP_VALUE) == ("full_model", 1.0)
    assert tuple(range(480, 801, 32)) == cfg.INPUT.MIN_SIZE_TRAIN
    assert cfg.INPUT.CROP_BRANCH == {"ENABLED": True, "RESIZE": (400, 500, 600), "SIZE": (384, 600)}
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.TEST.DETECTIONS_PER_IMAGE) == (800, 1333, 300)


@pytest.mark.parametrize("name", ["detr_pvt_small", "detr_R_50"])
def test_detr_recipe(name):
    cfg = load(name)
    solver, epoch = cfg.SOLVER, 7330
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.OPTIMIZER) == (16, 1e-4, "adamw")
    assert (solver.MAX_ITER, *solver.STEPS, solver.WARMUP_ITERS) == (50 * epoch, 33 * epoch, 0)
    assert (solver.WEIGHT_DECAY, solver.BACKBONE_MULTIPLIER) == (1e-4, 0.1)
    assert (solver.CLIP_GRADIENTS.CLIP_TYPE, solver.CLIP_GRADIENTS.CLIP_VALUE) == ("full_model", 0.1)
    assert tuple(range(640, 801, 32)) == cfg.INPUT.MIN_SIZE_TRAIN
    assert not cfg.INPUT.CROP_BRANCH.ENABLED


def test_detr_has_the_published_number_of_parameters():
    """DETR's training log says 41,302,368 for ResNet-50, with 91 classes instead of 80."""
    model = build_without_memory(load("detr_R_50"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 41_302_368 - 11 * (256 + 1)
