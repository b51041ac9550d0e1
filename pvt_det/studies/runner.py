"""Run the jobs of a study, each in a process of its own, one after another or one per device at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rich.progress import TaskID

from pvt_det.errors import Interrupted
from pvt_det.run_folder import METRICS_NAME, STUDY_LOG_NAME
from pvt_det.studies.jobs import EVAL, TRAIN_CLS, Job
from pvt_det.studies.state import find_difference, write_record
from pvt_det.utils.console import get_console
from pvt_det.utils.environment import available_cores
from pvt_det.utils.numbers import clock
from pvt_det.utils.progress import Bars
from pvt_det.utils.signals import StopRequest

_POLL_SECONDS, _PROGRESS_SECONDS = 0.1, 2.0
# Bytes at the end of a file that hold its last lines.
_TAIL = 20_000
_PREFIXES = ("error: ", "stopped: ")


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: The job.
        exit_code: Exit code of its process, 0 for success, and 128 plus the number of the signal that killed it.
        seconds: Its duration in seconds, without that of earlier attempts.
        reason: Why it failed. "" for success.
    """

    job: Job
    exit_code: int
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class _Started:
    job: Job
    device: str
    process: subprocess.Popen[bytes]
    log: BinaryIO
    begins_at: int
    started: float
    task: TaskID


def run_jobs(
    jobs: Sequence[Job], study: str, *, devices: Sequence[str] = ("",), processes: int = 1, resume_command: str = ""
) -> list[Outcome]:
    """Run jobs. One that fails does not stop the others.

    SIGINT and SIGTERM are passed on: the runs save their state and end, and no further one is started.

    Args:
        jobs: The jobs. One that needs a pretraining among them waits for it, and fails if it fails.
        study: Name of the study.
        devices: Values of CUDA_VISIBLE_DEVICES, each for one job at a time. "" does not set it: several of these share
            the cores of the CPU, unless the environment sets OMP_NUM_THREADS.
        processes: Processes of each job, one per GPU.
        resume_command: The command that continues the study, for the message if it is stopped.

    Returns:
        How each job ended, in the order in which they ended.

    Raises:
        Interrupted: A signal stopped the study.
    """
    console = get_console()
    with Bars(console, say=console.print) as bars, StopRequest("iteration") as stop:
        pool = _Pool(jobs, study, devices, processes, bars)
        try:
            is_stopped = False
            while pool.is_busy:
                if stop.signal_name and not is_stopped:
                    is_stopped = True
                    pool.stop()
                pool.step()
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            pool.kill()
            raise
    if stop.signal_name:
        done = sum(not outcome.exit_code for outcome in pool.outcomes)
        hint = f" Continue with: {resume_command}" if resume_command else ""
        raise Interrupted(f"by {stop.signal_name}, after {done} of {len(jobs)} runs.{hint}")
    return pool.outcomes


class _Pool:
    """The jobs that wait, those that run, and how those that ended did."""

    def __init__(self, jobs: Sequence[Job], study: str, devices: Sequence[str], processes: int, bars: Bars) -> None:
        self._waiting, self._running, self.outcomes = list(jobs), list[_Started](), list[Outcome]()
        self._study, self._processes, self._bars, self._total = study, processes, bars, len(jobs)
        self._free = list(devices)
        self._threads = max(1, available_cores() // len(devices)) if len(devices) > 1 else None
        self._shown_at = 0.0

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting or self._running)

    def step(self) -> None:
        """Collect the processes that have ended, and start others on the free devices."""
        for started in list(self._running):
            if started.process.poll() is not None:
                self._end(started)
        while self._free and (job := self._next()):
            if reason := find_difference(job):  # the pretrained weights are new
                self._note(Outcome(job, 2, 0.0, f"its folder has an earlier run that differs: {reason}"))
            else:
                self._start(job, self._free.pop(0))
        if time.monotonic() - self._shown_at > _PROGRESS_SECONDS:
            self._shown_at = time.monotonic()
            for started in self._running:
                self._bars.reach(started.task, _progress(started.job.folder))

    def stop(self) -> None:
        """Ask the running processes to save and end, and forget the waiting jobs."""
        self._waiting.clear()
        for started in self._running:
            # In a terminal, Ctrl-C has reached them already. Unlike a second SIGINT, SIGTERM lets them save.
            started.process.terminate()

    def kill(self) -> None:
        """End the running processes at once."""
        for started in self._running:
            started.process.kill()
            started.process.wait()

    def _next(self) -> Job | None:
        """Remove and return the first job whose pretraining is done, after failing those whose pretraining failed."""
        failed = {outcome.job.entry for outcome in self.outcomes if outcome.exit_code and not outcome.job.grid}
        for job in [job for job in self._waiting if job.needs in failed]:
            self._waiting.remove(job)
            self._note(Outcome(job, 1, 0.0, f"its pretraining {job.needs} failed"))
        unfinished = {job.entry for job in [*self._waiting, *(each.job for each in self._running)] if not job.grid}
        ready = next((job for job in self._waiting if job.needs not in unfinished), None)
        if ready is not None:
            self._waiting.remove(ready)
        return ready

    def _start(self, job: Job, device: str) -> None:
        write_record(job, self._study)
        words = command_line(job, self._processes)
        log = (job.folder / STUDY_LOG_NAME).open("ab")
        log.write(f"$ {job.shown_command}\n".encode())
        log.flush()
        begins_at = log.tell()
        environment = dict(os.environ)
        if device:
            environment["CUDA_VISIBLE_DEVICES"] = device
        elif self._threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(self._threads))
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        task = self._bars.add_task(job.name, total=total_steps(job), completed=_progress(job.folder))
        self._running.append(_Started(job, device, process, log, begins_at, time.monotonic(), task))
        self._say(f"{job.name}: started{f' on GPU {device}' if device else ''}")

    def _end(self, started: _Started) -> None:
        self._running.remove(started)
        self._free.append(started.device)
        self._bars.remove_task(started.task)
        started.log.close()
        code, seconds = started.process.returncode, time.monotonic() - started.started
        reason = failure(code, started.job.folder / STUDY_LOG_NAME, started.begins_at)
        self._note(Outcome(started.job, code if code >= 0 else 128 - code, seconds, reason))

    def _note(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        name, number = outcome.job.name, len(self.outcomes)
        end = f"failed: {outcome.reason}" if outcome.exit_code else f"finished in {clock(outcome.seconds)}"
        if outcome.exit_code == Interrupted.exit_code:
            # Without the command that resumes this run alone.
            end = outcome.reason.partition(" Resume with: ")[0]
        self._say(f"{name}: {end}  ({number} of {self._total} runs)")

    def _say(self, text: str) -> None:
        self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)


def command_line(job: Job, processes: int = 1) -> list[str]:
    """Return the words that start a job in a new process.

    Args:
        job: The job.
        processes: Number of processes, one per GPU.
    """
    module, words = "pvt_det.cli.main", list(job.words)
    # -P: the current folder may contain files named like modules.
    python = [sys.executable, "-P", "-m"]
    if processes > 1 and job.command == TRAIN_CLS:
        python += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    elif processes > 1:
        words += ["--num-gpus", str(processes)]
    return [*python, module, job.command, *words]


def failure(code: int, log: Path, begins_at: int = 0) -> str:
    """Return why a process failed, from the last error that it printed.

    Args:
        code: Its exit code, negative for a signal.
        log: File with what it printed.
        begins_at: Position in the file at which its output begins.

    Returns:
        The reason. "" if the process succeeded.
    """
    if code == 0:
        return ""
    if code < 0:
        name = signal.Signals(-code).name
        # The system kills a process with this signal if the memory runs out.
        return f"killed by {name}{', perhaps because the memory ran out' if name == 'SIGKILL' else ''}"
    lines = [line for line in _tail(log, begins_at).splitlines() if line.strip()]
    found = [line for line in lines if line.startswith(_PREFIXES)]
    text = (found or lines or [f"exit code {code}"])[-1]
    return text.removeprefix(_PREFIXES[0])


def total_steps(job: Job) -> int | None:
    """Return the number of iterations of a run, of epochs of a classifier, or None if it is not known.

    Args:
        job: The run.
    """
    if job.options is not None:
        return job.options.epochs
    if job.cfg is None or job.command == EVAL or job.cfg.SOLVER.EPOCHS:
        return None
    return int(job.cfg.SOLVER.MAX_ITER)


def _progress(folder: Path) -> int:
    """Return how many iterations or epochs a run has done, by the last line of its `metrics.json`."""
    for line in reversed(_tail(folder / METRICS_NAME, 0).splitlines()):
        try:
            row: Mapping[str, int] = json.loads(line)
            return row["iteration"] + 1 if "iteration" in row else row["epoch"]
        except (ValueError, KeyError, TypeError):  # incomplete
            continue
    return 0


def _tail(file: Path, begins_at: int) -> str:
    try:
        with file.open("rb") as opened:
            opened.seek(max(begins_at, file.stat().st_size - _TAIL))
            return opened.read().decode(errors="replace")
    except OSError:
        return ""
