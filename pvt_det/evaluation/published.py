"""Published results on COCO val2017, each with its source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

# The only data that published numbers may be set against.
PUBLISHED_DATASET = "coco_2017_val"


@dataclass(frozen=True)
class PublishedResult:
    """One published row.

    Attributes:
        config: name, without suffix, of the config of this repository that follows the row's recipe.
        model: head and backbone.
        schedule: "1x" (12 epochs) or "3x" (36).
        parameters_millions: of the whole detector; None where not published.
        box: box AP and the like, percent.
        mask: mask AP and the like, percent; empty without masks.
        source: where the numbers stand.
    """

    config: str
    model: str
    schedule: str
    parameters_millions: float | None
    box: dict[str, float]
    mask: dict[str, float]
    source: str


@cache
def published_results() -> tuple[PublishedResult, ...]:
    """All published rows."""
    text = resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8")
    return tuple(PublishedResult(**row) for row in json.loads(text)["results"])


def find_published(config_file: str) -> PublishedResult | None:
    """The published row of a config file's recipe, if there is one."""
    name = Path(config_file).stem
    return next((row for row in published_results() if row.config == name), None)
