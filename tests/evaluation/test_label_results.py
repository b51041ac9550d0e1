"""What an evaluation of label maps records and logs: classes, confusions, and the worst and best predictions."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from pvt_det.errors import DataError
from pvt_det.evaluation.label_results import (
    SEGMENTATION_FILE,
    LabelResults,
    class_results,
    class_table,
    confusion_table,
    most_confused,
    read_label_results,
    row_percent,
)
from pvt_det.evaluation.semantic import SemanticEvaluator

CLASSES = ["road", "car", "tree", "void"]
IMAGES = 15
SIDE = 10


def maps(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and prediction: half road, half car. In image n, n columns of car are predicted as tree."""
    truth = np.zeros((SIDE, 2 * IMAGES), np.uint8)
    truth[:, IMAGES:] = 1
    truth[0] = 3
    predicted = np.where(truth == 3, 0, truth)
    predicted[:, IMAGES : IMAGES + number] = 2
    return truth, predicted


@pytest.fixture
def data():
    name = "label_results"
    DatasetCatalog.register(name, lambda: [{"file_name": f"images/{n}.jpg"} for n in range(IMAGES)])
    MetadataCatalog.get(name).set(stuff_classes=CLASSES, ignore_label=3)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def add(evaluator: SemanticEvaluator, number: int) -> None:
    truth, predicted = maps(number)
    logits = torch.nn.functional.one_hot(torch.from_numpy(predicted).long(), 4).permute(2, 0, 1).float()
    evaluator.process([{"file_name": f"images/{number}.jpg", "true_labels": truth}], [{"sem_seg": logits}])


@pytest.fixture
def evaluated(data, tmp_path, caplog):
    evaluator = SemanticEvaluator(data, tmp_path / "out")
    for number in np.random.default_rng(0).permutation(IMAGES):
        add(evaluator, int(number))
    with caplog.at_level(logging.INFO):
        metrics = evaluator.evaluate()["sem_seg"]
    return metrics, read_label_results(tmp_path / "out" / SEGMENTATION_FILE), caplog.text


def test_confusion_matrix(evaluated):
    _, results, _ = evaluated
    rows = SIDE - 1  # the first one is void
    wrong = rows * sum(range(IMAGES))
    whole = rows * IMAGES * IMAGES
    assert results.confusion.tolist() == [[whole, 0, 0, 0], [0, whole - wrong, wrong, 0], [0] * 4, [0] * 4]
    (pair,) = most_confused(results)
    assert (pair.truth, pair.predicted, pair.pixels) == ("car", "tree", wrong)
    assert pair.percent == pytest.approx(100 * wrong / whole)
    assert row_percent(results.confusion)[1].sum() == pytest.approx(100)


def test_worst_and_best_images_are_kept_with_their_predictions(evaluated):
    _, results, _ = evaluated
    assert [each.file_name for each in results.worst] == [f"images/{n}.jpg" for n in range(14, 6, -1)]
    assert [each.file_name for each in results.best] == [f"images/{n}.jpg" for n in range(4)]
    for each, number in zip(results.best, range(4), strict=True):
        np.testing.assert_array_equal(each.labels(), maps(number)[1])
        # The mean over road and car. Tree does not occur in the image.
        assert each.iou == pytest.approx(100 * (1 + (IMAGES - number) / IMAGES) / 2)
        assert each.accuracy == pytest.approx(100 * (1 - number / (2 * IMAGES)))


def test_processes_keep_the_same_images_in_any_order(data, tmp_path, evaluated, monkeypatch):
    """Two processes see half of the images each."""
    _, expected, _ = evaluated
    halves = [SemanticEvaluator(data, tmp_path / "two") for _ in range(2)]
    for number in range(IMAGES):
        add(halves[number % 2], number)
    monkeypatch.setattr(
        "pvt_det.evaluation.semantic.comm.gather",
        lambda _, dst: [(e._pixels, e._unreadable, e._files, e._worst, e._best) for e in halves],
    )
    halves[0].evaluate()
    found = read_label_results(tmp_path / "two" / SEGMENTATION_FILE)
    assert (found.worst, found.best) == (expected.worst, expected.best)
    np.testing.assert_array_equal(found.confusion, expected.confusion)


def test_classes_are_sorted_and_logged(evaluated):
    metrics, results, text = evaluated
    classes = class_results(metrics, results)
    assert [each.name for each in classes] == ["road", "car", "tree"]  # void is no class
    road, car, tree = classes
    assert (road.iou, road.share) == (100, pytest.approx(50))
    assert car.iou == car.accuracy == pytest.approx(metrics["IoU-car"])
    assert (tree.iou, tree.share) == (None, 0)
    assert [each.share for each in class_results(metrics, None)] == [None] * 4
    assert "Most confused classes:" in text
    assert "46.7% of 'car' is predicted as 'tree' (945 pixels)" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["car", f"{car.iou:.2f}", f"{car.iou:.2f}", "50.00%"] in lines
    assert "1 class without ground truth left out" in text
    table = text.split("true class")[0]
    assert not any(line.split()[:1] == ["tree"] for line in table.splitlines())


def test_tables_of_many_classes_have_two_columns():
    many = class_results({f"IoU-class {number}": float(number) for number in range(60)}, None)
    lines = class_table(many).splitlines()
    assert len(lines) == 2 + 30  # two header lines
    assert "class 59" in lines[2]
    assert "class 29" in lines[2]


def test_broken_results(tmp_path):
    (tmp_path / SEGMENTATION_FILE).write_text('{"class_names": ["a"], "confusion": [[1, 2]], "worst": [], "best": []}')
    with pytest.raises(DataError, match=r"\(1, 2\) for 1 classes.*Evaluate again"):
        read_label_results(tmp_path / SEGMENTATION_FILE)


def test_confusion_matrix_is_logged(evaluated):
    _, _, text = evaluated
    lines = [line.split() for line in text.splitlines()]
    assert ["2", "car", "53", "47"] in lines
    assert ["1", "road", "100"] in lines


def test_confusion_matrix_fits_into_80_columns():
    names = tuple(f"class {number}, also known as number {number}" for number in range(20))
    confusion = np.full((20, 20), 1, np.int64) + 1000 * np.eye(20, dtype=np.int64)[::-1]
    _, *lines = confusion_table(LabelResults(names, 255, confusion, (), ())).splitlines()
    assert max(map(len, lines)) <= 80 - 11  # the time of the log line takes 11
    heading, _, *rows = lines
    assert heading.split() == ["true", "class", *map(str, range(1, 13))]
    assert [row.split()[0] for row in rows] == [str(number) for number in range(1, 13)]
