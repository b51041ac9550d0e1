"""An evaluation returns a correct metric or raises an error."""

from __future__ import annotations

import json
import math

import pytest
import torch
from detectron2.structures import Boxes, Instances

from pvt_det.data.coco.registration import register_coco
from pvt_det.errors import DataError, NumericError
from pvt_det.evaluation.coco import COCOEvaluator
from pvt_det.evaluation.detections import pack_detections
from pvt_det.modeling.rcnn import paste_masks
from tests.faults.conftest import SIDE
from tests.modeling.conftest import build, make_batch

EMPTY = Instances((SIDE, SIDE), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
EMPTY.pred_classes = torch.zeros(0, dtype=torch.int64)
EMPTY.pred_masks = torch.zeros(0, SIDE, SIDE, dtype=torch.bool)


@pytest.fixture
def make_evaluator(tiny_set, tmp_path, request):
    def make(evaluator: str = "hotcoco") -> COCOEvaluator:
        register_coco(request.node.nodeid, tiny_set.json_file, tiny_set.folder)
        return COCOEvaluator(request.node.nodeid, ("bbox", "segm"), tmp_path, evaluator=evaluator)

    return make


@pytest.mark.parametrize("field", ["box", "score"])
def test_F21_nonfinite_predictions(field):
    boxes, scores = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([0.9])
    (boxes[0] if field == "box" else scores)[0] = math.nan
    found = Instances((SIDE, SIDE), pred_boxes=Boxes(boxes), scores=scores, pred_classes=torch.tensor([0]))
    with pytest.raises(NumericError, match=r"image 7: .*NaN or infinite.*earlier checkpoint"):
        pack_detections(found, 7)


@pytest.mark.parametrize(("name", "part"), [("retinanet", "head.bbox_pred"), ("mask_rcnn", "roi_heads.box_predictor")])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_F21_diverged_model_is_an_error_instead_of_no_detections(name, part, value):
    """Detectron2 drops nonfinite boxes and scores, and returns an empty result."""
    model = build(f"{name}_pvt_v2_b0", "MODEL.FPN.OUT_CHANNELS", "32").eval()
    module = model.get_submodule(part)
    bias = (module.bbox_pred if name == "mask_rcnn" else module).bias
    with torch.no_grad():
        bias[0] = value
        with pytest.raises(NumericError, match="NaN or infinite"):
            model(make_batch([(SIDE, SIDE)]))


def test_F21_nonfinite_masks():
    masks = torch.zeros(1, 28, 28)
    masks[0, 3, 3] = math.nan
    with pytest.raises(NumericError, match="masks that are NaN"):
        paste_masks(masks, torch.tensor([[1.0, 2.0, 30.0, 40.0]]), (SIDE, SIDE))


@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_F32_no_predictions_give_zero_for_all_metrics(make_evaluator, evaluator, tmp_path):
    found = make_evaluator(evaluator)
    found.process([{"image_id": i} for i in range(1, 5)], [{"instances": EMPTY}] * 4)
    results = found.evaluate()
    rows = {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl", "AP-bowl", "AP-cup"}
    for task in ("bbox", "segm"):
        assert results[task].keys() == rows
        unmeasured = {name for name, value in results[task].items() if math.isnan(value)}
        assert unmeasured == {"APm", "APl", "ARm", "ARl"}  # no objects of these sizes
        assert {value for name, value in results[task].items() if name not in unmeasured} == {0.0}
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((1, 2, 3), r"1 is missing \(ids 4\)"),
        ((1, 2, 3, 4, 4), r"1 is repeated \(ids 4\)"),
        ((1, 2, 3, 4, 7), r"1 does not belong to this data set \(ids 7\)"),
    ],
    ids=["missing", "twice", "foreign"],
)
def test_F33_missing_or_duplicate_images(make_evaluator, tmp_path, images, message):
    found = make_evaluator()
    found.process([{"image_id": i} for i in images], [{"instances": EMPTY}] * len(images))
    with pytest.raises(DataError, match=message):
        found.evaluate()
    assert not (tmp_path / "coco_instances_results.json").exists()


def test_F36_nonfinite_weights(refused, tiny_set, tiny_cfg, tmp_path):
    from detectron2.modeling import build_model

    state = build_model(tiny_cfg(tmp_path, MODEL__RETINANET__NUM_CLASSES=2)).state_dict()
    state["head.cls_score.bias"][3] = math.nan
    torch.save({"model": state}, tmp_path / "nan.pth")
    words = {"MODEL__WEIGHTS": tmp_path / "nan.pth", **tiny_set.words("VAL")}
    parts = (str(tmp_path / "nan.pth"), "NaN or infinity in 1 tensor: head.cls_score.bias")
    refused(5, *parts, options=("--eval-only",), **words)
