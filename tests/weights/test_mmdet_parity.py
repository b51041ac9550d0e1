"""A converted MMDetection checkpoint computes the same outputs as in MMDetection.

`golden/mmdet_reference.json` holds the key names of MMDetection's detectors and samples of their outputs for weights
that can be regenerated. It was written by `make_mmdet_reference.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList
from torch import Tensor, nn

from pvt_det.config import load_config
from tests.command_line import run_command
from tests.weights import make_mmdet_reference as maker

HERE = Path(__file__).parent
REFERENCE = json.loads((HERE / "golden/mmdet_reference.json").read_text())
TOLERANCE = 1e-4


def build(name: str, repo_root: Path) -> nn.Module:
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.PVT.EMBED_NORM_EPS", "1e-6"]
    return build_model(load_config(repo_root / f"configs/{name}.yaml", overrides)).eval()


@pytest.fixture(scope="module", params=list(REFERENCE["cases"]))
def case(request: pytest.FixtureRequest, repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Return our detector with weights converted from MMDetection's layout, and MMDetection's outputs."""
    name = request.param
    record = REFERENCE["cases"][name]
    folder = tmp_path_factory.mktemp(name)
    weights = {key: maker.seeded(key, shape) for key, shape in record["keys"].items()}
    torch.save({"state_dict": weights, "meta": {"mmdet_version": "3.3.0"}}, folder / "mmdet.pth")
    config = str(repo_root / f"configs/{name}.yaml")
    assert (
        run_command(
            "convert", [str(folder / "mmdet.pth"), "--config-file", config, "--output", str(folder / "ours.pth")]
        )
        == 0
    )
    model = build(name, repo_root)
    converted = torch.load(folder / "ours.pth", weights_only=True)["model"]
    model.load_state_dict(model.state_dict() | converted)
    assert set(model.state_dict()) - set(converted) <= {"loss_normalizer"}
    return name, model, record


def to_mmdet_order(t: Tensor) -> Tensor:
    """Reorder channels from Detectron2's (3 sizes, 3 ratios, …) to MMDetection's (3 ratios, 3 sizes, …)."""
    n, c, h, w = t.shape
    return t.reshape(n, 3, 3, c // 9, h, w).transpose(1, 2).reshape(n, c, h, w)


@torch.no_grad()
def run(model: nn.Module, height: int, width: int, is_retina: bool) -> dict[str, Tensor]:
    assert model.input_format == "RGB"
    images: ImageList = model.preprocess_image([{"image": maker.image(height, width)}])
    maps = model.backbone.bottom_up(images.tensor)
    pyramid = list(model.backbone(images.tensor).values())
    # The FPN reads some of stage1 … stage4 or res2 … res5.
    first = 1 if "stage4" in maps else 2
    out = {f"backbone{int(name[-1]) - first}": m for name, m in maps.items()}
    out |= {f"fpn{i}": p for i, p in enumerate(pyramid)}
    scores, deltas = model.head(pyramid) if is_retina else model.proposal_generator.rpn_head(pyramid)
    order = to_mmdet_order if is_retina else (lambda t: t)
    for i in range(len(pyramid)):
        out |= {f"scores{i}": order(scores[i]), f"deltas{i}": order(deltas[i])}
    if not is_retina:
        heads, proposals = model.roi_heads, [Boxes(maker.boxes(height, width))]
        box_features = heads.box_head(heads.box_pooler(pyramid[:4], proposals))
        out["box_scores"], out["box_deltas"] = heads.box_predictor(box_features)
        out["masks"] = heads.mask_head.layers(heads.mask_pooler(pyramid[:4], proposals))
    return out


@pytest.mark.parametrize("size", ["200x250", "320x416"])
def test_outputs_before_nms_match_mmdetection(case: tuple, size: str) -> None:
    name, model, record = case
    wanted = record["outputs"][size]
    got = run(model, *map(int, size.split("x")), is_retina="retina" in name)
    assert set(wanted) - set(got) <= {"backbone0"}
    for key, value in got.items():
        sample = wanted[key]
        assert list(value.shape) == sample["shape"], key
        n, flat = value.numel(), value.flatten().double()
        values = flat[[(j * n) // maker.SAMPLES for j in range(maker.SAMPLES)]]
        error = (values - torch.tensor(sample["values"])).abs().max().item()
        print(f"{key} {value.std():.3g} {error:.2g}")
        assert error < TOLERANCE, key
        assert flat.mean().item() == pytest.approx(sample["mean"], abs=TOLERANCE), key
        assert flat.std().item() == pytest.approx(sample["std"], abs=TOLERANCE), key


def test_anchors_match_mmdetection_in_converted_order(case: tuple) -> None:
    name, model, record = case
    is_retina = "retina" in name
    generator = model.anchor_generator if is_retina else model.proposal_generator.anchor_generator
    for ours, theirs in zip(generator.cell_anchors, record["anchors"], strict=True):
        wanted = torch.tensor(theirs)
        wanted = wanted.reshape(3, -1, 4).transpose(0, 1).reshape(-1, 4)
        torch.testing.assert_close(ours, wanted, atol=1e-3, rtol=0)
