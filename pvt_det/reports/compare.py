"""Finished runs side by side: size, cost, published and measured AP, and whether a difference is more than chance."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import hotcoco
import numpy as np
import torch
from detectron2.modeling import build_model

from pvt_det.config import load_config
from pvt_det.data.augmentation.transforms import ResizeShortSide, build_detection_augmentations
from pvt_det.data.coco.annotations import read_json
from pvt_det.errors import DataError, PvtDetError
from pvt_det.evaluation.ground_truth import read_ground_truth
from pvt_det.models.complexity import count_gmacs
from pvt_det.reports.published import find_published
from pvt_det.run_folder import TASKS, Run

_TITLES = {"bbox": "box AP", "segm": "mask AP", "sem_seg": "mIoU", "panoptic_seg": "PQ", "classification": "top-1"}
# Tasks of which the written results tell how far a difference is chance.
_WITH_INTERVAL = ("bbox", "segm")
# Points of AP that a reproduction may differ by: what training with another seed moves COCO's AP by.
TOLERANCE = 0.3
# Samples of the images, with replacement, for one interval: a second each at COCO val2017's size.
BOOTSTRAP = 200
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """AP of one run less another's, percent, with its 95% bootstrap interval over images."""

    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.lower:+.2f}, {self.upper:+.2f}]"


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


def describe_gmacs(config_file: str | Path, annotations: str | Path) -> str:
    """Multiply-accumulates of one image, in units of 10⁹, with the input's size, such as "143.2 (800x1067)".

    The image is a grey one of the data set's median size, resized as for testing; heads whose work depends on what
    is found in an image thus count near their least. "-" where the config or the annotations cannot be used.

    Args:
        config_file: the `config.yaml` of a run.
        annotations: COCO-format annotations of the images it is tested on.
    """
    try:
        cfg = load_config(config_file, ["MODEL.DEVICE", "cpu"])
        images = read_json(annotations)["images"]
        sizes = np.array([(image["height"], image["width"]) for image in images])
        height, width = (int(side) for side in np.median(sizes, axis=0))
        resize = build_detection_augmentations(cfg, is_train=False)[-1]
        assert isinstance(resize, ResizeShortSide)
        grey = np.full((height, width, 3), 128, dtype=np.uint8)
        image = torch.as_tensor(resize.get_transform(grey).apply_image(grey).transpose(2, 0, 1))
        model = build_model(cfg)
    except (PvtDetError, KeyError, TypeError, ValueError) as error:
        logger.warning("GMACs not counted: %s", error)
        return "-"
    gmacs = count_gmacs(model, [{"image": image, "height": height, "width": width}])
    return f"{gmacs:.1f} ({image.shape[1]}x{image.shape[2]})"
