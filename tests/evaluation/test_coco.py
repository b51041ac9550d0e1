"""The COCO evaluator: metrics, errors and the results file."""

import json
from pathlib import Path

import hotcoco
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from pvt_det.config import get_config
from pvt_det.data.coco import annotations
from pvt_det.data.coco.cache import forget_annotations
from pvt_det.data.coco.registration import register_coco
from pvt_det.errors import ConfigError
from pvt_det.evaluation import coco
from pvt_det.evaluation.coco import COCOEvaluator, build_evaluator
from pvt_det.evaluation.detections import Detections, pack_detections, read_results, write_results
from pvt_det.evaluation.ground_truth import read_ground_truth
from pvt_det.evaluation.metrics import evaluate_hotcoco

SIDE = 64
BOX = [8, 8, 24, 16]  # x, y, width, height


@pytest.fixture
def dataset(tmp_path, request):
    """Register three images with one box and mask each, and category ids 3 and 9."""
    polygon = [[8, 8, 32, 8, 32, 24, 8, 24]]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(3)],
        "categories": [{"id": 9, "name": "cup"}, {"id": 3, "name": "bowl"}],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": (3, 9, 3)[i],
                "bbox": BOX,
                "area": 384,
                "iscrowd": 0,
                "segmentation": polygon,
            }
            for i in range(3)
        ],
    }
    json_file = tmp_path / "set.json"
    json_file.write_text(json.dumps(content))
    register_coco(request.node.nodeid, json_file, tmp_path)
    return request.node.nodeid


def perfect(classes, *, masks=False):
    instances = Instances((SIDE, SIDE))
    x, y, w, h = BOX
    instances.pred_boxes = Boxes(torch.tensor([[x, y, x + w, y + h]] * len(classes), dtype=torch.float32))
    instances.scores = torch.full((len(classes),), 0.9)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    if masks:
        instances.pred_masks = torch.zeros(len(classes), SIDE, SIDE, dtype=torch.bool)
        instances.pred_masks[:, y : y + h, x : x + w] = True
    return {"instances": instances}


@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_perfect_detections(dataset, tmp_path, evaluator):
    cfg = get_config()
    cfg.MODEL.MASK_ON = True
    cfg.TEST.EVALUATOR = evaluator
    coco_evaluator = build_evaluator(cfg, dataset, tmp_path / "out")
    for image_id, label in ((2, 0), (0, 0), (1, 1)):  # bowl has the lower id, so it is class 0
        coco_evaluator.process([{"image_id": image_id}], [perfect([label], masks=True)])
    results = coco_evaluator.evaluate()
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100)
        assert results[task]["AP-bowl"] == pytest.approx(100)
        assert results[task]["AP-cup"] == pytest.approx(100)
        assert results[task]["APs"] == pytest.approx(100)
        assert np.isnan(results[task]["APl"])
    written = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    assert [(r["image_id"], r["category_id"], r["bbox"]) for r in written] == [(0, 3, BOX), (1, 9, BOX), (2, 3, BOX)]
    assert hotcoco.mask.area(written[0]["segmentation"]) == 384


def test_metrics_of_the_written_files_are_the_same_to_the_last_digit(dataset, tmp_path):
    cfg = get_config()
    cfg.MODEL.MASK_ON = True
    coco_evaluator = build_evaluator(cfg, dataset, tmp_path)
    generator = torch.Generator().manual_seed(0)
    for image_id in range(3):
        found = perfect([0, 1, 0, 1], masks=True)
        found["instances"].pred_boxes.tensor += torch.rand(4, 4, generator=generator) * 6
        found["instances"].scores = torch.rand(4, generator=generator)
        found["instances"].pred_masks &= torch.rand(4, SIDE, SIDE, generator=generator) > 0.2
        coco_evaluator.process([{"image_id": image_id}], [found])
    results = coco_evaluator.evaluate()
    truth = read_ground_truth(tmp_path / "ground_truth.json")
    detections = read_results(tmp_path / "coco_instances_results.json", truth)
    for task in ("bbox", "segm"):
        again = evaluate_hotcoco(truth.with_masks(), detections, task).as_percent(truth.class_names)
        np.testing.assert_equal(again, results[task])
        assert 0 < again["AP"] < 100


def test_ground_truth_is_read_once_per_run(dataset, tmp_path, request, monkeypatch):
    """Also that of a data set that other code registered, without an annotation file."""
    converted = f"{request.node.nodeid}: converted"
    DatasetCatalog.register(converted, lambda: DatasetCatalog.get(dataset))
    MetadataCatalog.get(converted).thing_classes = ["bowl", "cup"]
    read, files = annotations.read_json, []
    monkeypatch.setattr(annotations, "read_json", lambda file: files.append(Path(file).name) or read(file))
    forget_annotations(tmp_path / "set.json")
    for name in (dataset, converted, dataset, converted):
        evaluator = COCOEvaluator(name, ("bbox",), tmp_path)
        for image_id, label in enumerate((0, 1, 0)):
            evaluator.process([{"image_id": image_id}], [perfect([label])])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    assert len(files) == 2


def test_other_processes_do_not_read_the_ground_truth(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(coco.comm, "is_main_process", lambda: False)
    monkeypatch.setattr(coco, "load_ground_truth", lambda metadata: pytest.fail("it was read"))
    evaluator = COCOEvaluator(dataset, ("bbox",), tmp_path)
    evaluator.process([{"image_id": 0}], [perfect([0])])
    assert evaluator.evaluate() == {}


def test_unreadable_image_is_excluded(dataset, tmp_path, caplog):
    coco_evaluator = COCOEvaluator(dataset, ("bbox",), tmp_path)
    coco_evaluator.process([{"image_id": 0}], [perfect([0])])
    coco_evaluator.process([{"image_id": 1, "unreadable": True}], [perfect([0])])
    coco_evaluator.process([{"image_id": 2}], [perfect([0])])
    assert coco_evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    assert "1 image could not be read and is excluded" in caplog.text


def test_too_many_classes_are_rejected(dataset, tmp_path):
    coco_evaluator = COCOEvaluator(dataset, ("bbox",), tmp_path)
    coco_evaluator.process([{"image_id": i} for i in range(3)], [perfect([2])] * 3)
    with pytest.raises(ConfigError, match="NUM_CLASSES to 2"):
        coco_evaluator.evaluate()


def test_limit_on_detections_is_logged(dataset, tmp_path, caplog):
    cfg = get_config()
    cfg.TEST.DETECTIONS_PER_IMAGE = 300
    coco_evaluator = build_evaluator(cfg, dataset, tmp_path)
    coco_evaluator.process([{"image_id": i} for i in range(3)], [perfect([0])] * 3)
    with caplog.at_level("INFO"):
        assert "AR300" in coco_evaluator.evaluate()["bbox"]
    assert "at most 300 per image" in caplog.text


def test_unknown_evaluator_is_rejected(dataset, tmp_path):
    with pytest.raises(ConfigError, match="hotcoco, pycocotools"):
        COCOEvaluator(dataset, ("bbox",), tmp_path, evaluator="other")


def test_masks_are_encoded_in_coco_format():
    generator = torch.Generator().manual_seed(0)
    instances = perfect([0, 0, 0])["instances"]
    instances = Instances((5, 7), **instances.get_fields())
    instances.pred_masks = torch.rand(3, 5, 7, generator=generator) > 0.5
    packed = pack_detections(instances, 1)
    decoded = hotcoco.mask.decode(packed.rles())
    assert (decoded.transpose(2, 0, 1) == instances.pred_masks.numpy()).all()


def test_results_file_is_written_atomically(tmp_path):
    def failing():
        yield Detections(1, np.zeros((1, 4)), np.ones(1), np.zeros(1, np.int64), None, (SIDE, SIDE))
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_results(tmp_path / "results.json", failing(), np.array([1]))
    assert list(tmp_path.iterdir()) == []
