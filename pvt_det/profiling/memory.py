"""Measures the memory that a call or a process takes at its peak, on a GPU or on a CPU."""

from __future__ import annotations

import ctypes
import gc
import platform
import resource
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")
MIB = 1 << 20


def run_in_own_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a new Python process and return its result.

    Args:
        function: A function that can be pickled, such as one of a module.
        *arguments: Its arguments, which can be pickled too.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure_peaks(names: Iterable[str], measure: Callable[[str], float]) -> dict[str, float]:
    """Measure the peak memory of each name in MiB, and leave out those that run out of GPU memory.

    Args:
        names: What to measure.
        measure: Returns the peak memory of a name in MiB.
    """
    found = {}
    for name in names:
        try:
            found[name] = measure(name)
        except torch.OutOfMemoryError:
            continue
    return found


def peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """Return the MiB by which a call raises the memory in use at its peak.

    On a GPU this is the memory that PyTorch's allocator hands out. On a CPU it is the resident memory of the process
    with all its libraries. Call it in a new process there: memory that was freed before, and that the process kept, is
    used again without being seen.

    Args:
        call: What to measure; it runs once.
        device: The device that it runs on.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    _return_freed_memory()
    before = resident_memory()
    _reset_resident_peak()
    call()
    return (_resident_peak() - before) / MIB


def process_peak(device: torch.device) -> float:
    """Return the most MiB that this process has taken: resident memory, or what PyTorch reserved of a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / MIB
    return _resident_peak() / MIB


def resident_memory() -> int:
    """Return the resident memory of this process in bytes; its peak where only that is known."""
    return _read_status("VmRSS") if platform.system() == "Linux" else _resident_peak()


def private_memory() -> int | None:
    """Return the bytes that this process shares with no other, or None where the system is not Linux.

    After a fork these are the pages that the process has written to.
    """
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        return None
    lines = rollup.read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def release_memory(device: torch.device, *, compiled: bool = False) -> None:
    """Return unused GPU memory, which PyTorch keeps otherwise, to other processes.

    Args:
        device: Nothing is done on a CPU.
        compiled: Reset `torch.compile` too, with the memory of its CUDA graphs. Otherwise the compiler would take the
            next image size for a dynamic one, and make a slower program for all sizes.
    """
    if compiled:
        torch.compiler.reset()
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done its work; return at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _resident_peak() -> int:
    if platform.system() == "Linux":
        return _read_status("VmHWM")
    # macOS counts bytes here.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _read_status(key: str) -> int:
    """Return an entry of Linux's /proc/self/status, which counts KiB, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _return_freed_memory() -> None:
    """Return freed memory to the system where the C library can (glibc): a call would use it again unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_resident_peak() -> None:
    """Reset the peak of resident memory where Linux allows it (clear_refs in proc(5))."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
