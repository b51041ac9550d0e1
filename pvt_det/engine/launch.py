"""Starting a job's processes: one, several on this machine, several machines, or those that `torchrun` started."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

from pvt_det.errors import ConfigError, Interrupted
from pvt_det.utils.cli import run_cli
from pvt_det.utils.distributed import join_torchrun_group, local_rank, local_world_size, under_torchrun

# A process that waits this long for the others takes them for lost.
_TIMEOUT = timedelta(minutes=30)
# Seconds that the others get to end by themselves after one process ended with an error.
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
) -> Result | None:
    """Run `main_func(*args)` in every process of a job, as Detectron2's `launch` does.

    Under `torchrun`, joins its group. SIGTERM and Ctrl-C reach all processes. Process groups are destroyed in the end,
    however the job ends.

    Args:
        main_func: A function that can be imported by name.
        num_gpus_per_machine: Processes on each machine; each has a GPU, or with `device` "cpu" a part of the cores.
        num_machines: Number of machines.
        machine_rank: Number of this machine, from 0.
        dist_url: Where the processes meet, `tcp://host:port`, or "auto" for a free port of this machine.
        args: Arguments of `main_func`; they must be picklable.
        device: `MODEL.DEVICE`; decides between NCCL and gloo.

    Returns:
        What `main_func` returns where it runs in this process; None where processes were started for it.

    Raises:
        ConfigError: There are fewer GPUs than requested processes.
        SystemExit: Another process failed, and has said why; with its exit code.
    """
    processes = _Processes(num_gpus_per_machine, num_machines, machine_rank, dist_url, device.split(":")[0])
    if under_torchrun():
        if processes.count > 1 or processes.url != "auto":
            raise ConfigError(
                "torchrun starts the processes by itself: leave --num-gpus, --num-machines and --dist-url out."
            )
        with _group(processes.device, local_rank(), local_world_size()) as backend:
            join_torchrun_group(backend, _TIMEOUT)
            comm.create_local_process_group(local_world_size())
            return _run(main_func, args)
    _check(processes)
    if processes.count == 1:
        return main_func(*args)
    _start_processes(main_func, args, processes)
    return None


def _start_processes(main_func: Callable[..., Any], args: tuple[Any, ...], processes: _Processes) -> None:
    url = f"tcp://127.0.0.1:{_free_port()}" if processes.url == "auto" else processes.url
    context = mp.start_processes(
        _start, args=(main_func, args, processes, url), nprocs=processes.per_machine, join=False, start_method="spawn"
    )
    with _signals_handed_to(context.pids()):
        try:
            while not context.join(grace_period=_GRACE):
                pass
        except mp.ProcessExitedException as error:
            raise SystemExit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code) from None


def _start(
    local_rank: int, main_func: Callable[..., Any], args: tuple[Any, ...], processes: _Processes, url: str
) -> None:
    def run() -> None:
        _run(main_func, args)

    rank = processes.machine_rank * processes.per_machine + local_rank
    with _group(processes.device, local_rank, processes.per_machine) as backend:
        dist.init_process_group(backend, init_method=url, rank=rank, world_size=processes.count, timeout=_TIMEOUT)
        comm.create_local_process_group(processes.per_machine)
        code = run_cli(run)
    sys.exit(code)


def _run(main_func: Callable[..., Result], args: tuple[Any, ...]) -> Result:
    try:
        return main_func(*args)
    except Interrupted as error:
        # All processes stop together: one says so.
        if comm.is_main_process():
            raise
        raise SystemExit(error.exit_code) from None


@contextmanager
def _group(device: str, local_rank: int, local_size: int) -> Iterator[str]:
    """Give this process its share of the machine and the name of its backend; leave the group in the end."""
    on_gpu = device == "cuda" and torch.cuda.is_available()
    if on_gpu and local_rank >= torch.cuda.device_count():
        raise ConfigError(f"Process {local_rank} of this machine has no GPU: it has {torch.cuda.device_count()}.")
    if on_gpu:
        torch.cuda.set_device(local_rank)
    else:
        share = len(os.sched_getaffinity(0)) // local_size
        torch.set_num_threads(max(1, min(share, torch.get_num_threads())))
    try:
        yield "nccl" if on_gpu else "gloo"
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _signals_handed_to(pids: list[int]) -> Iterator[None]:
    def hand_on(number: int, frame: FrameType | None) -> None:
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    # Ctrl-C reaches the whole process group by itself: this process only has to wait.
    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, hand_on)}
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        for signal_number, handler in previous.items():
            signal.signal(signal_number, handler)


def _check(processes: _Processes) -> None:
    if processes.per_machine < 1 or processes.machines < 1:
        raise ConfigError("--num-gpus and --num-machines must be 1 or more.")
    if not 0 <= processes.machine_rank < processes.machines:
        raise ConfigError(
            f"--machine-rank {processes.machine_rank}: expected 0 to {processes.machines - 1}, as --num-machines is "
            f"{processes.machines}."
        )
    if processes.count == 1 and processes.url != "auto":
        raise ConfigError(
            "--dist-url is where several processes meet: leave it out, or add --num-gpus or --num-machines."
        )
    if processes.machines > 1 and processes.url == "auto":
        raise ConfigError("With several machines, --dist-url names the meeting point: tcp://HOST-OF-MACHINE-0:PORT.")
    # One process falls back to the CPU; several would be a surprise there.
    if processes.device == "cuda" and processes.per_machine > max(1, torch.cuda.device_count()):
        raise ConfigError(
            f"--num-gpus {processes.per_machine}: this machine has {torch.cuda.device_count()}. Several CPU processes "
            "need MODEL.DEVICE cpu."
        )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
