"""Measurement of several implementations under the same conditions."""

from __future__ import annotations

import copy
import gc
import statistics
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pvt_det.profiling import MIB, Case, time_call

Size = tuple[int, int, int]
_WORKERS = 2


def build_cases(
    models: Iterable[str], sizes: Iterable[Size], tasks: Iterable[str], modes: Iterable[str], dtypes: Iterable[str]
) -> list[Case]:
    """Build a case for each combination of the arguments.

    Args:
        models: Variants or config files.
        sizes: Batch size, and height and width of the images in pixels.
        tasks: Tasks such as "pyramid", "classifier" or "detector".
        modes: "inference" and "training".
        dtypes: "fp32" and "bf16".
    """
    combinations = product(sizes, models, tasks, modes, dtypes)
    return [Case(model, task, mode, dtype, *size) for size, model, task, mode, dtype in combinations]


def time_interleaved(
    calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Time several calls in rounds, so that other load on the machine affects all of them equally.

    Args:
        calls: The calls by name. Each round runs all of them once.
        device: Device that the calls run on. A GPU is synchronized before and after each call.
        repeats: Number of timed rounds.
        warm_up: Run an additional first round without timing.

    Returns:
        Seconds of each round by the name of the call. A call that runs out of GPU memory is not repeated and has no
        times.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    failed = set()
    for round_number in range(0 if warm_up else 1, repeats + 1):
        for name, call in calls.items():
            if name in failed:
                continue
            elapsed = _time_if_it_fits(call, device)
            if elapsed is None:
                failed.add(name)
                seconds[name] = []
                release_memory(device)
            elif round_number > 0:
                seconds[name].append(elapsed)
    return seconds


def median_ratio(slower: list[float], faster: list[float]) -> float:
    """Return the median speed-up over all rounds, which load on the machine hardly affects.

    Args:
        slower: Seconds of each round of the slower call.
        faster: Seconds of each round of the faster call.
    """
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def measure_peaks(names: Iterable[str], measure: Callable[[str], float]) -> dict[str, float]:
    """Measure the peak memory of several implementations.

    Args:
        names: Names of the implementations.
        measure: Returns the peak memory of an implementation in MiB.

    Returns:
        Peak memory in MiB by name, without implementations that run out of GPU memory.
    """
    found = {}
    for name in names:
        try:
            found[name] = measure(name)
        except torch.OutOfMemoryError:
            continue
    return found


def private_memory() -> int | None:
    """Return the private memory of this process in bytes, or None if the system is not Linux.

    Private memory is not shared with any other process. After a fork, it is the size of the pages that the process has
    written to.
    """
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        return None
    lines = rollup.read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def worker_growth(records: Any, count: int) -> float | None:
    """Measure how much memory a data loader's worker stops sharing with its parent by reading records.

    Args:
        records: A list or data set of records.
        count: Number of records that each of two workers reads.

    Returns:
        The larger growth of the two in MiB, or None if the system is not Linux.
    """
    loader = DataLoader(_Reading(records, count), batch_size=None, sampler=range(_WORKERS), num_workers=_WORKERS)
    growths = [growth for growth in loader if growth is not None]
    return max(growths) if growths else None


class _Reading(Dataset[float | None]):
    """Reads the records for each item, and returns the growth of the worker's private memory in MiB."""

    def __init__(self, records: Any, count: int) -> None:
        self.records = records
        self.count = count

    def __getitem__(self, worker: int) -> float | None:
        before = private_memory()
        for number in range(self.count):
            # Like Detectron2's mapper, which thereby changes the reference count of every object in a list.
            copy.deepcopy(self.records[number])
        after = private_memory()
        return None if before is None or after is None else (after - before) / MIB


def release_memory(device: torch.device, *, compiled: bool = False) -> None:
    """Release the unused GPU memory that PyTorch caches.

    Args:
        device: Device that was measured. On a CPU, nothing is released.
        compiled: Also reset `torch.compile`, which releases the memory of its CUDA graphs. Without a reset, the
            compiler would treat the next image size as dynamic and compile a slower program for all sizes.
    """
    if compiled:
        torch.compiler.reset()
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _time_if_it_fits(call: Callable[[], object], device: torch.device) -> float | None:
    """Return the duration of a call in seconds, or None if it runs out of GPU memory."""
    try:
        return time_call(call, device)
    except torch.OutOfMemoryError:
        return None
