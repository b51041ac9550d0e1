"""The table of a study: a row per config, data set and variant, with the mean over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pvt_det.reports.compare import TITLES, WITH_INTERVAL, Difference, difference, published_result, same_data, verdict
from pvt_det.reports.published import PublishedResult, published_results
from pvt_det.results import TASKS, Run
from pvt_det.studies.jobs import EVAL, Job
from pvt_det.studies.study import Study
from pvt_det.utils.numbers import clock
from pvt_det.utils.tables import as_csv, as_markdown

_MISSING = "-"
# Columns for people.
_PARAMETERS, _TIME, _RUNS, _AGAINST, _PUBLISHED = "M", "training", "runs", "against baseline", "published"
_NUMBERS, _TWO_LINES = (_PARAMETERS, _TIME, _RUNS), (_AGAINST, _PUBLISHED)
_VARIANT = "{} ({})"
NOTE = (
    "M: parameters in millions. AP, IoU and PQ are in percent, of the last checkpoint: the mean and the standard "
    "deviation over the seeds. The difference from the baseline is the mean over pairs of runs with the same seed. Its "
    "95 % interval is the mean of their paired bootstrap intervals over the images: it covers the choice of the test "
    "images, not that of the seeds, whose effect the standard deviation shows. A published result is shown beside runs "
    "that follow its recipe, with a verdict if they were evaluated on its data."
)


@dataclass(frozen=True)
class Row:
    """The runs of a config on a data set, with a variant, and what they measured in a task.

    Attributes:
        grid: Name of the grid.
        data: Name of the data set in the study, or as the results record it. "" if no run is finished.
        task: "bbox", "segm", "sem_seg" or another task. "" if no run is finished.
        model: Name of the config, with the variant if there are several.
        runs: The finished runs by seed.
        planned: Number of runs that the study asks for.
        is_baseline: Whether the other rows are compared with this one.
        values: The metric of each run, in percent, by seed.
        against: Mean difference from the baseline. None for the baseline, and without pairs to compare.
        has_interval: Whether `against` has an interval.
        published: The published metric in percent, or None.
        verdict: "reproduced", "above" or "below" the published result, or "".
        source: Publication of the published result, or "".
    """

    grid: str
    data: str
    task: str
    model: str
    runs: dict[int, Run]
    planned: int
    is_baseline: bool = False
    values: dict[int, float] = field(default_factory=dict)
    against: Difference | None = None
    has_interval: bool = False
    published: float | None = None
    verdict: str = ""
    source: str = ""

    @property
    def title(self) -> str:
        """Name of the metric, such as "box AP"."""
        return TITLES.get(self.task, "result")

    @property
    def mean(self) -> float | None:
        """Mean over the seeds, in percent. None without values."""
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds, in percentage points. None for fewer than two."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def parameters(self) -> float | None:
        """Number of parameters in millions, or None without a finished run."""
        return next((run.parameters / 1e6 for run in self.runs.values()), None)

    @property
    def seconds(self) -> float | None:
        """Mean training time in seconds, or None if it is not recorded."""
        times = [run.training_seconds for run in self.runs.values() if run.training_seconds is not None]
        return statistics.fmean(times) if times else None


def study_rows(
    study: Study, jobs: Sequence[Job], results: Mapping[str, Run], *, samples: int, tolerance: float
) -> list[Row]:
    """Return the rows of the table, in the order of the file, with all tasks of a grid's data set in turn.

    Args:
        study: The study.
        jobs: All its runs.
        results: Results of the finished runs by the name of the job.
        samples: Number of bootstrap samples per interval.
        tolerance: Difference in points up to which a published result counts as reproduced.
    """
    groups: dict[tuple[str, str, str], dict[str, list[Job]]] = {}
    for job in (job for job in jobs if job.grid):
        groups.setdefault((job.grid, job.dataset, job.variant), {}).setdefault(job.entry, []).append(job)
    baselines = {grid.name: grid.baseline for grid in study.grids}
    several = {grid.name: len(grid.variants) > 1 for grid in study.grids}
    rows = []
    for (grid, dataset, variant), entries in groups.items():
        found = {name: _finished(part, results) for name, part in entries.items()}
        runs = [run for part in found.values() for run in part.values()]
        tasks = [task for task in TASKS if any(run.value(task) is not None for run in runs)]
        for task in tasks or [""]:
            for name, part in entries.items():
                row = Row(
                    grid=grid,
                    data=dataset or next((run.dataset for run in found[name].values()), ""),
                    task=task,
                    model=_VARIANT.format(name, variant) if several[grid] else name,
                    runs=found[name],
                    planned=len(part),
                    is_baseline=name == baselines[grid],
                    values={s: v for s, run in found[name].items() if task and (v := run.value(task)) is not None},
                )
                rows.append(_compared(row, part[0], found[baselines[grid]], samples, tolerance))
    order = {grid.name: number for number, grid in enumerate(study.grids)}
    return sorted(rows, key=lambda row: order[row.grid])


def _finished(jobs: Sequence[Job], results: Mapping[str, Run]) -> dict[int, Run]:
    """Return the finished runs by seed, that of an evaluation by -1."""
    return {-1 if job.seed is None else job.seed: results[job.name] for job in jobs if job.name in results}


def _compared(row: Row, job: Job, base: Mapping[int, Run], samples: int, tolerance: float) -> Row:
    """Add the difference from the baseline, and the published result."""
    if not row.task or row.mean is None:
        return row
    if not row.is_baseline:
        against, has_interval = _against(row, base, samples)
        row = replace(row, against=against, has_interval=has_interval)
    published = _published(row, job)
    value = None if published is None else published.value(row.task, TASKS[row.task])
    if published is None or value is None or row.mean is None:
        return row
    is_same_data = all(run.dataset == published.dataset for run in row.runs.values())
    outcome = verdict(row.mean, value, tolerance) if is_same_data else ""
    return replace(row, published=value, verdict=outcome, source=published.source)


def _against(row: Row, base: Mapping[int, Run], samples: int) -> tuple[Difference | None, bool]:
    """Return the mean difference over pairs of runs with the same seed and data, and whether it has an interval."""
    task = row.task
    pairs = [(run, base[seed]) for seed, run in row.runs.items() if seed in base and same_data(run, base[seed])]
    if task in WITH_INTERVAL and pairs and all(run.has_detections for pair in pairs for run in pair):
        found = [difference(run, other, task, samples=samples) for run, other in pairs]
        means = (statistics.fmean(getattr(each, name) for each in found) for name in ("value", "lower", "upper"))
        return Difference(*means), True
    values = [(run.value(task), other.value(task)) for run, other in pairs]
    deltas = [value - first for value, first in values if value is not None and first is not None]
    mean = statistics.fmean(deltas) if deltas else None
    return (None if mean is None else Difference(mean, mean, mean)), False


def _published(row: Row, job: Job) -> PublishedResult | None:
    """Return the published result of a row. An evaluation follows no recipe: the name of its config counts."""
    if job.command == EVAL:
        name = Path(job.config).stem
        return next((result for result in published_results() if result.config == name), None)
    return published_result(next(iter(row.runs.values())))


def sections(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield the parts of the table, each with its title: a grid, a data set and a metric.

    Args:
        rows: The rows.
    """
    parts: dict[str, list[Row]] = {}
    for row in rows:
        data = f" on {row.data}" if row.data and row.data != row.grid else ""
        parts.setdefault(f"{row.grid}{data}: {row.title}", []).append(row)
    yield from parts.items()


def cells(row: Row) -> dict[str, str]:
    """Return the cells of a row for people. A missing value is "-".

    Args:
        row: The row.
    """
    parameters, seconds, mean, deviation, difference = row.parameters, row.seconds, row.mean, row.deviation, row.against
    spread = "" if deviation is None else f" ± {deviation:.2f}"
    return {
        "model": row.model,
        _PARAMETERS: _MISSING if parameters is None else f"{parameters:.1f}",
        _TIME: _MISSING if seconds is None else clock(seconds),
        row.title: _MISSING if mean is None else f"{mean:.2f}{spread}",
        _RUNS: f"{len(row.runs)}/{row.planned}",
        _AGAINST: "baseline" if row.is_baseline else _difference(difference, row.has_interval),
        _PUBLISHED: _MISSING if row.published is None else f"{row.published:.1f} {row.verdict}".strip(),
    }


def _difference(found: Difference | None, has_interval: bool) -> str:
    if found is None:
        return _MISSING
    return str(found) if has_interval else f"{found.value:+.2f}"


def as_terminal(rows: Sequence[Row]) -> RenderableType:
    """Build the table for a terminal.

    Args:
        rows: The rows.
    """
    parts: list[RenderableType] = []
    for title, part in sections(rows):
        parts += [Text(title, style="bold"), _terminal_table(part), Text()]
    return Group(*parts)


def _terminal_table(rows: Sequence[Row]) -> Table:
    """Return a table that fits 80 columns: intervals and verdicts have a line of their own."""
    shown = [cells(row) for row in rows]
    if all(row.planned == len(row.runs) == 1 for row in rows):
        shown = [{name: cell for name, cell in row.items() if name != _RUNS} for row in shown]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in shown[0]:
        table.add_column(Text(name), overflow="fold", no_wrap=name in _NUMBERS)
    for row in shown:
        table.add_row(*(Text(cell.replace(" ", "\n", 1) if name in _TWO_LINES else cell) for name, cell in row.items()))
    return table


def as_page_text(rows: Sequence[Row]) -> str:
    """Format the table as Markdown.

    Args:
        rows: The rows.
    """
    parts = [f"**{title}**\n\n{as_markdown([cells(row) for row in part])}" for title, part in sections(rows)]
    return "\n\n".join([*parts, NOTE])


def as_spreadsheet(rows: Sequence[Row]) -> str:
    """Format the table as CSV, with one row per grid, data set, metric and config, and plain numbers.

    Args:
        rows: The rows. There are none if only pretrainings were run.
    """
    return as_csv([_record(row) for row in rows]) if rows else ""


def _record(row: Row) -> dict[str, str]:
    against = row.against
    ends = (against.lower, against.upper) if against is not None and row.has_interval else (None, None)
    numbers = {
        "parameters (M)": row.parameters,
        "training seconds": row.seconds,
        "mean": row.mean,
        "standard deviation": row.deviation,
        "difference": None if against is None else against.value,
        "lower": ends[0],
        "upper": ends[1],
        "published": row.published,
    }
    seeds = " ".join(f"{seed}:{value:.4f}" for seed, value in row.values.items() if seed >= 0)
    return {
        "grid": row.grid,
        "data": row.data,
        "metric": row.title,
        "model": row.model,
        "runs": str(len(row.runs)),
        "planned": str(row.planned),
        "seeds": seeds,
        **{name: "" if value is None else f"{value:.4f}" for name, value in numbers.items()},
        "verdict": row.verdict,
        "source": row.source,
    }
