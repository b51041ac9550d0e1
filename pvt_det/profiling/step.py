"""One step of a model on random images, and the memory that it takes at its peak."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pvt_det.profiling.case import Case
from pvt_det.profiling.inputs import random_records
from pvt_det.profiling.memory import peak_memory, run_in_own_process
from pvt_det.profiling.models import Runnable, build_model
from pvt_det.utils.precision import autocast

Step = Callable[[], object]


def build_model_step(case: Case, device: torch.device, *, compiled: bool = False) -> Step:
    """Build the model of a case and return a function that runs one step of it."""
    return build_step(build_model(case, device, compiled=compiled), case, device)


def build_step(runnable: Runnable, case: Case, device: torch.device) -> Step:
    """Return a function that runs one step of a model on a fixed batch of random images.

    A step is the forward pass and, in training, the backward pass into gradients that were set to None. The optimizer
    is not part of it.

    Args:
        runnable: The model, on `device` and in the mode of the case, and the function that runs it.
        case: Mode, number format and size of the images.
        device: Where the images go.
    """
    module, forward = runnable
    inputs = _random_inputs(case, device)

    def infer() -> None:
        with torch.inference_mode(), autocast(device, case.dtype):
            forward(inputs)

    def train() -> None:
        module.zero_grad(set_to_none=True)
        with autocast(device, case.dtype):
            loss = _sum_of_squares(forward(inputs))
        loss.backward()

    return infer if case.mode == "inference" else train


def step_peak(build: Callable[[Case], Step], case: Case, device: torch.device, *, compiled: bool = False) -> float:
    """Return the MiB by which a step exceeds the model and its images at its peak, in a process of its own.

    Args:
        build: Builds the step of a case; it can be pickled.
        case: What to measure.
        device: Where the step runs.
        compiled: Whether the step compiles itself when it first runs.
    """
    return run_in_own_process(_measure_step, build, case, device, compiled, torch.get_num_threads())


def _measure_step(
    build: Callable[[Case], Step], case: Case, device: torch.device, compiled: bool, threads: int
) -> float:
    """Measure a step without what libraries allocate once in their first call, and without its compilation."""
    torch.set_num_threads(threads)
    if not compiled:
        build(replace(case, batch=1, height=224, width=224))()
        return peak_memory(build(case), device)
    # Another image size would compile a program for dynamic sizes. The second run records CUDA graphs.
    step = build(case)
    for _ in range(2):
        step()
    return peak_memory(step, device)


def _random_inputs(case: Case, device: torch.device) -> Any:
    images = torch.randn(case.batch, 3, case.height, case.width, device=device)
    return random_records(images) if case.task == "detector" else images


def _sum_of_squares(outputs: Any) -> Tensor:
    """Return a scalar that depends on every output: a detector's losses, a trunk's maps or a classifier's logits."""
    tensors = list(outputs.values()) if isinstance(outputs, dict) else outputs
    return torch.stack([tensor.float().square().mean() for tensor in tensors]).sum()
