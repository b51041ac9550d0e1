"""What is measured: a model, what it does, its number format and the size of its images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

MODES = ("inference", "training")
DTYPES = ("fp32", "bf16")
Size = tuple[int, int, int]


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        model: A variant of the trunk; for a detector or segmentor, a config file or a run's output folder.
        task: "pyramid" (four maps), "classifier" (logits) or "detector" (whatever a config describes).
        mode: "inference", or "training": the forward and the backward pass.
        dtype: "fp32", or "bf16" by autocast.
        batch: Number of images.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        checkpointed: Recompute the activations of all stages of the trunk in the backward pass.
    """

    model: str
    task: str
    mode: str
    dtype: str
    batch: int
    height: int
    width: int
    checkpointed: bool = False


def build_cases(
    models: Iterable[str], sizes: Iterable[Size], tasks: Iterable[str], modes: Iterable[str], dtypes: Iterable[str]
) -> list[Case]:
    """Combine models, sizes `(batch, height, width)`, tasks, modes and dtypes to one case each."""
    combinations = product(sizes, models, tasks, modes, dtypes)
    return [Case(model, task, mode, dtype, *size) for size, model, task, mode, dtype in combinations]
