"""Finished runs side by side: size, cost, published and measured AP, and whether a difference is more than chance."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hotcoco

from pvt_det.errors import DataError
from pvt_det.evaluation.ground_truth import COCO_MAX_DETECTIONS, read_ground_truth
from pvt_det.reports.published import RESULTS_NAME, find_published

# The metric of each task that runs are compared by.
TASKS = {"bbox": "AP", "segm": "AP", "sem_seg": "mIoU", "panoptic_seg": "PQ", "classification": "top1"}
_TITLES = {"bbox": "box AP", "segm": "mask AP", "sem_seg": "mIoU", "panoptic_seg": "PQ", "classification": "top-1"}
# Tasks of which the written results tell how far a difference is chance.
_WITH_INTERVAL = ("bbox", "segm")
# Points of AP that a reproduction may differ by: what training with another seed moves COCO's AP by.
TOLERANCE = 0.3
# Samples of the images, with replacement, for one interval: a second each at COCO val2017's size.
BOOTSTRAP = 200
_FIELDS: dict[str, type] = {
    "config_file": str,
    "model": str,
    "recipe": str,
    "dataset": str,
    "parameters": int,
    "metrics": dict,
    "results_file": str,
    "annotations": str,
}


@dataclass(frozen=True)
class Run:
    """A finished run, as its `results.json` tells.

    Attributes:
        folder: the run's output folder.
        config_file: the config that it was started with; of a classifier, its name.
        model: head and backbone.
        recipe: what must be alike for two runs to be compared.
        dataset: name of the evaluated data set.
        parameters: number of parameters.
        metrics: percent by task and metric, None where there is no ground truth.
        results_file: detections in COCO's results format.
        annotations: ground truth in COCO's format.
        gmacs: cost of one image with the image's size, where the run has noted it.
        seed: of the run, where it has noted it.
        environment: versions and hardware, by name; empty where the run has not noted them.
    """

    folder: Path
    config_file: str
    model: str
    recipe: str
    dataset: str
    parameters: int
    metrics: dict[str, dict[str, float | None]]
    results_file: Path
    annotations: Path
    gmacs: str | None = None
    seed: int | None = None
    environment: dict[str, Any] = field(default_factory=dict)

    def value(self, task: str) -> float | None:
        """The metric of a task of `TASKS` in percent, None where it was not measured."""
        return self.metrics.get(task, {}).get(TASKS[task])

    @property
    def max_detections(self) -> int:
        """Detections per image that counted, as the name of the last recall tells."""
        limits = [int(name[2:]) for name in self.metrics.get("bbox", {}) if re.fullmatch(r"AR\d+", name)]
        return max([COCO_MAX_DETECTIONS, *limits])


@dataclass(frozen=True)
class Difference:
    """AP of one run less another's, percent, with its 95% bootstrap interval over images."""

    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.lower:+.2f}, {self.upper:+.2f}]"


def load_run(path: str | Path) -> Run:
    """Read a run's output folder, or its `results.json`.

    Raises:
        DataError: the file is missing, broken, or lacks a field.
    """
    file = Path(path)
    file = file / RESULTS_NAME if file.is_dir() else file
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}): give the output folder of a run that was finished and evaluated"
        ) from error
    except ValueError as error:
        raise DataError(f"{file} is broken: {error}") from error
    for name, kind in _FIELDS.items():
        if not isinstance(raw, dict) or not isinstance(raw.get(name), kind):
            raise DataError(f"{file} has no {name!r} ({kind.__name__}): it is not the results file of a run")
    fields: dict[str, Any] = {name: raw[name] for name in _FIELDS if name not in ("results_file", "annotations")}
    return Run(
        folder=file.parent,
        results_file=file.parent / raw["results_file"],
        annotations=Path(raw["annotations"]),
        gmacs=raw.get("gmacs"),
        seed=raw.get("seed"),
        environment=raw.get("environment", {}),
        **fields,
    )


def difference(run: Run, base: Run, task: str, *, samples: int = BOOTSTRAP) -> Difference:
    """AP of `run` less that of `base` on the same images, with its interval.

    Raises:
        DataError: annotations or results of a run cannot be read.
    """
    found = hotcoco.compare(evaluator_of(base, task), evaluator_of(run, task), n_bootstrap=samples, confidence=0.95)
    interval = found["ci"]["AP"]
    return Difference(*(100 * value for value in (found["deltas"]["AP"], interval["lower"], interval["upper"])))


def comparison_warnings(runs: Sequence[Run]) -> list[str]:
    """What makes the runs incomparable, one sentence each."""
    found = []
    for what, values in {
        "recipes": [run.recipe for run in runs],
        "data sets": [f"{run.dataset} ({_digest(run.annotations)})" for run in runs],
        "limits on detections per image": [str(run.max_detections) for run in runs],
    }.items():
        if len(set(values)) > 1:
            listed = "; ".join(f"{run.folder.name}: {value}" for run, value in zip(runs, values, strict=True))
            found.append(f"{what} differ: {listed}")
    return found


def same_data(run: Run, base: Run) -> bool:
    """Whether two runs were measured on the same annotations."""
    return _digest(run.annotations) == _digest(base.annotations) != ""


def comparison_rows(
    runs: Sequence[Run], gmacs: Mapping[Path, str], *, samples: int = BOOTSTRAP, tolerance: float = TOLERANCE
) -> list[dict[str, str]]:
    """One row a run, all with the same columns, as text.

    A published number is shown where the config has a published row, and subtracted only on the data it was measured
    on.

    Args:
        runs: the first is what the others are compared with.
        gmacs: cost by `Run.folder`, as text.
        samples: bootstrap samples of an interval.
        tolerance: points that a measured number may differ from the published one and count as reproduced.
    """
    tasks = [task for task in TASKS if any(run.value(task) is not None for run in runs)]
    return [_row(run, runs[0], tasks, gmacs[run.folder], samples, tolerance) for run in runs]


def verdict(measured: float, published: float, tolerance: float) -> str:
    """Whether a published number, in percent, was reproduced to `tolerance` points, as a word or two."""
    # Both are known to a tenth or a hundredth; the subtraction adds rounding of its own.
    if abs(measured - published) <= tolerance + 1e-9:
        return "reproduced"
    return "above" if measured > published else "below"


def _row(run: Run, base: Run, tasks: Sequence[str], cost: str, samples: int, tolerance: float) -> dict[str, str]:
    row = {
        "run": run.folder.name,
        "model": run.model,
        "recipe": run.recipe,
        "data": run.dataset,
        "parameters (M)": f"{run.parameters / 1e6:.1f}",
        "GMACs": cost,
    }
    published = find_published(run.config_file)
    for task in tasks:
        title, measured = _TITLES[task], run.value(task)
        known = None if published is None else published.value(task, TASKS[task])
        row[f"{title} published"] = "-" if known is None else f"{known:.1f}"
        row[title] = "-" if measured is None else f"{measured:.2f}"
        if published is not None and known is not None and measured is not None and run.dataset == published.dataset:
            judged = verdict(measured, known, tolerance)
            row[f"{title} less published"] = f"{measured - known:+.2f} ({judged}, ±{tolerance:g})"
        else:
            row[f"{title} less published"] = "-"
        if task not in _WITH_INTERVAL:
            continue
        has_both = measured is not None and base.value(task) is not None
        with_interval = run is not base and has_both and same_data(run, base)
        row[f"{title} less first [95%]"] = str(difference(run, base, task, samples=samples)) if with_interval else "-"
    return row


def evaluator_of(run: Run, task: str) -> hotcoco.COCOeval:
    """What measures a finished run, its detections matched.

    Args:
        run: the run.
        task: "bbox" or "segm".

    Raises:
        DataError: annotations or results cannot be read.
    """
    truth = read_ground_truth(run.annotations)
    truth = truth.with_masks() if task == "segm" else truth
    api = truth.hotcoco(masks=task == "segm")
    try:
        found = api.load_res(str(run.results_file))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(f"results {run.results_file} cannot be read ({error})") from error
    evaluator = hotcoco.COCOeval(api, found, task)
    evaluator.params.max_dets = [1, 10, run.max_detections]
    evaluator.evaluate()
    return evaluator


def _digest(path: Path) -> str:
    """First digits of a file's SHA-256; "" where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    except OSError:
        return ""
