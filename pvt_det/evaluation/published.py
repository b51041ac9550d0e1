"""Published results on COCO val2017 and ADE20K, each with its source."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path


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
    dataset: str = "coco_2017_val"

    def value(self, task: str, metric: str) -> float | None:
        """A metric of "bbox", "segm", "sem_seg" or another task, None where it was not published."""
        return {"bbox": self.box, "segm": self.mask, "sem_seg": self.semantic}.get(task, {}).get(metric)


@cache
def published_results() -> tuple[PublishedResult, ...]:
    """All published rows."""
    text = resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8")
    return tuple(PublishedResult(**row) for row in json.loads(text)["results"])


def find_published(config_file: str) -> PublishedResult | None:
    """The published row of a config file's recipe, if there is one."""
    name = Path(config_file).stem
    return next((row for row in published_results() if row.config == name), None)


def published_top1(model: str) -> float | None:
    """Published ImageNet-1k top-1 of a classifier at 224 pixels, percent (ResNets: the PVT paper's reruns)."""
    text = resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8")
    return json.loads(text)["imagenet"].get(model, {}).get("top1")
