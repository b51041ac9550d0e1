"""RT-DETRv2 around our trunk computes what transformers' own model computes from the same feature maps."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from pvt_det.config import load_config
from pvt_det.errors import ConfigError
from pvt_det.modeling import rt_detr
from pvt_det.utils import extras

pytest.importorskip("transformers", minversion="5.20", reason="needs the extra detr")

TINY = (
    *("MODEL.DEVICE", "cpu", "MODEL.PVT.VARIANT", "pvt_v2_b0", "MODEL.PVT.DROP_PATH_RATE", "0.0"),
    *("MODEL.RT_DETR.HIDDEN_DIM", "32", "MODEL.RT_DETR.NUM_HEADS", "4", "MODEL.RT_DETR.FEEDFORWARD_DIM", "64"),
    *("MODEL.RT_DETR.NUM_QUERIES", "20", "MODEL.RT_DETR.DECODER_LAYERS", "2", "MODEL.RT_DETR.NUM_CLASSES", "5"),
)


def build(repo_root, *words):
    torch.manual_seed(0)
    return build_model(load_config(repo_root / "configs/rt_detr_pvt_v2_b2.yaml", [*TINY, *words]))


def records(*sizes):
    """Return random images with two objects each."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for height, width in sizes:
        corners = torch.rand(2, 2, 2, generator=generator).sort(dim=1).values
        boxes = (corners * torch.tensor([width, height])).flatten(1)
        instances = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([1, 4]))
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances})
    return batch


def without_objects(batch):
    for record in batch:
        record["instances"] = record["instances"][:0]
    return batch


def features(model, batch):
    maps = model.backbone(model.preprocess_image(batch).tensor)
    return [maps[name] for name in model.in_features]


class Given(nn.Module):
    """Takes the place of transformers' backbone and returns given feature maps."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, pixel_values, pixel_mask):
        return [(each, None) for each in self.maps]


def transformers_model(model, maps):
    """Return transformers' whole model with the weights of ours, and given feature maps."""
    from transformers import RTDetrV2ForObjectDetection

    other = RTDetrV2ForObjectDetection(model.detr.config)
    other.model.encoder_input_proj = nn.ModuleList(
        nn.Sequential(nn.Conv2d(each.shape[1], 32, 1, bias=False), nn.BatchNorm2d(32)) for each in maps
    )
    other.model.backbone = Given(maps)
    other.model.load_state_dict(model.detr.state_dict())
    return other.train(model.training)


@pytest.mark.parametrize("size", [(64, 96), (128, 64)])
@torch.no_grad()
def test_outputs_equal_those_of_transformers(repo_root, size):
    model = build(repo_root).eval()
    for head in (model.detr.enc_bbox_head, *model.detr.decoder.bbox_embed):
        nn.init.normal_(head.layers[-1].weight)  # zero at the start, which would give the anchors
    maps = features(model, records(size, size))
    logits, boxes = model.predict(maps, torch.empty(0))
    outputs = transformers_model(model, maps)(torch.zeros(2, 3, *size))
    assert logits.shape == (2, 20, 5)
    assert logits.std() > 0.1
    print(f"RTDetr logits: difference {(logits - outputs.logits).abs().max():.2g}")
    torch.testing.assert_close(logits, outputs.logits, atol=1e-4, rtol=0)
    center, sides = outputs.pred_boxes.split(2, dim=-1)
    expected = torch.cat([center - sides / 2, center + sides / 2], dim=-1) * torch.tensor([*size[::-1]] * 2)
    print(f"RTDetr boxes: difference {(boxes - expected).abs().max():.2g}")
    torch.testing.assert_close(boxes, expected, atol=1e-2, rtol=0)


def test_losses_equal_those_of_transformers(repo_root):
    model = build(repo_root).train()
    batch = records((64, 96), (50, 70))
    maps = [each.detach() for each in features(model, batch)]
    targets = [record["instances"] for record in batch]
    state = {name: value.clone() for name, value in model.detr.state_dict().items()}
    torch.manual_seed(1)
    losses = model.losses(maps, torch.empty(0), targets)
    model.detr.load_state_dict(state)  # batch norms updated their statistics
    labels = []
    for target in targets:
        x0, y0, x1, y1 = (target.gt_boxes.tensor / torch.tensor([96, 64, 96, 64])).unbind(1)
        boxes = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=1)
        labels.append({"class_labels": target.gt_classes, "boxes": boxes})
    other = transformers_model(model, maps)
    torch.manual_seed(1)
    expected = other(torch.zeros(2, 3, 64, 96), labels=labels).loss_dict
    assert len(expected) == 3 * (2 + 1 + 2)  # two layers, the encoder, and two layers of denoising
    sums = {
        f"loss_{ours}{suffix}": sum(value for name, value in expected.items() if theirs in name and is_suffix(name))
        for theirs, ours in (("vfl", "cls"), ("bbox", "box_reg"), ("giou", "giou"))
        for suffix, is_suffix in (("", lambda name: "_dn_" not in name), ("_denoising", lambda name: "_dn_" in name))
    }
    assert losses.keys() == sums.keys()
    for name, value in losses.items():
        print(f"RTDetr {name}: {value:.6g}, difference {(value - sums[name]).abs():.2g}")
        torch.testing.assert_close(value, sums[name], atol=1e-4, rtol=0)
        assert value > 0.01, name


def test_every_weight_gets_a_gradient_and_every_batch_the_same_losses(repo_root):
    model = build(repo_root).train()
    found = {}
    for name, batch in {"objects": records((64, 64)), "none": without_objects(records((64, 64)))}.items():
        model.zero_grad()
        found[name] = model(batch)
        sum(found[name].values()).backward()
        assert [key for key, value in model.named_parameters() if value.grad is None] == []
    assert list(found["objects"]) == list(found["none"])
    assert found["none"]["loss_box_reg"] == 0 < found["none"]["loss_cls"]


def test_losses_are_nan_if_the_model_is(repo_root):
    model = build(repo_root).train()
    nn.init.constant_(model.detr.decoder.bbox_embed[0].layers[-1].bias, math.nan)
    losses = model(records((64, 64)))
    assert len(losses) == 6
    assert all(value.isnan() for value in losses.values())


def test_without_denoising_there_are_no_denoising_losses(repo_root):
    model = build(repo_root, "MODEL.RT_DETR.NUM_DENOISING", "0").train()
    assert list(model(records((64, 64)))) == ["loss_cls", "loss_box_reg", "loss_giou"]


def test_losses_are_divided_by_the_objects_of_all_processes(repo_root, monkeypatch):
    """With 2 objects here and 6 in the other process, the mean is 4, by which DDP's averaged gradients are divided."""
    model = build(repo_root).train()
    alone = model(records((64, 64)))
    model.load_state_dict(build(repo_root).state_dict())
    monkeypatch.setattr(rt_detr.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.add_(6))
    torch.manual_seed(0)
    shared = model(records((64, 64)))
    torch.testing.assert_close(shared["loss_giou"] * 2, alone["loss_giou"])


def test_starts_as_published(repo_root):
    """Scores of 0.01, boxes at the anchors, and batch norms with a scale of 1 (not transformers' 0.01)."""
    detr = build(repo_root).detr
    assert detr.enc_score_head.bias.sigmoid().tolist() == pytest.approx([0.01] * 5)
    assert detr.enc_bbox_head.layers[-1].weight.abs().max() == 0
    norms = [module for module in detr.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 20
    assert all(bool((norm.weight == 1).all()) for norm in norms)
    assert detr.encoder.lateral_convs[0].conv.weight.std() > 0.05
    # Each head of deformable attention looks in its own direction.
    assert detr.decoder.layers[0].encoder_attn.sampling_offsets.bias.std() > 1


@torch.no_grad()
def test_decoder_is_exact_under_autocast(repo_root):
    model = build(repo_root).eval()
    maps = features(model, records((64, 96)))
    with torch.autocast("cpu", torch.bfloat16):
        logits, boxes = model.predict(maps, torch.empty(0))
    assert (logits.dtype, boxes.dtype) == (torch.float32, torch.float32)
    centers = (boxes[0, :, :2] + boxes[0, :, 2:]) / 2
    # The first boxes are the anchors, which are in the centers of the cells of 8 pixels or more.
    torch.testing.assert_close(centers / 4, (centers / 4).round(), atol=1e-3, rtol=0)


def test_images_with_fewer_cells_than_queries_are_explained(repo_root):
    model = build(repo_root, "MODEL.RT_DETR.NUM_QUERIES", "22").eval()
    with pytest.raises(ConfigError, match=r"NUM_QUERIES = 22: images of 32x32 pixels have only 21 cells"):
        model(records((30, 20)))


def test_old_transformers_is_refused(repo_root, monkeypatch):
    monkeypatch.setattr(extras, "version", lambda name: "5.0.0")
    expected = r"RT-DETRv2 needs transformers>=5\.20, but 5\.0\.0 is installed\. Run pip install 'pvt_det\[detr\]'"
    with pytest.raises(ConfigError, match=expected):
        build(repo_root)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("MODEL.RT_DETR.IN_FEATURES", "['stage3', 'stage4']"), "IN_FEATURES.*expected three feature maps"),
        (("MODEL.RT_DETR.IN_FEATURES", "['stage2', 'stage4', 'stage3']"), "IN_FEATURES.*in this order"),
        (("MODEL.RT_DETR.NUM_HEADS", "5"), r"NUM_HEADS = 5: expected a divisor of MODEL.RT_DETR.HIDDEN_DIM, 32"),
        (("MODEL.RT_DETR.HIDDEN_DIM", "30"), "HIDDEN_DIM"),
        (("MODEL.RT_DETR.NUM_QUERY", "3"), "Did you mean MODEL.RT_DETR.NUM_QUERIES"),
        (("MODEL.MASK_ON", "True"), "MODEL.MASK_ON = True: expected False for MODEL.META_ARCHITECTURE PVTRTDETR"),
        (("SOLVER.BACKBONE_MULTIPLIER", "-1"), "BACKBONE_MULTIPLIER"),
    ],
)
def test_wrong_values_are_explained(repo_root, words, message):
    with pytest.raises(ConfigError, match=message):
        load_config(repo_root / "configs/rt_detr_pvt_v2_b2.yaml", [*TINY, *words])
