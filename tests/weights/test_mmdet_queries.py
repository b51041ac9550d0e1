"""Converted checkpoints of MMDetection's DETR and Sparse R-CNN compute the same outputs and losses as in MMDetection.

`golden/mmdet_queries.json` was written by `make_mmdet_queries_reference.py`.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import Tensor

from pvt_det.config import load_config
from pvt_det.errors import CheckpointError
from pvt_det.weights import load_pretrained
from tests.command_line import run_command
from tests.weights import make_mmdet_queries_reference as maker

REFERENCE = json.loads((Path(__file__).parent / "golden/mmdet_queries.json").read_text())
TOLERANCE = 1e-4
SIZES = {"MODEL.PVT.EMBED_NORM_EPS": 1e-6, "MODEL.DEVICE": "cpu"}
CONFIGS = {
    "detr": (
        "detr_pvt_small",
        {
            "MODEL.PVT.VARIANT": "pvt_tiny",
            "MODEL.DETR.NUM_QUERIES": maker.QUERIES,
            "MODEL.DETR.HIDDEN_DIM": maker.DIM,
            "MODEL.DETR.FEEDFORWARD_DIM": maker.HIDDEN,
            "MODEL.DETR.ENCODER_LAYERS": maker.LAYERS,
            "MODEL.DETR.DECODER_LAYERS": maker.LAYERS,
        },
    ),
    "sparse_rcnn": (
        "sparse_rcnn_pvt_v2_b2",
        {
            "MODEL.PVT.VARIANT": "pvt_v2_b0",
            "MODEL.FPN.OUT_CHANNELS": maker.DIM,
            "MODEL.SPARSE_RCNN.NUM_PROPOSALS": maker.QUERIES,
            "MODEL.SPARSE_RCNN.FEEDFORWARD_DIM": maker.HIDDEN,
            "MODEL.SPARSE_RCNN.DYNAMIC_DIM": maker.DYNAMIC,
            "MODEL.SPARSE_RCNN.NUM_STAGES": maker.LAYERS,
        },
    ),
}


def config(name: str, **changes: object):
    recipe, settings = CONFIGS[name]
    merged = SIZES | settings | changes
    return load_config(recipe, [str(word) for pair in merged.items() for word in pair])


@cache
def mmdet_weights(name: str) -> dict[str, Tensor]:
    return {key: maker.weights(key, shape) for key, shape in REFERENCE["cases"][name]["keys"].items()}


@pytest.fixture(scope="module", params=list(CONFIGS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Return our detector with the converted weights, and what was recorded."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    torch.save({"state_dict": mmdet_weights(name)}, folder / "mmdet.pth")
    cfg = config(name)
    (folder / "config.yaml").write_text(cfg.dump())
    words = [str(folder / "mmdet.pth"), "--config-file", str(folder / "config.yaml"), "--output"]
    assert run_command("convert", [*words, str(folder / "ours.pth")]) == 0
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(folder / "ours.pth", weights_only=True)["model"])
    return model, REFERENCE["cases"][name]


def inputs(model, *numbers: int) -> tuple[list[Tensor], Tensor]:
    images = model.preprocess_image([{"image": maker.image(*maker.SIZES[number])} for number in numbers])
    maps = model.backbone(images.tensor)
    sizes = torch.tensor([[w, h, w, h] for h, w in images.image_sizes], dtype=torch.float32)
    return [maps[name] for name in model.in_features], sizes


def assert_sampled(name: str, value: Tensor, sample: dict) -> None:
    assert list(value.shape) == sample["shape"]
    flat = value.flatten().double()
    values = flat[[(j * len(flat)) // len(sample["values"]) for j in range(len(sample["values"]))]]
    error = (values - torch.tensor(sample["values"])).abs().max().item()
    print(f"{name}: standard deviation {flat.std():.3g}, difference {error:.2g}")
    # Boxes are in pixels, which float32 resolves to 1e-5.
    torch.testing.assert_close(values, torch.tensor(sample["values"]).double(), atol=TOLERANCE, rtol=TOLERANCE / 100)
    assert flat.mean().item() == pytest.approx(sample["mean"], abs=TOLERANCE)
    assert flat.std().item() == pytest.approx(sample["std"], abs=TOLERANCE)


@pytest.mark.parametrize(("size", "numbers"), [("96x128", [0]), ("130x100", [1]), ("batch", [0, 1])])
@torch.no_grad()
def test_outputs_match_mmdetection(case: tuple, size: str, numbers: list[int]) -> None:
    model, record = case
    logits, boxes = model.predict(*inputs(model, *numbers))
    wanted = record["outputs"][size]
    head = type(model).__name__
    assert_sampled(f"{head} logits", logits, wanted["logits"])
    assert_sampled(f"{head} boxes", boxes, wanted["boxes"])


@torch.no_grad()
def test_losses_match_mmdetection(case: tuple) -> None:
    model, record = case
    targets = [
        Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes)
        for size, (boxes, classes) in zip(maker.SIZES, maker.objects(), strict=True)
    ]
    losses = model.losses(*inputs(model, 0, 1), targets)
    names = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox", "loss_giou": "loss_iou"}
    assert losses.keys() == names.keys()
    for ours, theirs in names.items():
        difference = abs(float(losses[ours]) - record["losses"][theirs])
        print(f"{type(model).__name__} {ours}: {float(losses[ours]):.6g}, difference {difference:.2g}")
        assert float(losses[ours]) == pytest.approx(record["losses"][theirs], abs=TOLERANCE, rel=0), ours


def old_detr_names(key: str) -> str:
    """Return the name of a weight of MMDetection 3's DETR in MMDetection 2."""
    if key == "query_embedding.weight":
        return "bbox_head.query_embedding.weight"
    key = re.sub(r"^neck\.convs\.0\.conv", "bbox_head.input_proj", key)
    key = re.sub(r"^(encoder|decoder)\.", r"bbox_head.transformer.\1.", key)
    names = {".self_attn.": ".attentions.0.", ".cross_attn.": ".attentions.1.", ".ffn.": ".ffns.0."}
    for new, old in names.items():
        key = key.replace(new, old) if "bbox_head.transformer" in key else key
    return key


def test_checkpoints_of_mmdetection_2_fit_too(tmp_path: Path) -> None:
    """The published DETR was trained with MMDetection 2.13, whose trunk has the published names."""
    weights = mmdet_weights("detr")
    new, old = build_model(config("detr")), build_model(config("detr"))
    torch.save({"state_dict": weights}, tmp_path / "new.pth")
    assert load_pretrained(new, tmp_path / "new.pth").dialect == "MMDetection DETR, MMDetection PVT"
    state = new.state_dict()
    head = {old_detr_names(key): value for key, value in weights.items() if not key.startswith("backbone.")}
    trunk = {key.replace(".bottom_up", ""): value for key, value in state.items() if ".bottom_up." in key}
    torch.save({"state_dict": head | trunk}, tmp_path / "old.pth")
    assert load_pretrained(old, tmp_path / "old.pth").dialect == "MMDetection 2 DETR, published PVT"
    assert [name for name, value in old.state_dict().items() if not torch.equal(value, state[name])] == []


@pytest.mark.parametrize("name", list(CONFIGS))
def test_conversion_is_strict(name: str, tmp_path: Path) -> None:
    model, weights = build_model(config(name)), mmdet_weights(name)
    last = next(key for key in weights if key.endswith("fc_reg.bias"))
    torch.save({"state_dict": {key: weights[key] for key in weights if key != last}}, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match="1 missing"):
        load_pretrained(model, tmp_path / "less.pth")
    torch.save({"state_dict": weights | {"bbox_head.extra.weight": torch.zeros(3)}}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match=r"1 unexpected: bbox_head\.extra\.weight"):
        load_pretrained(model, tmp_path / "more.pth")


@pytest.mark.parametrize("name", list(CONFIGS))
def test_other_classes_keep_the_rest_of_the_head(name: str, tmp_path: Path) -> None:
    weights = mmdet_weights(name)
    torch.save({"state_dict": weights}, tmp_path / "mmdet.pth")
    section = name.upper()
    model = build_model(config(name, **{f"MODEL.{section}.NUM_CLASSES": 3}))
    report = load_pretrained(model, tmp_path / "mmdet.pth")
    layer = "class_embed" if name == "detr" else "cls_score"
    outputs = (4, 81) if name == "detr" else (3, 80)
    assert list(report.new) == [f"{layer} ({outputs[0]} outputs, {outputs[1]} in the file)"]
