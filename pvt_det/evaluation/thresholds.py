"""Precision, recall and F1 over the score threshold, and the threshold with the best F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import hotcoco
import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]

# IoU from which a detection is correct, as in AP50.
IOU = 0.5
# Thresholds that are tried. Models at the start of their training give scores below 0.01.
THRESHOLDS: Array = np.arange(1001) / 1000
# Threshold for data without objects, the default of `pvt-det predict`.
_DEFAULT = 0.5


@dataclass(frozen=True)
class Rates:
    """Precision, recall and F1 in percent of each class at some score thresholds.

    Attributes:
        precision: Share of the detections that are correct, `K×T`. NaN without detections.
        recall: Share of the objects that are detected, `K×T`.
        f1: Harmonic mean of both, `K×T`. 0 without correct detections.
    """

    precision: Array
    recall: Array
    f1: Array

    def mean(self) -> Rates:
        """Return the means over the classes, `1×T`. A class without detections does not count for the precision."""
        return Rates(*(_mean(values) for values in (self.precision, self.recall, self.f1)))


@dataclass(frozen=True)
class ScoredMatches:
    """Scores of all detections of the classes that have objects, and of the correct ones.

    A detection is matched with an object before those with lower scores, so one matching is valid for all thresholds.

    Attributes:
        names: Names of the `K` classes.
        objects: Number of objects of each class, `K`.
        found: Scores of the detections of each class in ascending order.
        correct: Scores of the correct detections of each class in ascending order.
    """

    names: list[str]
    objects: npt.NDArray[np.int64]
    found: list[Array]
    correct: list[Array]

    def rates(self, thresholds: Sequence[float] | Array) -> Rates:
        """Return precision, recall and F1 of each class.

        Args:
            thresholds: `T` score thresholds. Detections with at least this score count.
        """
        shape = (len(self.names), len(thresholds))
        found, correct = (
            np.array([len(scores) - np.searchsorted(scores, thresholds) for scores in each], np.float64).reshape(shape)
            for each in (self.found, self.correct)
        )
        objects = self.objects[:, None]
        precision = np.divide(100 * correct, found, out=np.full(shape, np.nan), where=found > 0)
        return Rates(precision, 100 * correct / objects, 200 * correct / (found + objects))

    @property
    def has_correct(self) -> bool:
        """Whether any detection is correct."""
        return any(len(scores) for scores in self.correct)

    @cached_property
    def best(self) -> float:
        """The threshold with the best mean F1, the middle one if several have it.

        If no detection is correct, the threshold that keeps as many detections as there are objects.
        """
        if not self.has_correct:
            return self._threshold_of_count(int(self.objects.sum()))
        f1 = self.rates(THRESHOLDS).mean().f1[0]
        first = last = int(f1.argmax())
        while last + 1 < len(f1) and np.isclose(f1[last + 1], f1[first]):
            last += 1
        return float(THRESHOLDS[(first + last) // 2])

    def _threshold_of_count(self, count: int) -> float:
        scores = np.sort(np.concatenate([*self.found, np.zeros(0)]))
        if not count or not len(scores):
            return _DEFAULT
        lowest = scores[-min(count, len(scores))]
        return float(THRESHOLDS[np.searchsorted(THRESHOLDS, lowest, side="right") - 1])


def match_scores(evaluator: hotcoco.COCOeval) -> ScoredMatches:
    """Match the detections of an evaluator with its objects at IoU 0.5.

    Args:
        evaluator: Evaluator of boxes or masks. It is not changed.

    Returns:
        The scores of the detections. Ignored objects (`iscrowd`) and the detections on them do not count.
    """
    matcher = hotcoco.COCOeval(evaluator.coco_gt, evaluator.coco_dt, evaluator.params.iou_type)
    matcher.params.iou_thrs = [IOU]
    matcher.params.area_rng, matcher.params.area_rng_lbl = [[0, 1e10]], ["all"]
    matcher.params.max_dets = [max(evaluator.params.max_dets)]
    matcher.evaluate()
    images: dict[int, list[dict[str, Any]]] = {category: [] for category in matcher.params.cat_ids}
    for image in matcher.eval_imgs:
        if image is not None:
            images[image["category_id"]].append(image)
    objects = {category: sum(int(np.sum(~_flags(i["gtIgnore"]))) for i in each) for category, each in images.items()}
    kept = [category for category, count in objects.items() if count]
    return ScoredMatches(
        [matcher.coco_gt.load_cats(category)[0]["name"] for category in kept],
        np.array([objects[category] for category in kept], np.int64),
        [_scores(images[category], only_correct=False) for category in kept],
        [_scores(images[category], only_correct=True) for category in kept],
    )


def _scores(images: Sequence[dict[str, Any]], *, only_correct: bool) -> Array:
    scores = [np.zeros(0)]
    for image in images:
        counts = ~_flags(image["dtIgnore"])
        if only_correct:
            counts &= _flags(image["dtMatched"])
        scores.append(np.asarray(image["dtScores"], np.float64)[counts])
    return np.sort(np.concatenate(scores))


def _flags(values: Any) -> npt.NDArray[np.bool_]:
    """Return flags of one IoU threshold as a vector."""
    return np.asarray(values, bool).reshape(-1)


def _mean(values: Array) -> Array:
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0).sum(0, keepdims=True), known.sum(0, keepdims=True)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
