"""hotcoco and pycocotools give the same numbers, and match the published ones on COCO's reference example."""

import json

import numpy as np
import pytest
from hotcoco import mask as mask_util

from pvt_det.evaluation.detections import Detections
from pvt_det.evaluation.ground_truth import GroundTruth, check_ground_truth
from pvt_det.evaluation.metrics import evaluate_hotcoco, evaluate_pycocotools

SIDE = 160


def reference(folder, task):
    truth = check_ground_truth(folder / "instances_val2014_100.json")
    classes = {category: number for number, category in enumerate(truth.category_ids.tolist())}
    by_image = {}
    for result in json.loads((folder / f"instances_val2014_fake{task}100_results.json").read_text()):
        by_image.setdefault(result["image_id"], []).append(result)
    detections = [
        Detections(
            image["id"],
            np.array([r.get("bbox", [0, 0, 0, 0]) for r in found]).reshape(-1, 4),
            np.array([r["score"] for r in found]),
            np.array([classes[r["category_id"]] for r in found], dtype=np.int64),
            [r["segmentation"]["counts"].encode() for r in found] if task == "segm" else None,
            (image["height"], image["width"]),
        )
        for image in truth.images
        for found in [by_image.get(image["id"], [])]
    ]
    return truth, detections


@pytest.mark.parametrize(("task", "published"), [("bbox", (0.505, 0.697, 0.573)), ("segm", (0.320, 0.562, 0.299))])
def test_coco_reference(shared_dir, task, published):
    truth, detections = reference(shared_dir / "data/coco_eval_reference", task)
    ours, theirs = (evaluate(truth, detections, task) for evaluate in (evaluate_hotcoco, evaluate_pycocotools))
    assert tuple(ours.stats[:3].round(3)) == published
    np.testing.assert_allclose(ours.stats, theirs.stats, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.class_ap, theirs.class_ap, rtol=0, atol=1e-9)


def box_mask(box):
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    x, y, w, h = np.round(box).astype(int)
    mask[max(y, 0) : y + h, max(x, 0) : x + w] = 1
    return mask_util.encode(mask)


def random_case(seed, images=6, objects=40, found=40):
    """Random case with crowds, tied scores, empty images, objects of all sizes and ids that start at 0."""
    generator = np.random.default_rng(seed)

    def boxes(number):
        corner = generator.uniform(0, SIDE - 4, (number, 2))
        # From small (under 32² pixels in COCO) to large (over 96²).
        return np.hstack([corner, np.minimum(generator.choice([8, 40, 120], (number, 1)), SIDE - corner)])

    truth_boxes = boxes(objects)
    annotations = [
        {
            "id": number,
            "image_id": int(generator.integers(images - 1)),
            "category_id": int(generator.integers(1, 4)) * 7,
            "bbox": box.tolist(),
            "area": float(box[2] * box[3]),
            "iscrowd": int(generator.random() < 0.15),
            "segmentation": box_mask(box),
        }
        for number, box in enumerate(truth_boxes)
    ]
    truth = GroundTruth(
        [{"id": i, "width": SIDE, "height": SIDE} for i in range(images)],
        annotations,
        [{"id": 7 * c, "name": f"class {c}"} for c in range(1, 5)],
    )
    detections = []
    for image in range(images):
        near = [a for a in annotations if a["image_id"] == image for _ in range(2)]
        near_boxes = np.array([a["bbox"] for a in near]).reshape(-1, 4) + generator.normal(0, 2, (len(near), 4))
        near_boxes[:, 2:] = np.maximum(near_boxes[:, 2:], 1)
        all_boxes = np.vstack([near_boxes, boxes(0 if image == 1 else found)]).astype(np.float32)
        classes = [a["category_id"] // 7 - 1 for a in near] + generator.integers(
            0, 4, len(all_boxes) - len(near)
        ).tolist()
        scores = generator.choice([0.1, 0.3, 0.5, 0.7, 0.9], len(all_boxes)).astype(np.float32)
        masks = [box_mask(box)["counts"] for box in all_boxes]
        detections.append(Detections(image, all_boxes, scores, np.array(classes, np.int64), masks, (SIDE, SIDE)))
    return truth, detections


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_random_cases_agree(seed, task):
    truth, detections = random_case(seed, objects=40 if seed % 4 else 3, found=(0, 20, 130)[seed % 3])
    limit = 300 if seed % 2 else 100
    ours, theirs = (evaluate(truth, detections, task, limit) for evaluate in (evaluate_hotcoco, evaluate_pycocotools))
    np.testing.assert_allclose(ours.stats, theirs.stats, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.class_ap, theirs.class_ap, rtol=0, atol=1e-9)


@pytest.mark.parametrize("evaluate", [evaluate_hotcoco, evaluate_pycocotools])
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_no_detections_give_zero_ap(evaluate, task):
    truth, detections = random_case(0)
    empty = [
        Detections(d.image_id, d.boxes[:0], d.scores[:0], d.classes[:0], [] if task == "segm" else None, d.size)
        for d in detections
    ]
    values = evaluate(truth, empty, task).as_percent([c["name"] for c in truth.categories])
    assert values["AP"] == values["AP50"] == values["APs"] == values["AR100"] == values["AP-class 1"] == 0
    # Class 4 has no objects.
    assert np.isnan(values["AP-class 4"])
    assert len(values) == 16


def test_detections_beyond_100_count_with_higher_limit():
    """101 false detections rank above 50 true ones."""
    boxes = np.array([[x * 12.0, y * 12.0, 10, 10] for y in range(5) for x in range(10)])
    truth = GroundTruth(
        [{"id": 1, "width": SIDE, "height": SIDE}],
        [{"image_id": 1, "category_id": 1, "bbox": b.tolist(), "area": 100.0, "iscrowd": 0} for b in boxes],
        [{"id": 1, "name": "thing"}],
    )
    false = np.tile([[130.0, 130, 20, 20]], (101, 1))
    scores = np.concatenate([np.full(101, 0.9), np.full(50, 0.5)])
    one = [Detections(1, np.vstack([false, boxes]), scores, np.zeros(151, np.int64), None, (SIDE, SIDE))]
    for evaluate in (evaluate_hotcoco, evaluate_pycocotools):
        assert evaluate(truth, one, "bbox", 100).stats[0] == 0
        wide = evaluate(truth, one, "bbox", 300)
        assert wide.stats[8] == 1
        assert wide.stats[0] == pytest.approx(0.25, abs=0.1)
        assert "AR300" in wide.as_percent(["thing"])
