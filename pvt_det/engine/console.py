"""Console output of a training run: losses, learning rate, speed and memory."""

from __future__ import annotations

import torch
from detectron2.engine import HookBase
from rich.console import Console

from pvt_det.utils.memory import peak_resident_memory
from pvt_det.utils.progress import ProgressDisplay

# Number of iterations between lines on the console and in the metrics, as in Detectron2.
PERIOD = 20


class ProgressHook(HookBase):
    """Shows losses, learning rate, speed, remaining time and memory.

    On a terminal this is a live progress bar, elsewhere a line after the first iteration and every `PERIOD` iterations.

    Args:
        console: Where to write, a terminal or a file.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._display: ProgressDisplay | None = None

    def before_train(self) -> None:
        """Show the progress bar."""
        self._display = ProgressDisplay(self._console, self.trainer.max_iter, self.trainer.start_iter)
        self._display.start()

    def after_step(self) -> None:
        """Update the progress bar, or print a line if one is due."""
        assert self._display is not None
        done = self.trainer.iter + 1
        self._display.advance(done)
        is_due = done % PERIOD == 0 or done in (self.trainer.start_iter + 1, self.trainer.max_iter)
        if self._display.is_live or is_due:
            self._display.show(done, *self._values(self._display.seconds_per_iteration))

    def after_train(self) -> None:
        """Remove the progress bar."""
        # Also called if the `before_train` of another hook failed.
        if self._display is not None:
            self._display.stop()

    def _values(self, seconds: float | None) -> tuple[str, list[str]]:
        """Return the total loss and the other values, the ones that matter least last."""
        storage = self.trainer.storage
        names = [name for name in storage.histories() if "loss" in name and "/" not in name]
        losses = {n: f"{n} {storage.history(n).median(storage.count_samples(n, PERIOD)):.4g}" for n in sorted(names)}
        total = losses.pop("total_loss", "")
        # A single loss is the total.
        parts = list(losses.values()) if len(losses) > 1 else []
        speed = [f"{seconds:.3g} s/it"] if seconds is not None else []
        peak = peak_memory_gib(self.trainer.cfg.MODEL.DEVICE)
        memory = [f"mem {peak:.1f} GiB"] if peak is not None else []
        return total, [*speed, f"lr {storage.history('lr').latest():.3g}", *parts, *memory]


def peak_memory_gib(device: str) -> float | None:
    """Return the peak memory of this process so far.

    Args:
        device: A value of `MODEL.DEVICE`. For "cuda", the memory that PyTorch allocated on the current GPU is measured,
            otherwise the resident memory of the process.

    Returns:
        Peak memory in GiB, or None if the system does not report it (Windows).
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    peak = peak_resident_memory()
    return None if peak is None else peak / 2**30
