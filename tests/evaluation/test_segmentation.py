"""Semantic metrics compared with Detectron2, and panoptic metrics with a naive implementation."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from pvt_det.errors import DataError, NumericError
from pvt_det.evaluation.panoptic import PanopticEvaluator, id_to_rgb
from pvt_det.evaluation.semantic import SemanticEvaluator

SIDE = 24


@pytest.fixture
def registered():
    """Register data sets, and remove them after the test."""
    names = []

    def register(name: str, records: list[dict], **metadata) -> str:
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


# --- semantic --------------------------------------------------------------------------------------------------------
CLASSES = ["sky", "wall", "tree", "door", "lamp", "cat"]
SEMANTIC = {"stuff_classes": CLASSES, "ignore_label": 255}


@pytest.fixture
def label_maps(tmp_path, registered):
    """Five images with ignored pixels. "lamp" is only predicted, and "cat" is neither predicted nor annotated."""
    random = np.random.default_rng(0)
    records, inputs, outputs = [], [], []
    for i in range(5):
        truth = random.integers(0, 4, (SIDE, SIDE + i)).astype(np.uint8)
        truth[random.random(truth.shape) < 0.1] = 255
        Image.fromarray(truth).save(tmp_path / f"{i}.png")
        logits = torch.from_numpy(random.normal(size=(6, *truth.shape))).float()
        logits.scatter_add_(0, torch.from_numpy(truth % 6).long()[None], torch.full((1, *truth.shape), 1.5))
        logits[5] = -10
        records.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(tmp_path / f"{i}.png"), "image_id": i})
        inputs.append(records[-1] | {"true_labels": truth})
        outputs.append({"sem_seg": logits})
    name = registered("label_maps", records, **SEMANTIC)
    return SimpleNamespace(name=name, inputs=inputs, outputs=outputs)


def test_semantic_metrics_match_detectron2(label_maps):
    ours = SemanticEvaluator(label_maps.name)
    # The default loading function fails with NumPy 2.
    theirs = SemSegEvaluator(
        label_maps.name,
        distributed=False,
        sem_seg_loading_fn=lambda path, dtype: np.array(Image.open(path), dtype=dtype),
    )
    theirs.reset()
    for start, end in ((0, 2), (2, 5)):
        ours.process(label_maps.inputs[start:end], label_maps.outputs[start:end])
        theirs.process(label_maps.inputs[start:end], label_maps.outputs[start:end])
    found, expected = ours.evaluate()["sem_seg"], theirs.evaluate()["sem_seg"]
    expected = {name: value for name, value in expected.items() if "Boundary" not in name and "B-Iou" not in name}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, nan_ok=True, abs=1e-9), name
    assert 20 < found["mIoU"] < 80
    assert math.isnan(found["IoU-lamp"])
    assert found["mIoU"] == pytest.approx(np.nanmean([found[f"IoU-{name}"] for name in CLASSES]))


def test_reset_and_unreadable_images(label_maps, registered, caplog):
    evaluator = SemanticEvaluator(registered("two", [{"file_name": "a"}, {"file_name": "b"}], **SEMANTIC))
    evaluator.process(label_maps.inputs, label_maps.outputs)
    evaluator.reset()
    perfect = {"sem_seg": torch.nn.functional.one_hot(torch.arange(4)[None] % 4, 6).permute(2, 0, 1).float()}
    evaluator.process([{"file_name": "a", "true_labels": np.arange(4, dtype=np.uint8)[None]}], [perfect])
    evaluator.process([{"file_name": "b", "unreadable": True}], [{"sem_seg": torch.zeros(6, 1, 1)}])
    values = evaluator.evaluate()["sem_seg"]
    assert [values[name] for name in ("mIoU", "fwIoU", "mACC", "pACC")] == [100.0] * 4
    assert "1 image could not be read and is excluded" in caplog.text


def test_no_images_missing_label_map_and_nan_logits(label_maps, registered):
    assert math.isnan(SemanticEvaluator(registered("none", [], **SEMANTIC)).evaluate()["sem_seg"]["mIoU"])
    evaluator = SemanticEvaluator(label_maps.name)
    with pytest.raises(DataError, match=r"0\.jpg .* no label map"):
        evaluator.process([{"file_name": "0.jpg"}], label_maps.outputs[:1])
    label_maps.outputs[0]["sem_seg"][3, 2, 1] = float("nan")
    with pytest.raises(NumericError, match="NaN"):
        evaluator.process(label_maps.inputs[:1], label_maps.outputs[:1])


def test_every_image_must_be_evaluated_once_for_iou(label_maps):
    evaluator = SemanticEvaluator(label_maps.name)
    evaluator.process(label_maps.inputs[1:], label_maps.outputs[1:])
    with pytest.raises(DataError, match=r"of 5 images, 1 is missing \(files 0\.jpg\)"):
        evaluator.evaluate()
    evaluator.process(label_maps.inputs[:2], label_maps.outputs[:2])
    with pytest.raises(DataError, match=r"1 is repeated \(files 1\.jpg\)"):
        evaluator.evaluate()


def test_more_than_256_classes_do_not_wrap(registered):
    """Class 257 was counted as class 1."""
    name = registered("many", [{"file_name": "a"}], stuff_classes=[f"c{i}" for i in range(300)], ignore_label=255)
    evaluator = SemanticEvaluator(name)
    logits = torch.zeros(300, 2, 2)
    logits[257] = 1.0
    evaluator.process([{"file_name": "a", "true_labels": np.ones((2, 2), dtype=np.uint8)}], [{"sem_seg": logits}])
    assert evaluator.evaluate()["sem_seg"]["IoU-c1"] == 0.0


# --- panoptic --------------------------------------------------------------------------------------------------------
THINGS, STUFF = {3: 0, 7: 1}, {11: 1, 20: 2}  # category id → contiguous index
CATEGORIES = [{"id": id_, "name": f"c{id_}", "isthing": int(id_ in THINGS)} for id_ in sorted((*THINGS, *STUFF))]


def random_segments(random, first_id: int) -> tuple[np.ndarray, dict[int, int]]:
    """Return a map of rectangular segments (0 for none), and the category of every segment."""
    segments = np.full((SIDE, SIDE), first_id)
    for number in range(1, 6):
        y, x = random.integers(0, SIDE - 6, 2)
        h, w = random.integers(4, 12, 2)
        segments[y : y + h, x : x + w] = first_id + number
    segments[:2] = 0
    ids = [int(i) for i in np.unique(segments) if i]
    return segments, {i: int(random.choice([c["id"] for c in CATEGORIES])) for i in ids}


def disturbed(random, segments, categories):
    """Return a prediction: the truth shifted, with some categories changed and some segments missing."""
    moved = np.roll(segments, random.integers(0, 2), axis=1)
    ids = {i: n for n, i in enumerate(categories, start=300)}
    result = np.zeros_like(segments)
    found = {}
    for i, number in ids.items():
        if random.random() < 0.8:
            result[moved == i] = number
            found[number] = categories[i] if random.random() < 0.8 else 3
    return result, {i: c for i, c in found.items() if (result == i).any()}


def naive_pq(images) -> dict[int, tuple[float, int]]:
    """Compute PQ per category by the paper's definition, and the number of its segments."""
    totals = {}
    for category in (c["id"] for c in CATEGORIES):
        iou_sum, tp, fp, fn = 0.0, 0, 0, 0
        for (truth, truth_of), (found, found_of) in images:
            a = [truth == i for i, c in truth_of.items() if c == category]
            b = [(found == i, (found == i) & (truth == 0)) for i, c in found_of.items() if c == category]
            matched = 0
            for mask in a:
                for other, void in b:
                    iou = (mask & other).sum() / ((mask | other) & ~void).sum()
                    if iou > 0.5:
                        iou_sum, matched = iou_sum + iou, matched + 1
            tp, fn = tp + matched, fn + len(a) - matched
            unmatched_void = 0
            for other, void in b:
                hit = any((m & other).sum() / ((m | other) & ~void).sum() > 0.5 for m in a)
                # Predictions that are mostly on unannotated pixels are not false positives.
                unmatched_void += not hit and void.sum() / other.sum() > 0.5
            fp += len(b) - matched - unmatched_void
        totals[category] = (iou_sum / (tp + fp / 2 + fn / 2) if tp + fp + fn else 0.0, tp + fp + fn)
    return totals


@pytest.fixture
def panoptic(tmp_path, registered):
    random = np.random.default_rng(1)
    folder = tmp_path / "panoptic"
    folder.mkdir()
    images, annotations, inputs, outputs = [], [], [], []
    for i in range(8):
        truth, truth_of = random_segments(random, first_id=70_000)
        found, found_of = disturbed(random, truth, truth_of)
        images.append(((truth, truth_of), (found, found_of)))
        Image.fromarray(id_to_rgb(truth)).save(folder / f"{i}.png")
        infos = [
            {"id": s, "category_id": c, "area": int((truth == s).sum()), "iscrowd": 0, "bbox": [0, 0, 1, 1]}
            for s, c in truth_of.items()
        ]
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": infos})
        inputs.append({"image_id": i, "file_name": f"{i}.jpg"})
        predicted = [{"id": s, "isthing": c in THINGS, "category_id": (THINGS | STUFF)[c]} for s, c in found_of.items()]
        outputs.append({"panoptic_seg": (torch.from_numpy(found.astype(np.int32)), predicted)})
    truth_json = {"annotations": annotations, "categories": CATEGORIES}
    truth_json["images"] = [{"id": i, "file_name": f"{i}.jpg", "width": SIDE, "height": SIDE} for i in range(8)]
    (tmp_path / "panoptic.json").write_text(json.dumps(truth_json))
    name = registered(
        "panoptic_maps",
        inputs,
        panoptic_json=str(tmp_path / "panoptic.json"),
        panoptic_root=str(folder),
        thing_dataset_id_to_contiguous_id=THINGS,
        stuff_dataset_id_to_contiguous_id=STUFF,
    )
    return SimpleNamespace(name=name, inputs=inputs, outputs=outputs, images=images)


def test_panoptic_quality_matches_definition(panoptic, tmp_path):
    evaluator = PanopticEvaluator(panoptic.name, tmp_path / "out")
    evaluator.process(panoptic.inputs, panoptic.outputs)
    values = evaluator.evaluate()["panoptic_seg"]
    expected = naive_pq(panoptic.images)
    for category, (quality, _) in expected.items():
        assert values[f"PQ-c{category}"] == pytest.approx(100 * quality), category
    for suffix, ids in (("", [*THINGS, *STUFF]), ("_th", THINGS), ("_st", STUFF)):
        assert values[f"PQ{suffix}"] == pytest.approx(100 * np.mean([expected[i][0] for i in ids if expected[i][1]]))
    assert 10 < values["PQ"] < 90
    written = json.loads((tmp_path / "out/panoptic_predictions.json").read_text())
    assert [a["image_id"] for a in written["annotations"]] == list(range(8))


def test_every_image_must_be_evaluated_once(panoptic, tmp_path):
    evaluator = PanopticEvaluator(panoptic.name, tmp_path)
    evaluator.process(panoptic.inputs[1:], panoptic.outputs[1:])
    with pytest.raises(DataError, match=r"of 8 images, 1 is missing \(ids 0\)"):
        evaluator.evaluate()
    evaluator.process([panoptic.inputs[0] | {"unreadable": True}], panoptic.outputs[:1])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] > 0


def test_images_of_equal_names_in_different_folders_keep_their_predictions(panoptic, tmp_path):
    expected = PanopticEvaluator(panoptic.name, tmp_path / "plain")
    expected.process(panoptic.inputs, panoptic.outputs)
    truth_file = tmp_path / "panoptic.json"
    truth = json.loads(truth_file.read_text())
    for image, record in zip(truth["images"], panoptic.inputs, strict=True):
        image["file_name"] = record["file_name"] = f"{image['id']}/photo.jpg"
    truth_file.write_text(json.dumps(truth))
    evaluator = PanopticEvaluator(panoptic.name, tmp_path / "out")
    evaluator.process(panoptic.inputs, panoptic.outputs)
    assert evaluator.evaluate() == expected.evaluate()
    assert len(list((tmp_path / "out/panoptic_predictions").iterdir())) == 8


def test_ids_are_encoded_in_three_bytes():
    ids = np.array([[0, 1, 255], [256, 70_000, 256**3 - 1]])
    np.testing.assert_array_equal(id_to_rgb(ids).astype(int) @ [1, 256, 256**2], ids)
