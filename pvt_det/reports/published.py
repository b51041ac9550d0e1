"""Published results on COCO val2017, ADE20K and ImageNet-1k, each with its source."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

IMAGENET = "imagenet1k_val"


@dataclass(frozen=True)
class PublishedResult:
    """One published row.

    Attributes:
        config: name, without suffix, of the config of this repository that follows the row's recipe.
        model: head and backbone.
        schedule: "1x" (12 epochs) or "3x" (36) on COCO, "40k" (iterations) on ADE20K.
        parameters_millions: of the whole detector; None where not published.
        box: box AP and the like, percent.
        mask: mask AP and the like, percent; empty without masks.
        source: where the numbers stand.
        semantic: mIoU, percent; empty for detectors.
        classification: top-1, percent; of classifiers only.
        dataset: the only data that the row may be set against.
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

    def value(self, task: str, metric: str) -> float | None:
        """A metric of "bbox", "segm", "sem_seg", "classification" or another task, None where it was not published."""
        by_task = {
            "bbox": self.box,
            "segm": self.mask,
            "sem_seg": self.semantic,
            "classification": self.classification,
        }
        return by_task.get(task, {}).get(metric)


@cache
def published_results() -> tuple[PublishedResult, ...]:
    """All published rows of detectors and segmenters."""
    return tuple(PublishedResult(**row) for row in _tables()["results"])


def find_published(config_file: str) -> PublishedResult | None:
    """The published row of a config file's recipe, or of a classifier's name, if there is one."""
    name = Path(config_file).stem
    classifier = published_classifier(name)
    return classifier or next((row for row in published_results() if row.config == name), None)


def published_classifier(model: str) -> PublishedResult | None:
    """The published row of an ImageNet-1k classifier at 224 pixels, if there is one; ResNets are PVT's reruns."""
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
    )


@cache
def _tables() -> dict[str, Any]:
    return json.loads(resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8"))
