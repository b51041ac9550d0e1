"""Write an HTML report about a finished run: its metrics, its errors and how it was trained."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
from detectron2.data import DatasetCatalog

from pvt_det.config import load_config
from pvt_det.data.sets import register_datasets
from pvt_det.errors import DataError, PvtDetError
from pvt_det.reports import figures
from pvt_det.reports.compare import build_evaluator, comparison_warnings, difference, mismatches, same_data
from pvt_det.reports.pictures import worst_images
from pvt_det.reports.semantic import semantic_sections
from pvt_det.results import Checkpoint, Run, load_run
from pvt_det.run_folder import CONFIG_NAME, METRICS_NAME
from pvt_det.utils.files import write_atomically
from pvt_det.utils.html import Html, code, details, drawings, escape, join, notice, page, paragraph, table
from pvt_det.utils.paths import make_parent_folder

_DETECTION = {"bbox": "Boxes", "segm": "Masks"}
_TITLES = {**_DETECTION, "sem_seg": "Segmentation", "panoptic_seg": "Panoptic segmentation", "validation": "Losses"}
_SIZES = ("all", "small", "medium", "large")
_LOSSES = "loss"
_OLD = (
    "The results were written by an earlier version, which did not record the weights and the ground truth. The "
    "sections below the metrics are computed from the annotation file as it is now. Evaluate again with pvt-det eval."
)
# A table of more classes is collapsed.
_SHOWN_CLASSES = 30


def write_report(run: Path, output: Path, base: Path | None = None) -> None:
    """Write an HTML report about a finished run.

    Args:
        run: Run folder.
        output: HTML file to write.
        base: Run folder of another run to compare with.

    Raises:
        ConfigError: The report cannot be written to `output`.
        DataError: A file of a run is missing or broken, or a run was evaluated on several data sets.
    """
    make_parent_folder(output)
    about, other = load_run(run), None if base is None else load_run(base)
    for each in (about, other) if other else (about,):
        _require_one_data_set(each)
    write_atomically(output, _page(about, other))


def _require_one_data_set(run: Run) -> None:
    several = [
        name for name, values in run.metrics.items() if any(isinstance(value, dict) for value in values.values())
    ]
    if several:
        raise DataError(
            f"{run.folder} was evaluated on several data sets ({', '.join(several)}). A report covers one data set. "
            "Set DATASETS.TEST to one of them and evaluate again."
        )


def _page(run: Run, base: Run | None) -> str:
    """Return the report as one self-contained HTML document, with a comparison if a base run is given."""
    config, history = run.folder / CONFIG_NAME, _read_history(run.folder / METRICS_NAME)
    evaluators = {task: build_evaluator(run, task) for task in _DETECTION if task in run.metrics and run.has_detections}
    for evaluator in evaluators.values():
        # `summarize` would print.
        evaluator.summary_lines()
    sections: list[tuple[str, Any]] = [("Metrics", _metrics(run))]
    if base is not None:
        sections.append((f"Compared with {base.folder.resolve().name}", _comparison(run, base, evaluators)))
    for task, evaluator in evaluators.items():
        sections += _detection_sections(_DETECTION[task], evaluator)
    sections += semantic_sections(run)
    if "bbox" in evaluators:
        sections.append(("Worst images", _worst(run, config)))
    if history:
        sections.append(("Training", _training(history)))
    sections.append(("Environment", _environment(run.environment)))
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    sections.append(("Configuration", details("All config keys", code(text))))
    lead = f"{run.recipe}; {run.parameters / 1e6:.1f} M parameters; evaluated on {run.dataset or 'no data set'}."
    return page(f"{run.model} ({run.folder.resolve().name})", sections, lead=lead)


def _metrics(run: Run) -> Html:
    """Return the metrics of the shown checkpoint and then of the others, each under its name."""
    shown = [run.checkpoint] if run.checkpoint else []
    others = [each for each in run.checkpoints.values() if each is not run.checkpoint and each.metrics]
    notes = mismatches(run) if run.kind else [_OLD]
    return join(*(notice(note, "warning") for note in notes), *(_checkpoint(each) for each in (*shown, *others)))


def _checkpoint(checkpoint: Checkpoint) -> Html:
    digest = f", SHA-256 {checkpoint.sha256}" if checkpoint.sha256 else ", SHA-256 not recorded"
    parts = [paragraph(f"Weights: {checkpoint}{digest}.")]
    for task, values in checkpoint.metrics.items():
        whole = {name: value for name, value in values.items() if not name.startswith(("AP-", "IoU-", "ACC-"))}
        parts.append(
            join(Html(f"<h3>{escape(_TITLES.get(task, task))}</h3>"), table(list(whole), [_row(whole.values())]))
        )
    return join(*parts)


def _detection_sections(title: str, evaluator: hotcoco.COCOeval) -> list[tuple[str, Any]]:
    return [
        (f"{title}: classes and sizes", _classes(evaluator)),
        (f"{title}: precision and recall", figures.precision_recall(evaluator)),
        (f"{title}: errors and calibration", figures.errors(evaluator)),
        (f"{title}: confusion", figures.confusion(evaluator)),
    ]


def _classes(evaluator: hotcoco.COCOeval) -> Html:
    """Return a table with the AP of each class: overall, at two IoU thresholds, and by size."""
    result = evaluator.eval
    assert result is not None
    precision = result["precision"]
    areas = list(evaluator.params.area_rng_lbl)
    truth = evaluator.coco_gt
    rows = []
    for k, category in enumerate(evaluator.params.cat_ids):
        of_class = precision[:, :, k, :, -1]
        whole = of_class[:, :, areas.index("all")]
        values = [_mean(whole), _mean(whole[0]), _mean(whole[5])]
        values += [_mean(of_class[:, :, areas.index(size)]) for size in _SIZES[1:]]
        name = truth.load_cats(category)[0]["name"]
        rows.append([name, len(truth.get_ann_ids(cat_ids=category)), *_row(values)])
    shown = table(["class", "objects", "AP", "AP50", "AP75", "small", "medium", "large"], rows)
    return details(f"{len(rows)} classes", shown) if len(rows) > _SHOWN_CLASSES else shown


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else None


def _comparison(run: Run, base: Run, evaluators: Mapping[str, hotcoco.COCOeval]) -> Html:
    parts = [notice(warning, "warning") for warning in comparison_warnings([run, base])]
    rows = []
    for task, values in run.metrics.items():
        for name, value in values.items():
            if "-" not in name:
                other = base.metrics.get(task, {}).get(name)
                delta = "" if value is None or other is None else _Signed(value - other)
                rows.append([f"{_TITLES.get(task, task)} {name}", *_row([value, other]), delta])
    name, other_name = run.folder.resolve().name, base.folder.resolve().name
    parts.append(table(["metric", name, other_name, "difference"], rows))
    for task, evaluator in evaluators.items():
        if same_data(run, base) and base.value(task) is not None and base.has_detections:
            interval = difference(run, base, task)
            parts.append(
                paragraph(f"{_DETECTION[task]}: AP differs by {interval} (95% bootstrap interval over images).")
            )
            compared = hotcoco.compare(build_evaluator(base, task), evaluator)
            parts.append(figures.class_differences(compared, name, other_name))
    return join(*parts)


def _worst(run: Run, config: Path) -> Html:
    images, fault = _images(run, config)
    if fault:
        return notice(f"No visualizations: {fault}", "warning")
    shown = worst_images(run, images)
    lead = (
        f"The images with the most missed objects and false detections: first the ground truth, then the detections "
        f"with a score of at least {figures.SHOWN_SCORE}. Check these images for wrong annotations first."
    )
    return join(paragraph(lead), shown) if shown else paragraph("No image has an error at this score threshold.")


def _images(run: Run, config: Path) -> tuple[dict[int, Path], str]:
    """Return the paths of the evaluated images by id, or the reason why they are not available."""
    if not config.is_file():
        return {}, f"{config} is missing"
    try:
        cfg = load_config(config, training=False)
        register_datasets(cfg, training=False)
        if run.dataset not in cfg.DATASETS.TEST:
            return {}, f"{config} does not name the data set {run.dataset}"
        records = DatasetCatalog.get(run.dataset)
    except (PvtDetError, OSError) as error:
        return {}, str(error)
    missing = next((record["file_name"] for record in records if not Path(record["file_name"]).is_file()), None)
    return ({}, f"{missing} is missing") if missing else ({r["image_id"]: Path(r["file_name"]) for r in records}, "")


def _training(history: Sequence[Mapping[str, Any]]) -> Html:
    losses = {name: _points(history, name) for name in _names(history) if _LOSSES in name and "/" not in name}
    measured = {
        f"{_TITLES[task].lower()} {metric}": _points(history, f"{task}/{metric}")
        for task, metric in (("bbox", "AP"), ("segm", "AP"), ("sem_seg", "mIoU"), ("panoptic_seg", "PQ"))
    }
    drawn = [
        ("Loss", losses, "Loss terms and total loss.", True),
        ("Validation metrics", measured, "Metrics in percent at each evaluation during training.", False),
        ("Learning rate", {"lr": _points(history, "lr")}, "Learning rate schedule.", False),
    ]
    parts = [
        figures.curves(kept, title, caption, log=log)
        for title, series, caption, log in drawn
        if (kept := {name: points for name, points in series.items() if points})
    ]
    return drawings(parts)


def _names(history: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({name for line in history for name in line})


def _points(history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    found = [(line["iteration"], line[name]) for line in history if name in line and "iteration" in line]
    return [(x, y) for x, y in found if isinstance(y, int | float) and math.isfinite(y)]


def _environment(environment: Mapping[str, Any]) -> Html:
    if not environment:
        return paragraph("Not recorded: the run was created by an older version of pvt_det.")
    rows = [
        [name, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)]
        for name, value in environment.items()
    ]
    return table(["", ""], rows)


def _row(values: Any) -> list[Any]:
    """Format numbers with one decimal place, and missing values as empty strings."""
    return ["" if value is None else _Number(value) for value in values]


class _Number(float):
    """A number shown with one decimal place."""

    def __str__(self) -> str:
        return f"{float(self):.1f}"


class _Signed(float):
    """A difference shown with its sign."""

    def __str__(self) -> str:
        return f"{float(self):+.1f}"


def _read_history(file: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a `metrics.json`, which may be missing."""
    if not file.is_file():
        return []
    lines = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            # The line is incomplete because the run was killed.
            continue
    return [line for line in lines if isinstance(line, dict)]
