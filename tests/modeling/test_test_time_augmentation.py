"""Test-time augmentation: views of an image, and merging of their detections."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from pvt_det.api import evaluate
from pvt_det.config import get_config, load_config
from pvt_det.data.augmentation.transforms import build_tta_resizes
from pvt_det.errors import ConfigError, NumericError
from pvt_det.inference.predictor import Predictor
from pvt_det.modeling.test_time_augmentation import BoxDetectorWithTTA, TTAMapper, build_tta


@pytest.fixture
def cfg(repo_root):
    words = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 96)", "TEST.AUG.MAX_SIZE", "150"]
    return load_config(repo_root / "configs/retinanet_pvt_tiny.yaml", [*words, "MODEL.DEVICE", "cpu"])


def record(box=(20, 8, 40, 32)):
    """Create a black image of 80×48 pixels with one white box."""
    image = torch.zeros(3, 48, 80, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    image[:, y1:y2, x1:x2] = 255
    return {"image": image, "height": 48, "width": 80}


class WhiteFinder(nn.Module):
    """Detects the box of white pixels. Its score is proportional to the height of the image."""

    def forward(self, views):
        return [{"instances": self.find(view["image"])} for view in views]

    def find(self, image):
        rows, columns = (image[0] > 128).nonzero(as_tuple=True)
        box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()[None]
        score = torch.tensor([image.shape[1] / 100])
        return Instances(tuple(image.shape[1:]), pred_boxes=Boxes(box), scores=score, pred_classes=torch.tensor([1]))


def test_views_have_the_configured_sizes_and_are_flipped(cfg):
    views = TTAMapper(build_tta_resizes(cfg), flip=True)(record())
    # MAX_SIZE limits the width of the second size from 160 to 150.
    assert [tuple(view["image"].shape) for view in views] == [(3, 64, 107)] * 2 + [(3, 90, 150)] * 2
    assert torch.equal(views[1]["image"], views[0]["image"].flip(2))


def test_boxes_of_all_views_are_merged(cfg):
    mapper = TTAMapper(build_tta_resizes(cfg), flip=True)
    model = BoxDetectorWithTTA(WhiteFinder(), mapper, nms_threshold=0.5, max_detections=100)
    outputs = model([record(), record((60, 30, 80, 48))])
    for output, expected in zip(outputs, ([20, 8, 40, 32], [60, 30, 80, 48]), strict=True):
        instances = output["instances"]
        assert instances.image_size == (48, 80)
        assert instances.pred_classes.tolist() == [1]
        assert instances.scores.tolist() == pytest.approx([0.90])
        torch.testing.assert_close(instances.pred_boxes.tensor, torch.tensor([expected]).float(), atol=0.6, rtol=0)


def test_single_view_finds_no_new_objects(untrained_run, shapes):
    file = shapes / "val/000002.png"
    one = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", "False"]
    settings = {"device": "cpu", "score_threshold": None}
    plain, augmented = (Predictor(untrained_run, **settings, overrides=words)(file) for words in ([], one))
    # Boxes clipped to the image overlap more than before, so more of them are merged.
    assert len(plain) / 2 < len(augmented) <= len(plain)
    plain_scores = {round(score, 5) for score in plain.scores.tolist()}
    assert {round(score, 5) for score in augmented.scores.tolist()} <= plain_scores
    torch.testing.assert_close(plain.pred_boxes.tensor[0], augmented.pred_boxes.tensor[0], atol=1e-3, rtol=0)
    more = [*one[:2], "TEST.AUG.MIN_SIZES", "(64, 96)"]
    found = Predictor(untrained_run, **settings, overrides=more)(file)
    assert 0 < len(found) <= 100
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.scores.tolist() != plain.scores.tolist()


def test_evaluation_uses_test_time_augmentation(untrained_run, tmp_path):
    config, weights = untrained_run / "config.yaml", str(untrained_run / "model_final.pth")

    def metrics(*words):
        cfg = load_config(config, ["MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / str(len(words))), *words])
        return evaluate(cfg)["bbox"]

    assert metrics("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 96)") != metrics()


@pytest.mark.parametrize("name", ["mask_rcnn_pvt_tiny", "cascade_mask_rcnn_pvt_small"])
def test_mask_rcnn_with_test_time_augmentation(repo_root, monkeypatch, name):
    small = ["MODEL.PVT.VARIANT", "pvt_v2_b0", "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"]
    small += ["MODEL.ROI_BOX_HEAD.CONV_DIM", "16", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"]
    scores = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.DEVICE", "cpu", "TEST.DETECTIONS_PER_IMAGE", "5"]
    views = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"]
    cfg = load_config(repo_root / f"configs/{name}.yaml", [*small, *scores, *views])
    test_cfg, model = build_tta(cfg, build_model(cfg).eval(), build_tta_resizes(cfg))
    assert (test_cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST) == (0, 800)
    with torch.no_grad():
        found = model([record()])[0]["instances"]
    assert len(found) == 5
    assert tuple(found.pred_masks.shape) == (5, 48, 80)

    # After an error in one image, the next images still get masks.
    def fail(*_, **__):
        assert not model.model.roi_heads.mask_on
        raise NumericError("diverged")

    monkeypatch.setattr(model.model, "inference", fail)
    with pytest.raises(NumericError):
        model([record()])
    assert model.model.roi_heads.mask_on


@pytest.mark.parametrize("head", ["atss", "gfl"])
def test_adaptive_detectors_with_test_time_augmentation(build, head):
    model = build(f"{head}_pvt_v2_b2_3x", "MODEL.PVT.VARIANT", "pvt_v2_b0", f"MODEL.{head.upper()}.PRIOR_PROB", "0.5")
    cfg = get_config()
    cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES = True, (32, 64)
    _, views = build_tta(cfg, model.eval(), build_tta_resizes(cfg))
    with torch.no_grad():
        found = views([record()])[0]["instances"]
    assert views.nms_threshold == 0.6
    assert len(found) > 5
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_unsupported_models_and_sizes_are_refused(repo_root, cfg):
    semantic = load_config(repo_root / "configs/semantic_fpn_pvt_tiny.yaml", ["TEST.AUG.ENABLED", "True"])
    with pytest.raises(ConfigError, match="SemanticSegmentor does not support test-time augmentation"):
        build_tta(semantic, nn.Identity(), build_tta_resizes(semantic))
    cfg.TEST.AUG.MIN_SIZES = ()
    with pytest.raises(ConfigError, match=r"TEST\.AUG\.MIN_SIZES"):
        build_tta(cfg, nn.Identity(), build_tta_resizes(cfg))
