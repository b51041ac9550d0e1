"""Fair measurements: contestants take turns in one process for time; each has a process of its own for memory."""

from __future__ import annotations

import ctypes
import gc
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")
MIB = 1 << 20


def take_turns(
    calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Time each call `repeats` times in seconds, one after the other in every round, after one round of warming up.

    Whatever else slows the machine down for a while then slows all of them. One that runs out of a GPU's memory takes
    no further part and has no times.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    failed = set()
    for turn in range(0 if warm_up else 1, repeats + 1):
        for name, call in calls.items():
            if name in failed:
                continue
            time_taken = _time(call, device)
            if time_taken is None:
                failed.add(name)
                seconds[name] = []
                give_back(device)
            elif turn > 0:
                seconds[name].append(time_taken)
    return seconds


def _time(call: Callable[[], object], device: torch.device) -> float | None:
    """Seconds that a call takes; None where it runs out of a GPU's memory."""
    _wait_for(device)
    start = time.perf_counter()
    try:
        call()
    except torch.OutOfMemoryError:
        return None
    _wait_for(device)
    return time.perf_counter() - start


def give_back(device: torch.device, *, compiled: bool = False) -> None:
    """Return a GPU's memory that is not in use, which PyTorch keeps, to the device; other processes need it too.

    Args:
        device: Nothing is to be done on a CPU.
        compiled: Forget what was compiled too, with the memory of its CUDA graphs. The compiler would take the sizes of
            what is measured next for changing ones, and make a slower program for all of them.
    """
    if compiled:
        torch.compiler.reset()
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def median_ratio(slower: list[float], faster: list[float]) -> float:
    """How many times as long `slower` took as `faster`: the median over the rounds of each round's ratio."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def in_own_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call an importable function in a fresh Python process and return its result."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """MiB by which one call raises memory in use at its highest point, over what was in use before it.

    On a GPU this is what PyTorch's allocator hands out. On a CPU it is resident memory of the process, all libraries
    included; call it in a process of its own, since memory that was used before and not given back is not seen.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        _wait_for(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    _give_back_freed()
    before_call = resident_memory()
    _forget_peak()
    call()
    return (_resident_peak() - before_call) / MIB


def process_peak(device: torch.device) -> float:
    """MiB that this process took at its highest point: resident memory, or what PyTorch reserved of a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / MIB
    return _resident_peak() / MIB


def private_memory() -> int | None:
    """Bytes that this process shares with no other, such as those that it changed since it was forked; Linux only."""
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        return None
    lines = rollup.read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status(key: str) -> int:
    """A line of Linux's /proc/self/status that counts KiB, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def resident_memory() -> int:
    """Bytes of memory that this process takes; where the system does not tell, the most that it ever took."""
    return _status("VmRSS") if platform.system() == "Linux" else _resident_peak()


def _resident_peak() -> int:
    if platform.system() == "Linux":
        return _status("VmHWM")
    # macOS counts bytes here.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _give_back_freed() -> None:
    """Return freed memory to the system where the C library can (glibc); a step would otherwise use it unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _forget_peak() -> None:
    """Start the process's high-water mark anew where Linux allows it (proc(5), clear_refs)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
