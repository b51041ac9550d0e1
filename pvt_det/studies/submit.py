"""Submit the runs of a study to Slurm as arrays, through submitit."""

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
    """Submit the runs that are not finished.

    Runs that start from the same pretraining are an array of jobs, which waits for it. All others wait for nothing.

    Args:
        study: The study.
        only: Patterns (`*`, `?`) of names of runs. Empty takes all.
        cluster: "slurm", or "local" or "debug" for submitit's executors that need no Slurm. They end a pretraining
            before the runs that need it are submitted.
        processes: GPUs of each run.
        parameters: Parameters of `submitit.AutoExecutor.update_parameters`, over the defaults: 24 hours, a GPU per
            process, and for each process as many CPU cores as it has data loader workers, plus one.

    Returns:
        The jobs in the order of the runs, as submitit returns them.

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
        except (AssertionError, RuntimeError, NameError, TypeError, ValueError) as error:
            first = str(error).splitlines()[0].rstrip(".")
            raise ConfigError(f"--submit: {first}. Check --cluster and --slurm.") from error
        names = {job.entry: job.name for job in jobs if not job.grid}
        arrays: dict[tuple[str, str], list[Job]] = {}
        for job in jobs:
            arrays.setdefault((job.command, names.get(job.needs, "")), []).append(job)
        submitted: dict[str, Any] = {}
        # Those that wait for nothing come first, because executors without Slurm wait here.
        for (_, stage), array in sorted(arrays.items(), key=lambda item: item[0][1] != ""):
            executor.update_parameters(**_cores(array, values, processes))
            if stage and cluster == "slurm":
                executor.update_parameters(slurm_additional_parameters=_waiting(submitted[stage], values))
            elif stage:
                submitted[stage].wait()
            with executor.batch(allow_implicit_submissions=True):
                tasks = [executor.submit(SubmittedJob(job, study.name, processes)) for job in array]
            submitted |= zip((job.name for job in array), tasks, strict=True)
        return [submitted[job.name] for job in jobs]


def _cores(jobs: Sequence[Job], values: Mapping[str, Any], processes: int) -> dict[str, int]:
    """Return the cores of a job of an array: for each process one, and one per data loader worker."""
    if any("cpus_per" in key for key in values):
        return {}
    workers = [job.options.workers for job in jobs if job.options]
    workers += [job.cfg.DATALOADER.NUM_WORKERS for job in jobs if job.cfg]
    return {"cpus_per_task": processes * (1 + max(workers))}


def _waiting(stage: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return further parameters of Slurm for runs that wait for a pretraining, and leave the queue if it fails."""
    given = values.get("slurm_additional_parameters") or {}
    earlier = given.get("dependency") or values.get("slurm_dependency")
    dependency = ",".join(filter(None, (earlier, f"afterok:{stage.job_id}")))
    return {**given, "dependency": dependency, "kill-on-invalid-dep": "yes"}


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
