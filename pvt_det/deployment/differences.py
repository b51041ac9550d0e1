"""Differences between the predictions of a model and of its quantized form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from pvt_det.deployment.check import Outputs

# Least scores for which differences are listed.
_LEVELS = (0.5, 0.3, 0.05)
# Two boxes of the same class with at least this IoU are the same object.
_MATCHING_IOU = 0.5


def differences(expected: Sequence[Outputs], got: Sequence[Outputs]) -> list[dict[str, Any]]:
    """Compare the outputs of two models on the same images.

    Args:
        expected: Outputs of the original model for each image, by name.
        got: Outputs of the quantized model for each image.

    Returns:
        Rows of a table. For detectors, one for each of several least scores, with the number of detections of the
        original model, how many of them the other one finds too (IoU at least 0.5, same class), how many it adds, and
        the median and largest differences of scores and of box coordinates in pixels. Otherwise one row, with the share
        of equal classes in percent and the largest difference of a probability.
    """
    if "boxes" in expected[0]:
        return [_detection_row(expected, got, level) for level in _LEVELS]
    score = max(float(np.abs(one["scores"] - other["scores"]).max()) for one, other in zip(expected, got, strict=True))
    equal = [_classes(one) == _classes(other) for one, other in zip(expected, got, strict=True)]
    share = 100 * float(np.mean(np.concatenate([each.ravel() for each in equal])))
    return [{"images": len(expected), "same class %": round(share, 2), "largest score difference": round(score, 4)}]


def _classes(outputs: Outputs) -> NDArray[Any]:
    return outputs["labels"] if "labels" in outputs else outputs["scores"].argmax(axis=1)


def _detection_row(expected: Sequence[Outputs], got: Sequence[Outputs], level: float) -> dict[str, Any]:
    scores: list[float] = []
    boxes: list[float] = []
    detections = added = 0
    for one, other in zip(expected, got, strict=True):
        one = _above(one, level)
        detections += len(one["scores"])
        pairs = _matches(one, other)
        scores += [abs(float(one["scores"][i] - other["scores"][j])) for i, j in pairs]
        boxes += [float(np.abs(one["boxes"][i] - other["boxes"][j]).max()) for i, j in pairs]
        taken = {j for _, j in pairs}
        added += sum(score > level for j, score in enumerate(other["scores"]) if j not in taken)
    return {
        "score above": level,
        "detections": detections,
        "found again": len(scores),
        "added": added,
        "score difference median": round(float(np.median(scores)), 4) if scores else "-",
        "score difference max": round(max(scores), 4) if scores else "-",
        "box difference median px": round(float(np.median(boxes)), 2) if boxes else "-",
        "box difference max px": round(max(boxes), 2) if boxes else "-",
    }


def _above(outputs: Outputs, level: float) -> Mapping[str, NDArray[Any]]:
    kept = outputs["scores"] > level
    return {name: outputs[name][kept] for name in ("boxes", "scores", "labels")}


def _matches(one: Outputs, other: Outputs) -> list[tuple[int, int]]:
    """Match detections one to one, those with the highest scores first."""
    if not len(one["scores"]) or not len(other["scores"]):
        return []
    iou = box_iou(torch.from_numpy(one["boxes"]), torch.from_numpy(other["boxes"])).numpy()
    iou[one["labels"][:, None] != other["labels"][None]] = 0
    pairs = []
    for i in np.argsort(-one["scores"], kind="stable"):
        j = int(iou[i].argmax())
        if iou[i, j] >= _MATCHING_IOU:
            pairs.append((int(i), j))
            iou[:, j] = 0
    return pairs
