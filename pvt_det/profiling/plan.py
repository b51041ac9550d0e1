"""Which batch of a model fits into a given memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

import torch

from pvt_det.errors import ConfigError
from pvt_det.profiling.case import Case
from pvt_det.profiling.memory import process_peak, run_in_own_process
from pvt_det.profiling.models import build_model
from pvt_det.profiling.step import build_step


@dataclass(frozen=True)
class Plan:
    """The largest batch that fits, predicted by a line through the measured memory of one image and of three.

    Attributes:
        case: The case with its largest batch, 0 where not even one image fits.
        fixed_mib: Memory in MiB that does not grow with the batch: libraries, parameters, gradients and the state of
            the optimizer.
        image_mib: Memory in MiB that each image adds.
    """

    case: Case
    fixed_mib: float
    image_mib: float

    @property
    def total_mib(self) -> float:
        """Memory in MiB that the largest batch takes."""
        return self.fixed_mib + self.case.batch * self.image_mib

    def as_dict(self) -> dict[str, object]:
        """Return the values under their names, for JSON."""
        own = {"fixed_mib": self.fixed_mib, "image_mib": self.image_mib, "total_mib": self.total_mib}
        return asdict(self.case) | own


def with_checkpointing(cases: Iterable[Case]) -> Iterator[Case]:
    """Give each case, and each training case a second time with activation checkpointing."""
    for case in cases:
        yield case
        if case.mode == "training":
            yield replace(case, checkpointed=True)


def plan_batches(cases: Iterable[Case], memory_mib: float, device: torch.device) -> Iterator[Plan]:
    """Predict the largest batch of each case that fits.

    Args:
        cases: The cases; their own batch is not used.
        memory_mib: Memory in MiB that the whole process may take.
        device: Where the process would run.

    Raises:
        ConfigError: A GPU has not enough memory for three images.
    """
    for case in cases:
        try:
            one, three = (
                run_in_own_process(_process_memory, replace(case, batch=batch), device, torch.get_num_threads())
                for batch in (1, 3)
            )
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"{device} has too little memory to measure {case.model} in {case.mode} on up to three images of "
                f"{case.height}x{case.width}: add --device cpu, or give smaller --sizes."
            ) from error
        image = max((three - one) / 2, 1.0)
        fixed = one - image
        yield Plan(replace(case, batch=max(0, int((memory_mib - fixed) // image))), fixed, image)


def _process_memory(case: Case, device: torch.device, threads: int) -> float:
    """Return the peak memory of this process in MiB over two steps, in training with those of AdamW."""
    torch.set_num_threads(threads)
    module, forward = build_model(case, device)
    step = build_step((module, forward), case, device)
    optimizer = torch.optim.AdamW(module.parameters()) if case.mode == "training" else None
    # The optimizer allocates its state in the first step.
    for _ in range(2):
        step()
        if optimizer is not None:
            optimizer.step()
    return process_peak(device)
