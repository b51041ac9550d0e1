"""Run a study: check it, run what is missing, and write its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pvt_det.errors import ConfigError
from pvt_det.reports.defaults import BOOTSTRAP, TOLERANCE
from pvt_det.results import Run
from pvt_det.studies.estimate import Estimate, estimate_jobs, read_benchmark
from pvt_det.studies.jobs import Job, study_jobs
from pvt_det.studies.page import study_page
from pvt_det.studies.runner import Outcome, run_jobs
from pvt_det.studies.state import State, find_state, load_results, require_same
from pvt_det.studies.study import Study
from pvt_det.studies.table import Row, as_page_text, as_spreadsheet, study_rows
from pvt_det.utils.files import write_atomically
from pvt_det.utils.lock import FolderLock
from pvt_det.utils.logs import errors_only
from pvt_det.utils.paths import make_folder
from pvt_det.utils.text import did_you_mean

TABLE_NAMES = ("study.md", "study.csv", "study.html")


@dataclass(frozen=True)
class Plan:
    """What a study consists of and how far it is.

    Attributes:
        study: The study.
        jobs: All its runs, in the order in which they are started.
        states: How far each run is, by its name.
        results: Results of the finished runs, by name.
    """

    study: Study
    jobs: tuple[Job, ...]
    states: Mapping[str, State]
    results: Mapping[str, Run]

    def estimates(self, benchmark: Path | None = None) -> dict[str, Estimate]:
        """Estimate what each run takes.

        Args:
            benchmark: File of `pvt-det benchmark --json` with the training speed of configs, or None.

        Raises:
            DataError: The file cannot be read.
        """
        speeds = read_benchmark(benchmark) if benchmark else None
        return estimate_jobs(
            self.jobs,
            self.results,
            measured_on=self.study.measured_on,
            benchmark=speeds,
            benchmark_file=str(benchmark or ""),
        )


def plan_study(study: Study, only: Sequence[str] = ()) -> Plan:
    """Find out what a study consists of and how far it is, without writing anything.

    Args:
        study: The study.
        only: Patterns (`*`, `?`) of names of runs. Others are left out, except the pretrainings that these runs need.
            Empty takes all.

    Raises:
        ConfigError: A config does not exist, a value does not fit its key, a pattern matches no run, or a folder has a
            run that is not what the study asks for.
        DataError: Results are damaged.
    """
    jobs = study_jobs(study)
    for pattern in only:
        names = [job.name for job in jobs]
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"--only {pattern}: no run has such a name.{did_you_mean(pattern, names)} --dry-run lists the runs."
            )
    if only:
        kept = [job for job in jobs if any(fnmatchcase(job.name, pattern) for pattern in only)]
        needed = {job.needs for job in kept}
        jobs = [job for job in jobs if job in kept or (not job.grid and job.entry in needed)]
    require_same(jobs)
    return _with_states(study, jobs)


def _with_states(study: Study, jobs: Sequence[Job]) -> Plan:
    results = {job.name: found for job in jobs if (found := load_results(job)) is not None}
    return Plan(study, tuple(jobs), {job.name: find_state(job) for job in jobs}, results)


@dataclass(frozen=True)
class Failure:
    """A run that failed.

    Attributes:
        name: Name of the run.
        reason: Why it failed.
        command: The command that runs or resumes it alone.
    """

    name: str
    reason: str
    command: str


@dataclass(frozen=True)
class StudyResults:
    """What a study has measured.

    Attributes:
        rows: The rows of its table.
        output: Folder of its runs and of the files of the table.
        failed: Runs that failed in this call.
        finished: Number of finished runs.
        planned: Number of all runs.
        exit_code: 0, or the exit code of the first run that failed.
    """

    rows: tuple[Row, ...]
    output: Path
    failed: tuple[Failure, ...]
    finished: int
    planned: int
    exit_code: int = 0


def run_study(
    study: Study,
    *,
    only: Sequence[str] = (),
    devices: Sequence[str] = ("",),
    processes: int = 1,
    train: bool = True,
    samples: int = BOOTSTRAP,
    tolerance: float = TOLERANCE,
    resume_command: str = "",
) -> StudyResults:
    """Run what is missing of a study, and write its table to `study.md`, `study.csv` and `study.html`.

    Runs that were interrupted are resumed, and finished ones are kept. A run that fails does not stop the others.

    Args:
        study: The study.
        only: Patterns (`*`, `?`) of names of runs. Empty takes all.
        devices: Values of CUDA_VISIBLE_DEVICES, each for one run at a time. "" does not set it: several of these share
            the cores of the CPU, unless the environment sets OMP_NUM_THREADS.
        processes: Processes of each run, one per GPU.
        train: Whether to run what is missing. Otherwise only the table is written.
        samples: Number of bootstrap samples per interval.
        tolerance: Difference in points up to which a published result counts as reproduced.
        resume_command: The command that continues the study, for the message if it is stopped.

    Returns:
        The table, and which runs failed.

    Raises:
        ConfigError: The study's folder is in use, data is not given or does not exist, or `plan_study` raised an
            error.
        Interrupted: A signal stopped the study.
    """
    make_folder(study.output)
    with FolderLock(study.output) if train else nullcontext():
        plan = plan_study(study, only)
        outcomes: list[Outcome] = []
        if train:
            jobs = missing_jobs(plan)
            outcomes = run_jobs(jobs, study.name, devices=devices, processes=processes, resume_command=resume_command)
            plan = _with_states(study, plan.jobs)
        failures = {outcome.job.name: outcome.reason for outcome in outcomes if outcome.exit_code}
        with errors_only("pvt_det", "detectron2", "matplotlib.font_manager"):
            rows = study_rows(study, plan.jobs, plan.results, samples=samples, tolerance=tolerance)
            _write(plan, rows, failures)
    code = next((outcome.exit_code for outcome in outcomes if outcome.exit_code), 0)
    commands = {job.name: job.shown_command for job in plan.jobs}
    failed = tuple(Failure(name, reason, commands[name]) for name, reason in failures.items())
    return StudyResults(tuple(rows), study.output, failed, len(plan.results), len(plan.jobs), code)


def missing_jobs(plan: Plan) -> list[Job]:
    """Return the runs that are not finished.

    Args:
        plan: The plan.

    Raises:
        ConfigError: Data of such a run is not given or does not exist.
    """
    jobs = [job for job in plan.jobs if plan.states[job.name] is not State.FINISHED]
    if absent := list(dict.fromkeys(job.missing for job in jobs if job.missing)):
        raise ConfigError(f"{plan.study.file}: missing: " + " ".join(absent))
    return jobs


def _write(plan: Plan, rows: Sequence[Row], failures: Mapping[str, str]) -> None:
    page = study_page(plan.study, plan.jobs, plan.states, rows, plan.results, failures)
    for name, text in zip(TABLE_NAMES, (as_page_text(rows), as_spreadsheet(rows), page), strict=True):
        write_atomically(plan.study.output / name, f"{text.rstrip()}\n")
