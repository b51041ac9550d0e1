"""Which batch fits a given memory, for a trunk or a whole detector."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

import torch

from benchmarks.implementations import OURS, Case, make, random_inputs, step
from benchmarks.measure import in_own_process, process_peak
from pvt_det.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """The largest batch that fits, foretold by a straight line through measurements of one image and of three.

    Attributes:
        case: With the largest batch; its batch is 0 where not even one image fits.
        fixed_mib: What does not grow with the batch: libraries, parameters, gradients, the optimizer's state.
        image_mib: What each image adds.
    """

    case: Case
    fixed_mib: float
    image_mib: float

    @property
    def total_mib(self) -> float:
        """Memory that the largest batch takes."""
        return self.fixed_mib + self.case.batch * self.image_mib

    def as_dict(self) -> dict[str, object]:
        """The plan as plain values, for JSON."""
        own = {"fixed_mib": self.fixed_mib, "image_mib": self.image_mib, "total_mib": self.total_mib}
        return asdict(self.case) | own


def plan_batches(cases: Iterable[Case], memory_mib: float, device: torch.device) -> Iterator[Plan]:
    """Say for each case, whatever its batch, which batch fits into `memory_mib`.

    Raises:
        ConfigError: A GPU has not the memory for three images.
    """
    for case in cases:
        try:
            one, three = (
                in_own_process(_whole_memory, replace(case, batch=batch), device, torch.get_num_threads())
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


def _whole_memory(case: Case, device: torch.device, threads: int) -> float:
    """Peak memory of a process that takes two whole steps, in training with AdamW's: its state comes with the first."""
    torch.set_num_threads(threads)
    module, forward = make(OURS, case, device)
    run = step(forward, random_inputs(case, device), case, device)
    optimizer = torch.optim.AdamW(module.parameters()) if case.mode == "training" else None
    for _ in range(2):
        run()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
    return process_peak(device)
