"""The table of recipes with their published results."""

from __future__ import annotations

from collections.abc import Sequence

from pvt_det.recipes import list_recipes
from pvt_det.reports.published import PublishedResult, published_results
from pvt_det.weights.catalog import DETECTORS

# Column, and the task and metric of the published result that it shows.
_METRICS = {"box AP": ("bbox", "AP"), "mask AP": ("segm", "AP"), "mIoU": ("sem_seg", "mIoU")}


def recipe_rows(words: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return a row per recipe: its name, published results in percent, schedule, and whether trained weights exist.

    Args:
        words: Keep only recipes whose name contains all of these, in upper or lower case.
    """
    published = {row.config: row for row in published_results()}
    names = [name for name in list_recipes() if all(word.lower() in name.lower() for word in words)]
    return [_row(name, published.get(name)) for name in names]


def _row(name: str, published: PublishedResult | None) -> dict[str, str]:
    values = {
        column: "" if published is None or (value := published.value(*metric)) is None else f"{value:.1f}"
        for column, metric in _METRICS.items()
    }
    schedule = published.schedule if published else ""
    return {"recipe": name, "schedule": schedule, **values, "trained weights": "yes" if name in DETECTORS else ""}
