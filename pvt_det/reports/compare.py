"""Compare finished runs: size, cost, published and measured AP, and confidence intervals of the differences."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import hotcoco
import numpy as np
import torch
from detectron2.modeling import build_model

from pvt_det.config import config_digest, load_config
from pvt_det.config.digest import recipe_digest
from pvt_det.data.augmentation.transforms import ResizeShortSide, build_detection_augmentations
from pvt_det.data.coco.annotations import read_json
from pvt_det.errors import DataError, PvtDetError
from pvt_det.evaluation.detections import read_results
from pvt_det.evaluation.metrics import run_hotcoco
from pvt_det.models.complexity import count_gmacs
from pvt_det.reports.defaults import BOOTSTRAP, TOLERANCE
from pvt_det.reports.published import PublishedResult, find_published
from pvt_det.results import TASKS, Run
from pvt_det.run_folder import CONFIG_NAME
from pvt_det.utils.numbers import clock
from pvt_det.utils.paths import distinct_names

TITLES = {"bbox": "box AP", "segm": "mask AP", "sem_seg": "mIoU", "panoptic_seg": "PQ", "classification": "top-1"}
# Tasks whose results file allows a bootstrap interval of the difference.
WITH_INTERVAL = ("bbox", "segm")
_DETAILS = ("AP50", "AP75")
_MISSING = "-"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """Difference in AP between two runs, with its 95% bootstrap interval over images.

    Attributes:
        value: Difference in percentage points.
        lower: Lower bound of the interval in percentage points.
        upper: Upper bound of the interval in percentage points.
    """

    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.lower:+.2f}, {self.upper:+.2f}]"


def difference(run: Run, base: Run, task: str, *, samples: int = BOOTSTRAP) -> Difference:
    """Compute the AP of a run minus that of another run on the same images, with its interval.

    Args:
        run: The run.
        base: The run to compare with.
        task: "bbox" or "segm".
        samples: Number of bootstrap samples.

    Raises:
        DataError: The annotations or results of a run cannot be read.
    """
    found = hotcoco.compare(
        build_evaluator(base, task), build_evaluator(run, task), n_bootstrap=samples, confidence=0.95
    )
    interval = found["ci"]["AP"]
    return Difference(*(100 * value for value in (found["deltas"]["AP"], interval["lower"], interval["upper"])))


def comparison_warnings(runs: Sequence[Run]) -> list[str]:
    """Return one line for each recipe, data set or limit that differs between runs and makes them incomparable.

    Files that differ from what the results of a run record are named too.

    Args:
        runs: The runs to compare.
    """
    found = [f"{run.folder}: {line}" for run in runs for line in mismatches(run)]
    names = distinct_names([run.folder for run in runs])
    for what, values in {
        "recipes": [run.recipe for run in runs],
        "data sets": [f"{run.dataset} ({run.data_digest[:8] or 'not recorded'})" for run in runs],
        "limits on detections per image": [str(run.max_detections) for run in runs],
    }.items():
        if len(set(values)) > 1:
            listed = "; ".join(f"{name}: {value}" for name, value in zip(names, values, strict=True))
            found.append(f"{what} differ: {listed}")
    return found


def mismatches(run: Run) -> list[str]:
    """Return a sentence for each file in a run folder that differs from what the results record.

    Args:
        run: The run. Its weights, detections, ground truth and config are compared with the recorded digests.
    """
    return [*run.mismatches, *config_mismatch(run)]


def config_mismatch(run: Run) -> list[str]:
    """Return a sentence if the config in a run folder differs from what the results record.

    Args:
        run: The run.
    """
    config, results = run.folder / CONFIG_NAME, run.results_file.name
    if not run.config_sha256 or not config.is_file():
        return []
    try:
        differs = config_digest(load_config(config)) != run.config_sha256
    except PvtDetError as error:
        return [f"{CONFIG_NAME} cannot be compared with {results}: {error}"]
    text = (
        f"{CONFIG_NAME} is not the config that {results} describes: its digest differs. The metrics are those of the "
    )
    return [f"{text}recorded config. Evaluate again with pvt-det eval."] if differs else []


def same_data(run: Run, base: Run) -> bool:
    """Whether two runs were evaluated on the same data, by the digests that were recorded when they were evaluated.

    Args:
        run: The run.
        base: The run to compare with.
    """
    return run.data_digest == base.data_digest != ""


def comparison_rows(
    runs: Sequence[Run], gmacs: Mapping[Path, str], *, samples: int = BOOTSTRAP, tolerance: float = TOLERANCE
) -> list[dict[str, str]]:
    """Return one table row per run, all with the same columns and values as strings. A missing value is "-".

    A published result is shown if the run has its architecture, schedule and settings, whatever the name of its config
    is. It is only compared with a result on the same data.

    Args:
        runs: The runs. All others are compared with the first.
        gmacs: Cost of one image by `Run.folder`, as `describe_gmacs` formats it.
        samples: Number of bootstrap samples per interval.
        tolerance: Difference in points up to which a published result counts as reproduced.
    """
    tasks = [task for task in TASKS if any(run.value(task) is not None for run in runs)]
    rows = []
    for run, name in zip(runs, distinct_names([run.folder for run in runs]), strict=True):
        row = {"run": name, **_description(run, gmacs[run.folder])}
        published = published_result(run)
        for task in tasks:
            row |= _published_columns(run, published, task, tolerance)
            row |= _details(run, task)
            row |= _against_first(run, runs[0], task, samples)
        rows.append(row)
    return rows


def verdict(measured: float, published: float, tolerance: float) -> str:
    """Return whether a published result was "reproduced", or whether the measured one is "above" or "below" it.

    Args:
        measured: The measured result in percent.
        published: The published result in percent.
        tolerance: Difference in points up to which the result counts as reproduced.
    """
    # Allow for the rounding error of the subtraction.
    if abs(measured - published) <= tolerance + 1e-9:
        return "reproduced"
    return "above" if measured > published else "below"


def _description(run: Run, cost: str) -> dict[str, str]:
    return {
        "model": run.model,
        "recipe": run.recipe,
        "weights": str(run.checkpoint) if run.checkpoint else _MISSING,
        "data": run.dataset or _MISSING,
        "parameters (M)": f"{run.parameters / 1e6:.1f}",
        "GMACs": cost,
        "training time": _MISSING if run.training_seconds is None else clock(run.training_seconds),
        "peak memory (GiB)": _MISSING if run.peak_memory_gib is None else f"{run.peak_memory_gib:.1f}",
    }


def _published_columns(run: Run, published: PublishedResult | None, task: str, tolerance: float) -> dict[str, str]:
    title, measured = TITLES[task], run.value(task)
    reference = None if published is None else published.value(task, TASKS[task])
    against = _MISSING
    if published and reference is not None and measured is not None and run.dataset == published.dataset:
        result = verdict(measured, reference, tolerance)
        against = f"{measured - reference:+.2f} ({result}, ±{tolerance:g})"
    return {
        f"{title} published": _MISSING if reference is None else f"{reference:.1f}",
        title: _percent(measured),
        f"{title} vs. published": against,
    }


def _details(run: Run, task: str) -> dict[str, str]:
    """Return AP50 and AP75 of a detector, under names such as "box AP50"."""
    metrics = run.metrics.get(task, {})
    names = _DETAILS if task in WITH_INTERVAL else ()
    return {TITLES[task].replace("AP", name): _percent(metrics.get(name)) for name in names}


def _percent(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.2f}"


def _against_first(run: Run, base: Run, task: str, samples: int) -> dict[str, str]:
    """Return the difference from the first run, with its interval where detections allow one."""
    value, first, shown = run.value(task), base.value(task), _MISSING
    with_interval = task in WITH_INTERVAL
    if run is not base and value is not None and first is not None and same_data(run, base):
        if not with_interval:
            shown = f"{value - first:+.2f}"
        elif run.has_detections and base.has_detections:
            shown = str(difference(run, base, task, samples=samples))
    return {f"{TITLES[task]} vs. first{' [95%]' if with_interval else ''}": shown}


def build_evaluator(run: Run, task: str, min_score: float = 0.0) -> hotcoco.COCOeval:
    """Build the evaluator of a finished run, with accumulated results.

    Args:
        run: The run.
        task: "bbox" or "segm".
        min_score: Minimum score of the detections, 0 to 1. With 0, the results equal the recorded metrics.

    Raises:
        DataError: The ground truth or the detections cannot be read.
    """
    truth = run.read_ground_truth()
    if run.detections_file is None:
        raise DataError(f"{run.results_file} names no detections. Evaluate again with pvt-det eval.")
    found = [each.with_score(min_score) for each in read_results(run.detections_file, truth)]
    return run_hotcoco(truth.with_masks() if task == "segm" else truth, found, task, run.max_detections)


def published_result(run: Run) -> PublishedResult | None:
    """Return the published result whose recipe a run followed, or None.

    Args:
        run: The run. If its results do not record the recipe, that of its config counts.
    """
    return find_published(_recipe(run))


def _recipe(run: Run) -> str:
    """Return the digest of a run's recipe, from its config if the results do not record it. "" if it is unknown."""
    config = run.folder / CONFIG_NAME
    if run.recipe_sha256 or not config.is_file():
        return run.recipe_sha256
    try:
        return recipe_digest(load_config(config))
    except PvtDetError:
        return ""


def describe_gmacs(config_file: str | Path, annotations: str | Path | None) -> str:
    """Count the multiply-accumulate operations (GMACs) of a model for one image.

    The image is a gray one of the data set's median size, resized as for testing. Heads whose work depends on the
    detections are therefore counted near their minimum.

    Args:
        config_file: The `config.yaml` of a run.
        annotations: COCO-format annotations of the test images, or None if there are none.

    Returns:
        GMACs and input size, such as "143.2 (800x1067)", or "-" if the config or the annotations cannot be used.
    """
    if annotations is None:
        return "-"
    try:
        cfg = load_config(config_file, ["MODEL.DEVICE", "cpu"], training=False)
        images = read_json(annotations)["images"]
        sizes = np.array([(image["height"], image["width"]) for image in images])
        height, width = (int(side) for side in np.median(sizes, axis=0))
        resize = build_detection_augmentations(cfg, is_train=False)[-1]
        assert isinstance(resize, ResizeShortSide)
        gray = np.full((height, width, 3), 128, dtype=np.uint8)
        image = torch.as_tensor(resize.get_transform(gray).apply_image(gray).transpose(2, 0, 1))
        model = build_model(cfg)
    except (PvtDetError, KeyError, TypeError, ValueError) as error:
        logger.warning("GMACs were not counted: %s", error)
        return "-"
    gmacs = count_gmacs(model, [{"image": image, "height": height, "width": width}])
    return f"{gmacs:.1f} ({image.shape[1]}x{image.shape[2]})"
