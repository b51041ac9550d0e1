"""Config values that make no sense end the run with exit code 2 and a message that says what was expected."""

from __future__ import annotations

import pytest

from pvt_det import Predictor
from pvt_det.config import load_config
from pvt_det.errors import ConfigError
from tests.drills.config_values import run_config_values

REVERSED = ["p7", "p6", "p5", "p4", "p3"]
FALLING = [[512], [256], [128], [64], [32]]


@pytest.fixture
def refused_value(refused, repo_root):
    """Check that a value is refused with a message that names the key, the value and what was expected."""

    def expect(config: str, key: str, value: object, shown: str, *expected: str, **changes: object) -> None:
        path = repo_root / f"configs/{config}.yaml"
        parts = [f"{path}: {key} = {shown}: expected ", *expected]
        refused(2, *parts, options=("--config-file", path), **changes, **{key.replace(".", "__"): value})

    return expect


@pytest.mark.parametrize(
    ("key", "value", "shown", "expected"),
    [
        ("SOLVER.BASE_LR", 0, "0.0", "a number, above 0 and at most 10"),
        ("SOLVER.GAMMA", 0, "0.0", "above 0 and at most 1"),
        ("SOLVER.GAMMA", 1.5, "1.5", "above 0 and at most 1"),
        ("SOLVER.STEPS", [3, 9], "(3, 9)", "at most SOLVER.MAX_ITER, 4"),
        ("SOLVER.STEPS", [3, 2], "(3, 2)", "in strictly ascending order"),
        ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", 1e9, "1000000000.0", "above 0 and less than 1"),
        ("MODEL.RETINANET.BBOX_REG_WEIGHTS", [0, 0, 0, 0], "(0.0, 0.0, 0.0, 0.0)", "4 numbers, above 0"),
        ("MODEL.RETINANET.BBOX_REG_WEIGHTS", [1, 1], "(1.0, 1.0)", "4 numbers, above 0"),
        ("MODEL.RETINANET.SCORE_THRESH_TEST", 2, "2.0", "0 or more and less than 1"),
        ("MODEL.RETINANET.NMS_THRESH_TEST", 0, "0.0", "above 0 and at most 1"),
        ("MODEL.RETINANET.TOPK_CANDIDATES_TEST", 0, "0", "an integer, 1 to"),
        ("MODEL.RETINANET.IOU_LABELS", [1, -1, 0], "[1, -1, 0]", "MODEL.RETINANET.IOU_THRESHOLDS, [0.4, 0.5]"),
        ("MODEL.RETINANET.IN_FEATURES", REVERSED, str(REVERSED), "p3, p4, p5, p6, p7, each once, in this order"),
        ("MODEL.FPN.IN_FEATURES", ["stage4", "stage3"], "['stage4', 'stage3']", "in this order"),
        ("MODEL.PIXEL_MEAN", [1e9, 0, 0], "[1000000000.0, 0.0, 0.0]", "3 numbers, 0 to 255"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", FALLING, str(FALLING), "sizes that do not fall"),
        ("INPUT.CROP.SIZE", [300, 300], "[300.0, 300.0]", "fractions of the sides"),
        ("SEED", -7, "-7", "an integer, -1 to"),
        ("TEST.BEST_METRIC", "XX", "'XX'", "task/name"),
    ],
)
def test_F59_value_that_makes_no_sense(refused_value, key, value, shown, expected):
    """Training accepted these values without a message, and ended with a useless model."""
    refused_value("retinanet_pvt_tiny", key, value, shown, expected)


def test_F59_values_that_do_not_fit_together(refused_value):
    sgd = {"SOLVER__OPTIMIZER": "sgd", "SOLVER__MOMENTUM": 0.0}
    refused_value("retinanet_pvt_tiny", "SOLVER.NESTEROV", True, "True", "False", **sgd)
    cosine = {"SOLVER__LR_SCHEDULER_NAME": "WarmupCosineLR", "SOLVER__BASE_LR": 0.1}
    refused_value("retinanet_pvt_tiny", "SOLVER.BASE_LR_END", 1.0, "1.0", "at most SOLVER.BASE_LR, 0.1", **cosine)


@pytest.mark.parametrize(
    ("config", "key", "value", "expected"),
    [
        ("retinanet_pvt_tiny", "MODEL.FPN.NORM", "XX", "one of '', BN, SyncBN"),
        ("retinanet_pvt_tiny", "MODEL.RETINANET.NORM", "XX", "one of '', BN, SyncBN"),
        ("retinanet_pvt_tiny", "MODEL.RETINANET.PRIOR_PROB", 1.5, "a number, above 0 and less than 1"),
        ("retinanet_pvt_tiny", "MODEL.FPN.FUSE_TYPE", "XX", "one of sum, avg"),
        ("retinanet_pvt_tiny", "MODEL.FPN.IN_FEATURES", ["p3", "p4", "p5"], "stage2, stage3, stage4"),
        ("retinanet_pvt_tiny", "MODEL.RETINANET.IN_FEATURES", ["p3", "p9"], "p3, p4, p5, p6, p7"),
        ("atss_pvt_v2_b2_3x", "MODEL.ATSS.IN_FEATURES", ["p3", "p9"], "p3, p4, p5, p6, p7"),
        ("atss_pvt_v2_b2_3x", "MODEL.ATSS.NORM", "BN", "one of GN, ''"),
        ("atss_pvt_v2_b2_3x", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, 2.0]], "lists of one value: ATSS has one"),
        ("gfl_pvt_v2_b2_3x", "MODEL.FPN.OUT_CHANNELS", 80, "a multiple of 32"),
        ("gfl_pvt_v2_b2_3x", "MODEL.FPN.P6_INPUT", "p5", "one of backbone, fpn"),
        ("retinanet_R_18", "MODEL.RESNETS.DEPTH", 19, "one of 18, 34, 50, 101, 152"),
        ("retinanet_R_18", "MODEL.RESNETS.RES2_OUT_CHANNELS", 256, "64 for MODEL.RESNETS.DEPTH 18"),
        ("mask_rcnn_pvt_tiny", "MODEL.ROI_BOX_HEAD.NAME", "", "a box head for MODEL.ROI_HEADS.NAME PVTROIHeads"),
        ("mask_rcnn_pvt_tiny", "MODEL.ROI_BOX_HEAD.NAME", "XX", "one of FastRCNNConvFCHead"),
        ("mask_rcnn_pvt_tiny", "MODEL.ROI_BOX_HEAD.NUM_FC", 0, "1 or more if NUM_CONV is 0"),
        ("mask_rcnn_pvt_tiny", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "XX", "one of ROIAlignV2"),
        ("mask_rcnn_pvt_tiny", "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p4"], "half the size"),
        ("mask_rcnn_pvt_tiny", "MODEL.RPN.IOU_THRESHOLDS", [0.7, 0.3], "in ascending order"),
        ("mask_rcnn_pvt_tiny", "MODEL.RPN.BBOX_REG_LOSS_TYPE", "l3", "one of smooth_l1, giou"),
        ("cascade_mask_rcnn_pvt_small", "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True, "False for MODEL.ROI_"),
        ("cascade_mask_rcnn_pvt_small", "MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.6], "[0.5], the first value of"),
        ("semantic_fpn_pvt_tiny", "MODEL.SEM_SEG_HEAD.CONVS_DIM", 40, "a multiple of 32"),
        ("semantic_fpn_pvt_tiny", "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8, "at most 4, the stride of p2"),
    ],
)
def test_F60_value_that_a_builder_cannot_use(refused_value, config, key, value, expected):
    """Detectron2's constructors ended with a traceback."""
    refused_value(config, key, value, repr(value), expected)


def test_F60_labels_and_weights_of_a_wrong_length(refused_value):
    thresholds = {"MODEL__ROI_HEADS__IOU_THRESHOLDS": [0.3, 0.5]}
    expected = "for MODEL.ROI_HEADS.IOU_THRESHOLDS, [0.3, 0.5]"
    refused_value("mask_rcnn_R_50_d2", "MODEL.ROI_HEADS.IOU_LABELS", [0, 1], "[0, 1]", expected, **thresholds)
    expected = "one list for each value of MODEL.ROI_BOX_CASCADE_HEAD.IOUS, (0.5, 0.6, 0.7)"
    weights = [[10, 10, 5, 5]]
    key = "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"
    refused_value("cascade_mask_rcnn_pvt_small", key, weights, "((10.0, 10.0, 5.0, 5.0),)", expected)
    key = "MODEL.ROI_BOX_CASCADE_HEAD.LOSS_WEIGHTS"
    refused_value("cascade_mask_rcnn_pvt_small", key, [1, 0.5], "(1.0, 0.5)", expected.replace("list", "value", 1))


def test_F60_boxes_per_class_in_detectron2s_cascade(refused_value):
    key, heads = "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", {"MODEL__ROI_HEADS__NAME": "CascadeROIHeads"}
    refused_value("cascade_mask_rcnn_pvt_small", key, False, "False", "True for MODEL.ROI_HEADS.NAME Casc", **heads)


def test_F60_no_absurd_value_ends_in_a_traceback():
    """`python -m tests.drills config-values` tries all of them."""
    outcome = run_config_values(300)
    assert outcome.tried == 300
    assert not outcome.failures, outcome


def test_F59_run_with_an_old_schedule_can_still_be_used(untrained_run, tmp_path):
    """Earlier versions accepted STEPS beyond MAX_ITER, and wrote them into the run's config.yaml."""
    text = (untrained_run / "config.yaml").read_text().replace("  STEPS:\n  - 3\n", "  STEPS:\n  - 9\n")
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "model_final.pth").write_bytes((untrained_run / "model_final.pth").read_bytes())
    with pytest.raises(ConfigError, match=r"SOLVER\.STEPS = \(9,\): expected \[\] or iterations of at most"):
        load_config(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", training=False).SOLVER.STEPS == (9,)
    assert len(Predictor(tmp_path / "config.yaml", tmp_path / "model_final.pth").class_names) == 4
