"""Compare the outputs of an exported model with those of the original."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from detectron2.modeling.meta_arch import GeneralizedRCNN, PanopticFPN, SemanticSegmentor
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Instances
from numpy.typing import NDArray
from torch import nn

from pvt_det.deployment.graphs import ClassifierGraph
from pvt_det.errors import NumericError
from pvt_det.modeling.query_detector import QueryDetector
from pvt_det.utils.text import counted

Outputs: TypeAlias = Mapping[str, NDArray[Any]]

BOX_TOLERANCE = 0.5  # pixels
SCORE_TOLERANCE = 1e-3
_DETECTOR = ("boxes", "scores", "labels", "images")


@dataclass
class Parity:
    """Largest differences between the outputs of two models.

    Attributes:
        images: Number of images compared.
        detections: Number of detections that match.
        box: Largest difference of a box coordinate in pixels.
        score: Largest difference of a score or probability.
        mask: Largest difference of a mask probability.
        relabeled: Number of pixels with different classes in a segmentation, at equal probability.
        missing: Descriptions of the detections without a match in the other model.
    """

    images: int = 0
    detections: int = 0
    box: float = 0.0
    score: float = 0.0
    mask: float = 0.0
    relabeled: int = 0
    missing: list[str] = field(default_factory=list)

    def require(self, what: str) -> None:
        """Check the tolerances: 0.5 pixels for boxes, 1e-3 for scores, 1e-2 for masks (computed from the boxes).

        Args:
            what: Name of the exported model, for the message.

        Raises:
            NumericError: A tolerance is exceeded, or a detection has no match.
        """
        if self.box > BOX_TOLERANCE or self.score > SCORE_TOLERANCE or self.mask > 10 * SCORE_TOLERANCE or self.missing:
            examples = f": {'; '.join(self.missing[:3])}" if self.missing else ""
            raise NumericError(
                f"{what} differs from the original model ({self}; {counted(len(self.missing), 'detection')} without a "
                f"match{examples}). The file was not kept."
            )

    def __str__(self) -> str:
        parts = [counted(self.images, "image")]
        if self.detections:
            parts += [f"{counted(self.detections, 'detection')}, boxes within {self.box:.1e} pixels"]
        parts += [f"scores within {self.score:.1e}"]
        parts += [f"masks within {self.mask:.1e}"] if self.mask else []
        parts += [f"{self.relabeled} pixels with different classes"] if self.relabeled else []
        return ", ".join(parts)


def run_eager(model: nn.Module, images: NDArray[np.uint8], *, bgr: bool) -> dict[str, NDArray[Any]]:
    """Run the original model with Detectron2's code, and return its outputs as an exported file would.

    Args:
        model: A detector or segmentor of Detectron2, or the graph of a classifier.
        images: Images `N×3×H×W`, RGB.
        bgr: Whether the model takes BGR images.

    Returns:
        The outputs by name.
    """
    batch = torch.from_numpy(images)
    with torch.inference_mode():
        if isinstance(model, ClassifierGraph):
            return {"scores": model(batch).numpy()}
        records = [{"image": image.flip(0) if bgr else image} for image in batch]
        if isinstance(model, SemanticSegmentor):
            logits = torch.stack([output["sem_seg"] for output in model(records)])
            scores, labels = logits.softmax(dim=1).max(dim=1)
            return {"labels": labels.cpu().numpy(), "scores": scores.cpu().numpy()}
        if isinstance(model, PanopticFPN):
            return _run_panoptic(model, records)
        if isinstance(model, GeneralizedRCNN):
            found = model.inference(records, do_postprocess=False)
        else:
            assert isinstance(model, DenseDetector | QueryDetector)
            found = [output["instances"] for output in model(records)]
    return _as_outputs(found)


def _run_panoptic(model: PanopticFPN, records: list[dict[str, torch.Tensor]]) -> dict[str, NDArray[Any]]:
    logits: list[torch.Tensor] = []
    # Detectron2's head returns the logits only after scaling them to the size of the padded image.
    handle = model.sem_seg_head.predictor.register_forward_hook(lambda module, inputs, output: logits.append(output))
    try:
        found, scaled = model.inference(records, do_postprocess=False)
    finally:
        handle.remove()
    height, width = records[0]["image"].shape[-2:]
    labels = scaled[:, :, :height, :width].argmax(dim=1)
    semantic = {"semantic_labels": labels.cpu().numpy(), "semantic_logits": logits[0].cpu().numpy()}
    return {**_as_outputs(found), **semantic}


def _as_outputs(found: list[Instances]) -> dict[str, NDArray[Any]]:
    found = [each[each.pred_boxes.nonempty()] for each in found]
    images = torch.cat([torch.full((len(each),), number) for number, each in enumerate(found)])
    tensors = {
        "boxes": torch.cat([each.pred_boxes.tensor for each in found]),
        "scores": torch.cat([each.scores for each in found]),
        "labels": torch.cat([each.pred_classes for each in found]),
        "images": images,
    }
    if found[0].has("pred_masks"):
        tensors["masks"] = torch.cat([each.pred_masks[:, 0] for each in found])
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def compare(expected: Outputs, got: Outputs, parity: Parity, *, images: int, limit: int, threshold: float) -> None:
    """Compare the outputs of a batch, and add the differences to `parity`.

    Detections are matched one to one within image and class. A detection may be missing on one side if its score is
    within the tolerance of the lowest score that is kept, due to the threshold or the limit.

    Args:
        expected: Outputs of the original model.
        got: Outputs of the exported file.
        parity: Differences so far, updated in place.
        images: Number of images in the batch.
        limit: Maximum number of detections per image.
        threshold: Detections with scores above this are kept.
    """
    parity.images += images
    if "boxes" in expected:
        for number in range(images):
            one, other = _of_image(expected, number), _of_image(got, number)
            full = len(one["scores"]) >= limit
            least = max(threshold, float(one["scores"].min()) if full else 0.0) + SCORE_TOLERANCE
            _match(one, other, parity, least)
        if "semantic_logits" in expected:
            _compare_semantic(expected, got, parity)
        return
    parity.score = max(parity.score, float(np.abs(expected["scores"] - got["scores"]).max()))
    if "labels" in expected:
        parity.relabeled += int((expected["labels"] != got["labels"]).sum())


def _compare_semantic(expected: Outputs, got: Outputs, parity: Parity) -> None:
    one, other = (torch.from_numpy(outputs["semantic_logits"]).softmax(dim=1) for outputs in (expected, got))
    parity.score = max(parity.score, float((one - other).abs().max()))
    parity.relabeled += int((expected["semantic_labels"] != got["semantic_labels"]).sum())


def _of_image(outputs: Outputs, number: int) -> dict[str, NDArray[Any]]:
    of_detections = {name: values for name, values in outputs.items() if not name.startswith("semantic_")}
    return {name: values[outputs["images"] == number] for name, values in of_detections.items()}


def _match(expected: Outputs, got: Outputs, parity: Parity, least: float) -> None:
    free = list(range(len(got["scores"])))
    for i, (box, score, label) in enumerate(zip(*(expected[name] for name in _DETECTOR[:3]), strict=True)):
        distances = {
            j: float(np.abs(got["boxes"][j] - box).max())
            for j in free
            if got["labels"][j] == label and abs(got["scores"][j] - score) <= SCORE_TOLERANCE
        }
        nearest = min(distances, key=lambda j: distances[j], default=None)
        if nearest is None or distances[nearest] > BOX_TOLERANCE:
            if score > least:
                parity.missing.append(f"class {label} at {np.round(box, 1).tolist()}, score {score:.3f}, is missing")
            continue
        free.remove(nearest)
        parity.detections += 1
        parity.box = max(parity.box, distances[nearest])
        parity.score = max(parity.score, float(abs(got["scores"][nearest] - score)))
        if "masks" in expected:
            parity.mask = max(parity.mask, float(np.abs(got["masks"][nearest] - expected["masks"][i]).max()))
    parity.missing += [
        f"class {got['labels'][j]} at {np.round(got['boxes'][j], 1).tolist()}, score {got['scores'][j]:.3f}, is new"
        for j in free
        if got["scores"][j] > least
    ]


def medians_ms(*calls: Callable[[], Any], repeats: int = 5) -> list[float]:
    """Measure the median time of each call, after one warm-up.

    The calls take turns, so that other load on the machine slows all of them equally.

    Args:
        *calls: Functions without arguments.
        repeats: Number of timed repetitions.

    Returns:
        The median time of each call in milliseconds.
    """
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(1 + repeats):
        for call, call_times in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            call_times.append(time.perf_counter() - start)
    return [1000 * statistics.median(call_times[1:]) for call_times in times]
