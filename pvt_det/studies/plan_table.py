"""The plan of a study for a terminal: its runs, and what they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from pvt_det.studies.estimate import Estimate
from pvt_det.studies.jobs import EVAL, TRAIN, TRAIN_CLS, Job
from pvt_det.studies.run import Plan
from pvt_det.studies.state import State
from pvt_det.utils.tables import as_table
from pvt_det.utils.text import counted

_UNKNOWN = "?"
# What to do about unknown hours, by command.
_NO_BASIS = {
    TRAIN: "Unknown hours of training: no run of the config is finished, and the study's file has no duration. Measure "
    "it with pvt-det benchmark --modes training --json FILE and add --benchmark FILE.",
    TRAIN_CLS: "Unknown hours of a pretraining: the study's file has no seconds_per_epoch for it.",
    EVAL: "Unknown hours of evaluations: they are not estimated.",
}
_DEVICE_HOURS = "Device-hours are GPU-hours if the runs use GPUs."
_DISK = (
    "Disk space: the last training state, the best and the final weights of each run, from its parameters. Downloaded "
    "weights are not counted."
)


def as_plan(plan: Plan, estimates: Mapping[str, Estimate]) -> RenderableType:
    """Build the plan: a row per run that is left, and the sums.

    Args:
        plan: The plan.
        estimates: What each run takes, by its name.
    """
    left = [job for job in plan.jobs if plan.states[job.name] is not State.FINISHED]
    head = f"{plan.study.name}: {plan.study.description}" if plan.study.description else plan.study.name
    counts = f"{counted(len(plan.jobs), 'run')}, {len(plan.jobs) - len(left)} of them finished."
    parts: list[RenderableType] = [Text(head), Text(f"Output: {plan.study.output}"), Text(counts)]
    if left:
        parts.append(as_table([_cells(plan, job, estimates[job.name]) for job in left]))
        parts += [Text(line) for line in _sums(left, estimates)]
    parts += [Text(f"Missing: {what}") for what in dict.fromkeys(job.missing for job in left if job.missing)]
    return Group(*parts)


def _cells(plan: Plan, job: Job, estimate: Estimate) -> dict[str, str]:
    steps = _UNKNOWN if estimate.iterations is None else f"{estimate.iterations:,}"
    if estimate.iterations is not None and job.command == TRAIN_CLS:
        steps = counted(estimate.iterations, "epoch")
    return {
        "run": job.name,
        "state": plan.states[job.name].value,
        "iterations": "-" if job.command == EVAL else steps,
        "hours": _hours(estimate.seconds),
        "GB": f"{estimate.disk / 1e9:.1f}",
    }


def _hours(seconds: float | None) -> str:
    return _UNKNOWN if seconds is None else f"{seconds / 3600:.2f}"


def _sums(jobs: Sequence[Job], estimates: Mapping[str, Estimate]) -> list[str]:
    found = [estimates[job.name] for job in jobs]
    known = [each for each in found if each.seconds is not None]
    seconds = sum(each.seconds or 0 for each in known)
    iterations = sum(e.iterations or 0 for job, e in zip(jobs, found, strict=True) if job.command != TRAIN_CLS)
    unknown = len(found) - len(known)
    size = f"{sum(each.disk for each in found) / 1e9:.1f} GB"
    lines = [f"In all: {counted(len(jobs), 'run')}, {iterations:,} iterations, {_total(seconds, unknown)}, {size}."]
    for basis in dict.fromkeys(each.basis for each in known):
        part = sum(each.basis == basis for each in known)
        lines.append(f"Hours of {counted(part, 'run')}: measured, {basis}.")
    without = {job.command for job in jobs if estimates[job.name].seconds is None}
    return [*lines, *(advice for command, advice in _NO_BASIS.items() if command in without), _DEVICE_HOURS, _DISK]


def _total(seconds: float, unknown: int) -> str:
    """Return the hours of one device at a time: GPU-hours if the runs use GPUs."""
    if unknown and not seconds:
        return "unknown device-hours"
    left_out = f" without {counted(unknown, 'run')} whose hours are unknown" if unknown else ""
    return f"{seconds / 3600:.1f} device-hours{left_out}"
