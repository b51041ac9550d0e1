"""Write an HTML report about a finished run: its metrics, its errors and how it was trained."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hotcoco

from pvt_det.errors import ConfigError, DataError
from pvt_det.reports import figures
from pvt_det.reports.compare import build_evaluator, comparison_warnings, difference, mismatches, same_data
from pvt_det.reports.detection import TITLES, Section, build_evaluators, detection_sections
from pvt_det.reports.semantic import semantic_sections
from pvt_det.results import Checkpoint, Run, evaluation_command, load_run
from pvt_det.run_folder import CONFIG_NAME, read_history
from pvt_det.utils.files import write_atomically
from pvt_det.utils.html import Html, code, details, drawings, escape, join, notice, page, paragraph, table
from pvt_det.utils.numbers import Signed, cells
from pvt_det.utils.paths import folder_fault, make_parent_folder

_TITLES = {**TITLES, "sem_seg": "Segmentation", "panoptic_seg": "Panoptic segmentation", "validation": "Losses"}
_LOSSES = "loss"
_OLD = (
    "The results were written by an earlier version, which did not record the weights and the ground truth. The "
    "sections below the metrics are computed from the annotation file as it is now. Evaluate again with pvt-det eval."
)
logger = logging.getLogger(__name__)


def write_report(
    run: Path,
    output: Path,
    base: Path | None = None,
    *,
    images: Path | None = None,
    labels: Path | None = None,
    score_threshold: float | None = None,
) -> None:
    """Write an HTML report about a run.

    Args:
        run: Run folder.
        output: HTML file to write.
        base: Run folder of another run to compare with.
        images: Folder of the validation images. None takes the one that the run's config names.
        labels: Folder of the validation label maps. None takes the one that the run's config names.
        score_threshold: Minimum score of the detections that are drawn and counted, 0 to 1. None takes the threshold
            with the best F1.

    Raises:
        ConfigError: The report cannot be written to `output`, `images` or `labels` is not a folder, or the score
            threshold is not from 0 to 1.
        DataError: A file of a run is missing or broken, or a run was evaluated on several data sets.
    """
    if score_threshold is not None and not 0 <= score_threshold <= 1:
        raise ConfigError(f"score threshold {score_threshold:g}: expected a number from 0 to 1.")
    make_parent_folder(output)
    for option, folder, what in (("images", images, "images"), ("labels", labels, "label maps")):
        if folder is not None and (fault := folder_fault(folder)):
            raise ConfigError(f"--val-{option} {folder} {fault}. Expected the folder of the validation {what}.")
    about, other = load_run(run), None if base is None else load_run(base)
    for each in (about, other) if other else (about,):
        _require_one_data_set(each)
    if not about.metrics:
        logger.warning("%s was not evaluated. Evaluate it with %s", about.folder, evaluation_command(about.folder))
    write_atomically(output, _page(about, other, images, labels, score_threshold))


def _require_one_data_set(run: Run) -> None:
    several = [
        name for name, values in run.metrics.items() if any(isinstance(value, dict) for value in values.values())
    ]
    if several:
        raise DataError(
            f"{run.folder} was evaluated on several data sets ({', '.join(several)}) by an earlier version. A report "
            "covers one data set. Evaluate again with pvt-det eval, which writes results for each."
        )


def _page(run: Run, base: Run | None, images: Path | None, labels: Path | None, score_threshold: float | None) -> str:
    """Return the report as one self-contained HTML document, with a comparison if a base run is given."""
    config, history = run.folder / CONFIG_NAME, read_history(run.folder)
    evaluators = build_evaluators(run)
    sections: list[Section] = [("Metrics", _metrics(run))]
    if base is not None:
        sections.append((f"Compared with {base.folder.resolve().name}", _comparison(run, base, evaluators)))
    sections += detection_sections(run, evaluators, images=images, score_threshold=score_threshold)
    sections += semantic_sections(run, images=images, labels=labels)
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
    notes = mismatches(run) if run.kind else [_OLD, *run.mismatches]
    if not run.metrics:
        notes.append(f"The run was not evaluated. Evaluate it with {evaluation_command(run.folder)}")
    parts = [_checkpoint(each) for each in (*shown, *others)]
    return join(*(notice(note, "warning") for note in notes), paragraph("AP, AR, IoU and PQ are in percent."), *parts)


def _checkpoint(checkpoint: Checkpoint) -> Html:
    digest = f", SHA-256 {checkpoint.sha256}" if checkpoint.sha256 else ", SHA-256 not recorded"
    parts = [paragraph(f"Weights: {checkpoint}{digest}.")]
    for task, values in checkpoint.metrics.items():
        whole = {name: value for name, value in values.items() if not name.startswith(("AP-", "IoU-", "ACC-"))}
        parts.append(
            join(Html(f"<h3>{escape(_TITLES.get(task, task))}</h3>"), table(list(whole), [cells(whole.values())]))
        )
    return join(*parts)


def _comparison(run: Run, base: Run, evaluators: Mapping[str, hotcoco.COCOeval]) -> Html:
    parts = [notice(warning, "warning") for warning in comparison_warnings([run, base])]
    rows = []
    for task, values in run.metrics.items():
        for name, value in values.items():
            if "-" not in name:
                other = base.metrics.get(task, {}).get(name)
                delta = "" if value is None or other is None else Signed(value - other)
                rows.append([f"{_TITLES.get(task, task)} {name}", *cells([value, other]), delta])
    name, other_name = run.folder.resolve().name, base.folder.resolve().name
    parts.append(table(["metric", name, other_name, "difference"], rows))
    for task, evaluator in evaluators.items():
        if same_data(run, base) and base.value(task) is not None and base.has_detections:
            interval = difference(run, base, task)
            parts.append(paragraph(f"{_TITLES[task]}: AP differs by {interval} (95% bootstrap interval over images)."))
            compared = hotcoco.compare(build_evaluator(base, task), evaluator)
            parts.append(figures.class_differences(compared, name, other_name))
    return join(*parts)


def _training(history: Sequence[Mapping[str, Any]]) -> Html:
    losses = {name: points(history, name) for name in _names(history) if _LOSSES in name and "/" not in name}
    measured = {
        f"{_TITLES[task].lower()} {metric}": points(history, f"{task}/{metric}")
        for task, metric in (("bbox", "AP"), ("segm", "AP"), ("sem_seg", "mIoU"), ("panoptic_seg", "PQ"))
    }
    drawn = [
        ("Loss", losses, "Loss terms and total loss.", True),
        ("Validation metrics", measured, "Metrics in percent at each evaluation.", False),
        ("Learning rate", {"lr": points(history, "lr")}, "Learning rate schedule.", False),
    ]
    parts = [
        figures.curves(kept, title, caption, log=log)
        for title, series, caption, log in drawn
        if (kept := {name: points for name, points in series.items() if points})
    ]
    return drawings(parts)


def _names(history: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({name for line in history for name in line})


def points(history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Return the finite values of a metric over the iterations.

    Args:
        history: The lines of `metrics.json`, as `read_history` returns them.
        name: Name of the metric, such as "bbox/AP".
    """
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
