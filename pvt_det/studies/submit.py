"""Submit the runs of a study to Slurm as an array, through submitit."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from pvt_det.errors import ConfigError
from pvt_det.run_folder import STUDY_LOG_NAME
from pvt_det.studies.jobs import Job
from pvt_det.studies.run import missing_jobs, plan_study
from pvt_det.studies.runner import command_line, failure
from pvt_det.studies.state import find_difference, write_record
from pvt_det.studies.study import Study
from pvt_det.utils.extras import require_packages
from pvt_det.utils.lock import FolderLock
from pvt_det.utils.paths import make_folder

# Folder in that of the study for the scripts and logs of submitit.
_FOLDER = "slurm"
_TIMEOUT_MINUTES = 24 * 60


def submit_study(
    study: Study,
    *,
    only: Sequence[str] = (),
    cluster: str = "slurm",
    processes: int = 1,
    parameters: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Submit the runs that are not finished. Pretrainings are submitted first, and the runs that need them wait.

    Args:
        study: The study.
        only: Patterns (`*`, `?`) of names of runs. Empty takes all.
        cluster: "slurm", or "local" or "debug" for submitit's executors that need no Slurm. They end the pretrainings
            before the others are submitted.
        processes: GPUs of each run.
        parameters: Parameters of `submitit.AutoExecutor.update_parameters`, over the defaults: a GPU per process and 24
            hours.

    Returns:
        The jobs, as submitit returns them.

    Raises:
        ConfigError: submitit or Slurm is not available, a parameter is wrong, or `run_study` would raise an error.
    """
    require_packages("--submit", "submitit", extra="slurm")
    import submitit

    make_folder(study.output)
    with FolderLock(study.output):
        jobs = missing_jobs(plan_study(study, only))
        values = {
            "name": study.name,
            "timeout_min": _TIMEOUT_MINUTES,
            "gpus_per_node": processes,
            **{key: _number(value) for key, value in (parameters or {}).items()},
        }
        try:
            executor = submitit.AutoExecutor(folder=study.output / _FOLDER, cluster=cluster)
            executor.update_parameters(**values)
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            first = str(error).splitlines()[0].rstrip(".")
            raise ConfigError(f"--submit: {first}. Check --cluster and --slurm.") from error
        submitted = _submit(executor, [job for job in jobs if not job.grid], study, processes)
        if submitted and cluster == "slurm":
            ids = ":".join(job.job_id for job in submitted)
            executor.update_parameters(slurm_additional_parameters={"dependency": f"afterok:{ids}"})
        elif submitted:
            for job in submitted:
                job.wait()
        return submitted + _submit(executor, [job for job in jobs if job.grid], study, processes)


def _submit(executor: Any, jobs: Sequence[Job], study: Study, processes: int) -> list[Any]:
    """Submit jobs as one array."""
    with executor.batch(allow_implicit_submissions=True):
        return [executor.submit(SubmittedJob(job, study.name, processes)) for job in jobs]


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class SubmittedJob:
    """Runs a job in a process of its own. submitit calls it on a machine of the cluster.

    Args:
        job: The job.
        study: Name of the study.
        processes: Processes of the job, one per GPU.
    """

    def __init__(self, job: Job, study: str, processes: int) -> None:
        self._job, self._study, self._processes = job, study, processes
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Run the job.

        Raises:
            RuntimeError: The job failed, which Slurm then shows.
        """
        if reason := find_difference(self._job):
            raise RuntimeError(f"{self._job.name}: its folder has an earlier run that differs: {reason}")
        write_record(self._job, self._study)
        path = self._job.folder / STUDY_LOG_NAME
        with path.open("ab") as log:
            begins_at = log.tell()
            words = command_line(self._job, self._processes)
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            code = self._process.wait()
        if reason := failure(code, path, begins_at):
            raise RuntimeError(f"{self._job.name} failed: {reason}")

    def checkpoint(self) -> Any:
        """Let the run save its state before the time limit or a preemption, and put it into the queue again."""
        import submitit

        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        return submitit.helpers.DelayedSubmission(SubmittedJob(self._job, self._study, self._processes))
