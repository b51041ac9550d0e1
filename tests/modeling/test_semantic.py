"""The Semantic FPN head matches Detectron2's, with the published dropout and loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead

from pvt_det.config import load_config
from pvt_det.errors import ConfigError
from pvt_det.modeling.semantic import PVTSemSegFPNHead

from .conftest import CONFIGS

LEVELS = {f"p{i}": ShapeSpec(channels=8, stride=2**i) for i in (2, 3, 4, 5)}
CLASSES = 6


def head(**changes) -> PVTSemSegFPNHead:
    torch.manual_seed(0)
    arguments = {"num_classes": CLASSES, "conv_dims": 32, "common_stride": 4, "norm": "GN", "ignore_value": 255}
    return PVTSemSegFPNHead(LEVELS, **arguments | changes)


def features(height: int = 64, width: int = 96) -> dict[str, torch.Tensor]:
    return {name: torch.randn(2, 8, height // s.stride, width // s.stride) for name, s in LEVELS.items()}


def test_head_without_dropout_matches_detectron2():
    ours = head().eval()
    theirs = SemSegFPNHead(
        LEVELS, num_classes=CLASSES, conv_dims=32, common_stride=4, norm="GN", ignore_value=255
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    maps, labels = features(), torch.randint(0, CLASSES, (2, 64, 96))
    labels[:, :10] = 255
    logits, losses = ours(maps)
    assert logits.shape == (2, CLASSES, 64, 96)
    assert losses == {}
    torch.testing.assert_close(logits, theirs(maps)[0])
    torch.testing.assert_close(ours.train()(maps, labels)[1], theirs.train()(maps, labels)[1])


@pytest.mark.parametrize("average", ["all", "valid"])
def test_loss_is_cross_entropy_averaged_over_the_selected_pixels(average):
    predictions, labels = torch.randn(2, CLASSES, 4, 6), torch.randint(0, CLASSES, (2, 16, 24))
    labels[0, :5], labels[1, 3] = 255, 255
    logits = F.interpolate(predictions, size=(16, 24), mode="bilinear", align_corners=False).log_softmax(dim=1)
    total, valid = 0.0, 0
    for n, y, x in ((n, y, x) for n in range(2) for y in range(16) for x in range(24)):
        if labels[n, y, x] != 255:
            total -= float(logits[n, labels[n, y, x], y, x])
            valid += 1
    loss = head(loss_average=average, loss_weight=0.5).losses(predictions, labels)["loss_sem_seg"]
    assert math.isclose(loss.item(), 0.5 * total / {"all": labels.numel(), "valid": valid}[average], rel_tol=1e-5)


@pytest.mark.parametrize("average", ["all", "valid"])
def test_loss_is_zero_if_all_labels_are_ignored(average):
    predictions = torch.randn(1, CLASSES, 4, 4, requires_grad=True)
    loss = head(loss_average=average).losses(predictions, torch.full((1, 16, 16), 255))["loss_sem_seg"]
    loss.backward()
    assert loss.item() == 0
    assert predictions.grad.abs().max() == 0


def test_initial_loss_is_that_of_uniform_predictions():
    loss = head()(features(), torch.randint(0, CLASSES, (2, 64, 96)))[1]["loss_sem_seg"]
    assert math.isclose(loss.item(), math.log(CLASSES), rel_tol=0.05)


def test_dropout_drops_whole_channels_in_training_only():
    module = head(dropout=0.5).train()
    seen = []
    module.predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    maps = features()
    module.layers(maps)
    dropped = (seen[0] == 0).all(dim=(2, 3))
    assert 10 < dropped.sum() < 54  # of 2 × 32 channels
    assert (seen[0][~dropped] != 0).float().mean() > 0.5
    module.eval()
    torch.testing.assert_close(module.layers(maps), module.layers(maps), rtol=0, atol=0)


def test_loss_is_in_fp32_under_autocast():
    predictions, labels = torch.randn(1, CLASSES, 8, 8), torch.randint(0, CLASSES, (1, 32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        loss = head().losses(predictions.bfloat16(), labels)["loss_sem_seg"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, head().losses(predictions.bfloat16().float(), labels)["loss_sem_seg"])


def test_missing_feature_maps_are_named():
    cfg = load_config(CONFIGS / "semantic_fpn_pvt_tiny.yaml", ["MODEL.DEVICE", "cpu"])
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p2", "p9"]
    with pytest.raises(ConfigError, match=r"IN_FEATURES = \['p2', 'p9'\].*p2, p3, p4, p5"):
        build_model(cfg)


@pytest.mark.parametrize("name", ["semantic_fpn_pvt_tiny", "semantic_fpn_pvt_v2_b0", "semantic_fpn_R_50"])
def test_published_heads(name):
    cfg = load_config(CONFIGS / f"{name}.yaml")
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        module = build_model(cfg).sem_seg_head
    # 3×3 convolutions with 128 output channels: one each for P2 and P3, two for P4, three for P5.
    convolutions = 4 * 256 * 128 * 9 + 3 * 128 * 128 * 9
    norms, classifier = 7 * 2 * 128, 150 * 128 + 150
    assert sum(p.numel() for p in module.parameters()) == convolutions + norms + classifier
    assert module.dropout.p == 0.1
    assert module.loss_average == "all"


def test_logits_have_the_requested_size():
    cfg = load_config(CONFIGS / "shapes/semantic_fpn_pvt_tiny.yaml", ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg).eval()
    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, 64, 96, dtype=torch.uint8), "height": 50, "width": 75}])
    assert output["sem_seg"].shape == (5, 50, 75)
