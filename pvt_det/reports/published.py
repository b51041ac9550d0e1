"""Look up published results on COCO val2017, ADE20K and ImageNet-1k, each with its source."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

IMAGENET = "imagenet1k_val"


@dataclass(frozen=True)
class PublishedResult:
    """One row of published results.

    Attributes:
        config: Name, without suffix, of the config in this repository that follows the published recipe.
        model: Head and backbone.
        schedule: "1x" (12 epochs), "3x" (36 epochs) or "50 epochs" on COCO, "40k" (iterations) on ADE20K.
        parameters_millions: Number of parameters of the whole detector in millions. None if not published.
        box: Box AP and related metrics in percent, by metric.
        mask: Mask AP and related metrics in percent, by metric. Empty for models without masks.
        source: Publication and table of the results.
        semantic: Mean IoU in percent. Empty for detectors.
        classification: Top-1 accuracy in percent. Empty for detectors and segmentors.
        dataset: Name of the data set that the results were measured on.
        recipe_sha256: Digest of the recipe: of the config, or of the options of a classifier. "" if this repository has
            no such recipe.
    """

    config: str
    model: str
    schedule: str
    parameters_millions: float | None
    box: dict[str, float]
    mask: dict[str, float]
    source: str
    semantic: dict[str, float] = field(default_factory=dict)
    classification: dict[str, float] = field(default_factory=dict)
    dataset: str = "coco_2017_val"
    recipe_sha256: str = ""

    def value(self, task: str, metric: str) -> float | None:
        """Return a metric in percent, or None if it was not published.

        Args:
            task: "bbox", "segm", "sem_seg", "classification" or another task.
            metric: Name of the metric, such as "AP", "mIoU" or "top1".
        """
        by_task = {
            "bbox": self.box,
            "segm": self.mask,
            "sem_seg": self.semantic,
            "classification": self.classification,
        }
        return by_task.get(task, {}).get(metric)


@cache
def published_results() -> tuple[PublishedResult, ...]:
    """Return all published rows of detectors and segmentors."""
    return tuple(PublishedResult(**row) for row in _tables()["results"])


def find_published(recipe_sha256: str) -> PublishedResult | None:
    """Return the published row of a recipe, or None.

    Args:
        recipe_sha256: Digest of the recipe that a run followed, as recorded in its results. "" if it is unknown.
    """
    classifiers = (published_classifier(model) for model in _tables()["imagenet"])
    rows = (*published_results(), *(row for row in classifiers if row is not None))
    return next((row for row in rows if recipe_sha256 and row.recipe_sha256 == recipe_sha256), None)


def published_classifier(model: str) -> PublishedResult | None:
    """Return the published row of an ImageNet-1k classifier at 224 pixels, or None.

    The ResNet results are those that the PVT paper reproduced.

    Args:
        model: Name of the classifier.
    """
    row = _tables()["imagenet"].get(model)
    if row is None:
        return None
    return PublishedResult(
        config=model,
        model=f"{model} classifier",
        schedule="300 epochs",
        parameters_millions=None,
        box={},
        mask={},
        source=row["source"],
        classification={"top1": row["top1"]},
        dataset=IMAGENET,
        recipe_sha256=row.get("recipe_sha256", ""),
    )


@cache
def _tables() -> dict[str, Any]:
    return json.loads(resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8"))
