"""The HTML page of a study: its table, AP against parameters and training time, learning curves, and its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pvt_det.errors import ConfigError
from pvt_det.reports import figures
from pvt_det.reports.compare import TITLES
from pvt_det.reports.page import points
from pvt_det.results import TASKS, Run
from pvt_det.run_folder import read_history
from pvt_det.studies.jobs import Job
from pvt_det.studies.state import State
from pvt_det.studies.study import Study
from pvt_det.studies.table import NOTE, Row, cells, sections
from pvt_det.utils.html import Html, code, details, drawings, join, notice, page, paragraph, table
from pvt_det.utils.plain_yaml import read_text

_PARAMETERS = "{metric} over the number of parameters: the mean over the seeds, and its standard deviation."
_TIME = "{metric} over the training time: the mean over the seeds, and its standard deviation."
_CURVES = "{metric} at each evaluation, mean over the seeds."
_LOSSES = "Training loss, mean over the seeds."
Points = list[tuple[float, float]]
_Positions = dict[str, tuple[float, float, float | None]]


def study_page(
    study: Study,
    jobs: Sequence[Job],
    states: Mapping[str, State],
    rows: Sequence[Row],
    results: Mapping[str, Run],
    failures: Mapping[str, str],
) -> str:
    """Build the page of a study as one self-contained HTML document.

    Args:
        study: The study.
        jobs: All its runs.
        states: How far each run is, by its name.
        rows: The rows of its table.
        results: Results of the finished runs, by name.
        failures: Why runs failed, by name.
    """
    done = len(results)
    notes = [] if done == len(jobs) else [f"{done} of {len(jobs)} runs are finished."]
    notes += [f"{name} failed: {reason}" for name, reason in failures.items()]
    parts = [(title, _section(part)) for title, part in sections(rows)]
    head = join(*(notice(note, "warning") for note in notes), paragraph(NOTE))
    return page(
        f"Study {study.name}",
        [
            ("About", head),
            *parts,
            ("Runs", _runs(jobs, states, results, failures)),
            ("Study file", details(study.file.name, code(read_text(study.file, ConfigError)))),
        ],
        lead=study.description,
    )


def _section(rows: Sequence[Row]) -> Html:
    shown = [cells(row) for row in rows]
    return join(table(list(shown[0]), [list(row.values()) for row in shown]), _figures(rows), _sources(rows))


def _sources(rows: Sequence[Row]) -> Html:
    found = sorted({row.source for row in rows if row.source})
    return paragraph(f"Published results: {'; '.join(found)}.") if found else Html("")


def _figures(rows: Sequence[Row]) -> Html:
    measured = [row for row in rows if row.mean is not None]
    if not measured:
        return Html("")
    metric = rows[0].title
    parts = []
    by_size, by_time = _Positions(), _Positions()
    for row in rows:
        if row.mean is not None and row.parameters is not None:
            by_size[row.model] = (row.parameters, row.mean, row.deviation)
        if row.mean is not None and row.seconds is not None:
            by_time[row.model] = (row.seconds / 3600, row.mean, row.deviation)
    drawn = ((by_size, "Parameters (M)", _PARAMETERS), (by_time, "Training time (hours)", _TIME))
    for found, label, caption in drawn:
        if found:
            parts.append(figures.scatter(found, label, f"{metric} (%)", caption.format(metric=metric)))
    task = rows[0].task
    curves = _curves(measured, f"{task}/{TASKS[task]}")
    if any(len(line) > 1 for line in curves.values()):
        parts.append(figures.curves(curves, metric, _CURVES.format(metric=metric)))
    if losses := _curves(measured, "total_loss"):
        parts.append(figures.curves(losses, "Loss", _LOSSES, log=True))
    return drawings(parts)


def _curves(rows: Sequence[Row], metric: str) -> dict[str, Points]:
    """Return the mean over the seeds at the iterations at which all runs of a row have a value, by model."""
    found = {}
    for row in rows:
        lines = [dict(points(read_history(run.folder), metric)) for run in row.runs.values()]
        common = sorted(set.intersection(*(set(line) for line in lines))) if lines else []
        if common:
            found[row.model] = [(x, sum(line[x] for line in lines) / len(lines)) for x in common]
    return found


def _runs(
    jobs: Sequence[Job], states: Mapping[str, State], results: Mapping[str, Run], failures: Mapping[str, str]
) -> Html:
    rows = []
    for job in jobs:
        state = f"failed: {failures[job.name]}" if job.name in failures else states[job.name].value
        rows.append([job.name, state, _results(results.get(job.name)), code(job.shown_command)])
    return table(["run", "state", "results", "command"], rows)


def _results(run: Run | None) -> str:
    found = {} if run is None else {task: run.value(task) for task in TASKS}
    return ", ".join(f"{TITLES[task]} {value:.2f}" for task, value in found.items() if value is not None)
