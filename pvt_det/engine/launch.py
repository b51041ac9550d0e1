"""Launch the processes of a job, on one or several machines, or under `torchrun`."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

from pvt_det.errors import ConfigError, Interrupted
from pvt_det.utils.cli import run_cli
from pvt_det.utils.devices import require_single_process
from pvt_det.utils.distributed import process_group
from pvt_det.utils.environment import available_cores
from pvt_det.utils.text import counted
from pvt_det.utils.torchrun import local_rank, local_world_size, under_torchrun

__all__ = ["launch"]

# Seconds that the other processes get to exit on their own after one of them failed.
_GRACE = 20.0
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Processes:
    per_machine: int
    machines: int
    machine_rank: int
    url: str
    device: str

    @property
    def count(self) -> int:
        return self.per_machine * self.machines


def launch(
    main_func: Callable[..., Result],
    num_gpus_per_machine: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple[Any, ...] = (),
    *,
    device: str = "cpu",
    resume_command: str = "",
) -> Result | None:
    """Run `main_func(*args)` in every process of a job, like Detectron2's `launch`.

    Under `torchrun`, this process joins the existing group. SIGTERM and Ctrl-C reach all processes. Process groups are
    always destroyed at the end. If a started process is killed, a message names its rank and host, and the exit code is
    128 plus the number of the signal: 137 for SIGKILL.

    Args:
        main_func: The function to run. It must be picklable.
        num_gpus_per_machine: Number of processes per machine. Each uses one GPU, or with `device` "cpu" an equal share
            of the cores.
        num_machines: Number of machines.
        machine_rank: Rank of this machine, from 0.
        dist_url: Initialization URL of the process group, `tcp://host:port`. "auto" takes a free port on this machine.
        args: Arguments of `main_func`. They must be picklable.
        device: Value of `MODEL.DEVICE`. The backend is NCCL for "cuda" and gloo otherwise.
        resume_command: The command that resumes the run, shown if a process was killed.

    Returns:
        The result of `main_func` if it runs in this process, or None if processes were started for it.

    Raises:
        ConfigError: If there are fewer GPUs than requested processes.
        SystemExit: If a started process failed, with its exit code. That process has reported the reason, unless
            it was killed.
    """
    processes = _Processes(num_gpus_per_machine, num_machines, machine_rank, dist_url, device.split(":")[0])
    if under_torchrun():
        if processes.count > 1 or processes.url != "auto":
            raise ConfigError(
                "torchrun already starts the processes. Leave out --num-gpus, --num-machines and --dist-url."
            )
        with torchrun_group(device):
            return _run(main_func, args)
    _check_arguments(processes)
    if processes.count == 1:
        return main_func(*args)
    _start_processes(main_func, args, processes, resume_command)
    return None


@contextmanager
def torchrun_group(device: str) -> Iterator[None]:
    """Join the other processes if `torchrun` started this one, and leave them on exit.

    In a program that has already initialized a process group, that group is used and kept.

    Args:
        device: Value of `MODEL.DEVICE`. The backend is NCCL for "cuda" and gloo otherwise.

    Raises:
        ConfigError: If there are fewer GPUs than processes.
        RankError: If the processes did not find each other in time.
    """
    if not under_torchrun() or dist.is_initialized():
        yield
        return
    with process_group(_prepare_device(device.split(":")[0], local_rank(), local_world_size())):
        comm.create_local_process_group(local_world_size())
        try:
            yield
        finally:
            # Detectron2 keeps the groups, which a later run in this process could not use.
            comm._LOCAL_PROCESS_GROUP = None
            comm.create_local_process_group.cache_clear()
            comm._get_global_gloo_group.cache_clear()


def _start_processes(
    main_func: Callable[..., Any], args: tuple[Any, ...], processes: _Processes, resume_command: str
) -> None:
    url = f"tcp://127.0.0.1:{_free_port()}" if processes.url == "auto" else processes.url
    context = mp.start_processes(
        _worker,
        args=(main_func, args, processes, url),
        nprocs=processes.per_machine,
        join=False,
        start_method="spawn",
    )
    with _forward_signals(context.pids()):
        try:
            while not context.join(grace_period=_GRACE):
                pass
        except mp.ProcessExitedException as error:
            if error.exit_code < 0:
                rank = processes.machine_rank * processes.per_machine + error.error_index
                print(_killed(rank, error, resume_command), file=sys.stderr, flush=True)
            raise SystemExit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code) from None


def _killed(rank: int, error: mp.ProcessExitedException, resume_command: str) -> str:
    cause = " The system may have run out of memory (see dmesg)." if error.signal_name == "SIGKILL" else ""
    hint = f" Resume with: {resume_command}" if resume_command else ""
    return (
        f"error: Rank {rank} (process {error.error_pid} on {socket.gethostname()}) was killed by {error.signal_name}."
        f"{cause} Saved checkpoints are intact.{hint}"
    )


def _worker(
    local_rank: int, main_func: Callable[..., Any], args: tuple[Any, ...], processes: _Processes, url: str
) -> None:
    def run() -> None:
        _run(main_func, args)

    def join() -> None:
        backend = _prepare_device(processes.device, local_rank, processes.per_machine)
        with process_group(backend, url, rank, processes.count):
            comm.create_local_process_group(processes.per_machine)
            # Reports an error before the group is left, which may take long if another process hangs.
            if code := run_cli(run):
                sys.exit(code)

    rank = processes.machine_rank * processes.per_machine + local_rank
    sys.exit(run_cli(join))


def _run(main_func: Callable[..., Result], args: tuple[Any, ...]) -> Result:
    try:
        return main_func(*args)
    except Interrupted as error:
        # All processes stop together. Only one reports it.
        if comm.is_main_process():
            raise
        raise SystemExit(error.exit_code) from None


def _prepare_device(device: str, local_rank: int, local_size: int) -> str:
    """Select the GPU or the number of CPU threads, and return the backend."""
    on_gpu = device == "cuda" and torch.cuda.is_available()
    if on_gpu and local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"Process {local_rank} of this machine has no GPU: PyTorch sees {torch.cuda.device_count()}. "
            "Start fewer processes."
        )
    if on_gpu:
        torch.cuda.set_device(local_rank)
    else:
        share = available_cores() // local_size
        torch.set_num_threads(max(1, min(share, torch.get_num_threads())))
    return "nccl" if on_gpu else "gloo"


@contextmanager
def _forward_signals(pids: list[int]) -> Iterator[None]:
    def forward(number: int, frame: FrameType | None) -> None:
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    # The terminal sends Ctrl-C to the whole process group, so this process only has to wait.
    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, forward)}
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        for signal_number, handler in previous.items():
            signal.signal(signal_number, handler)


def _check_arguments(processes: _Processes) -> None:
    if processes.per_machine < 1 or processes.machines < 1:
        raise ConfigError("--num-gpus and --num-machines must be at least 1.")
    if not 0 <= processes.machine_rank < processes.machines:
        raise ConfigError(
            f"--machine-rank {processes.machine_rank}: expected 0 to {processes.machines - 1}, because --num-machines "
            f"is {processes.machines}."
        )
    if processes.count == 1 and processes.url != "auto":
        raise ConfigError("--dist-url needs several processes. Leave it out, or add --num-gpus or --num-machines.")
    if processes.machines > 1 and processes.url == "auto":
        raise ConfigError("--dist-url is missing. With several machines, give --dist-url tcp://HOST-OF-MACHINE-0:PORT.")
    require_single_process(torch.device(processes.device), processes.count)
    # One process falls back to the CPU. For several, this is probably not what the user wants.
    if processes.device == "cuda" and processes.per_machine > max(1, torch.cuda.device_count()):
        raise ConfigError(
            f"--num-gpus {processes.per_machine}: this machine has {counted(torch.cuda.device_count(), 'GPU')}. To run "
            "several processes on the CPU, set MODEL.DEVICE cpu."
        )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
