"""Precision, recall and F1 over the score threshold, on counts that are known."""

from __future__ import annotations

import numpy as np
import pytest

from pvt_det.evaluation.detections import Detections
from pvt_det.evaluation.ground_truth import GroundTruth
from pvt_det.evaluation.metrics import run_hotcoco
from pvt_det.evaluation.thresholds import THRESHOLDS, match_scores

BOX = (10.0, 10.0, 20.0, 20.0)
FAR = (60.0, 60.0, 20.0, 20.0)


def matches(*found, crowd=False):
    """Match detections (image, class, box, score) with a cat in image 1 and a dog in each of the images 2 and 3."""
    truth = GroundTruth(
        [{"id": image, "file_name": "", "width": 100, "height": 100} for image in (1, 2, 3)],
        [
            {"image_id": image, "category_id": category, "bbox": list(BOX), "area": 400, "iscrowd": int(crowd)}
            for image, category in ((1, 5), (2, 7), (3, 7))
        ],
        [{"id": 5, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 8, "name": "absent"}],
    )
    detections = []
    for image in (1, 2, 3):
        own = [each for each in found if each[0] == image]
        boxes, scores = np.array([each[2] for each in own]).reshape(-1, 4), np.array([each[3] for each in own])
        classes = np.array([each[1] for each in own], np.int64)
        detections.append(Detections(image, boxes, scores, classes, None, (100, 100)))
    return match_scores(run_hotcoco(truth, detections, "bbox", 100))


# A cat and a dog are found, the other dog is missed, and there are two false detections.
FOUND = [(1, 0, BOX, 0.3), (1, 0, FAR, 0.1), (2, 1, BOX, 0.2), (3, 1, FAR, 0.25)]


def test_rates_of_each_class_and_their_mean():
    rates = matches(*FOUND).rates([0.0, 0.2, 0.22, 0.9])
    np.testing.assert_allclose(rates.precision, [[50, 100, 100, np.nan], [50, 50, 0, np.nan]])
    np.testing.assert_allclose(rates.recall, [[100, 100, 100, 0], [50, 50, 0, 0]])
    np.testing.assert_allclose(rates.f1, [[200 / 3, 100, 100, 0], [50, 50, 0, 0]])
    mean = rates.mean()
    np.testing.assert_allclose(mean.precision, [[50, 75, 50, np.nan]])
    np.testing.assert_allclose(mean.f1, [[175 / 3, 75, 50, 0]])


def test_best_threshold_is_in_the_middle_of_those_with_the_best_f1():
    found = matches(*FOUND)
    assert (found.names, found.objects.tolist()) == (["cat", "dog"], [1, 2])
    # From 0.101 to 0.200.
    assert found.best == 0.15
    assert found.rates([found.best]).mean().f1[0, 0] == found.rates(THRESHOLDS).mean().f1.max() == 75


def test_scores_of_an_undertrained_model_give_a_threshold_far_below_one_half():
    found = matches(*((image, category, box, score / 20) for image, category, box, score in FOUND))
    assert 0.005 < found.best <= 0.01
    assert found.rates([found.best]).mean().f1[0, 0] == 75


def test_localization_below_iou_one_half_is_wrong():
    shifted = (10.0 + 20 / 3 + 0.1, *BOX[1:])
    assert not matches((1, 0, shifted, 0.9)).has_correct


def test_without_correct_detections_as_many_are_shown_as_there_are_objects():
    found = matches(*((1, 0, FAR, score) for score in (0.9, 0.8, 0.123, 0.05)))
    assert not found.has_correct
    assert found.best == 0.123


@pytest.mark.parametrize("found", [(), FOUND])
def test_data_without_objects_or_detections_has_a_threshold(found):
    assert 0 <= matches(*found, crowd=True).best <= 1
    assert matches(*found, crowd=True).names == []
    assert 0 <= matches().best <= 1


def test_detections_on_crowds_do_not_count():
    assert matches(*FOUND, crowd=True).rates([0.5]).f1.shape == (0, 1)
