"""What a detector's training run shows on the console: losses, learning rate, speed and memory."""

from __future__ import annotations

import datetime
import resource

import torch
from detectron2.engine import HookBase
from rich.console import Console

from pvt_det.utils.progress import ProgressDisplay

# Lines and metrics are written every so many iterations, as in Detectron2.
PERIOD = 20


class ProgressHook(HookBase):
    """Losses, learning rate, speed, time to go and memory: a live bar on a terminal, now and then a line elsewhere.

    Args:
        console: A terminal or not.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._display: ProgressDisplay | None = None

    def before_train(self) -> None:
        """Show the bar."""
        self._display = ProgressDisplay(self._console, self.trainer.max_iter, self.trainer.start_iter)
        self._display.start()

    def after_step(self) -> None:
        """Move the bar, or print a line where it is time."""
        assert self._display is not None
        done = self.trainer.iter + 1
        if self._display.is_live or done % PERIOD == 0 or done == self.trainer.max_iter:
            self._display.update(done, self._status())

    def after_train(self) -> None:
        """Take the bar away."""
        # Also called where another hook's `before_train` has failed.
        if self._display is not None:
            self._display.stop()

    def _status(self) -> str:
        storage = self.trainer.storage
        # Single losses besides their sum, where there are several.
        names = [name for name in storage.histories() if "loss" in name and "/" not in name]
        if len(names) == 2:
            names = ["total_loss"]
        parts = [f"{n} {storage.history(n).median(storage.count_samples(n, PERIOD)):.4g}" for n in sorted(names)[::-1]]
        parts.append(f"lr {storage.history('lr').latest():.3g}")
        if "time" in storage.histories():
            seconds = storage.history("time").median(1000)
            left = datetime.timedelta(seconds=int(seconds * (self.trainer.max_iter - self.trainer.iter - 1)))
            parts += [f"{seconds:.3g} s/it", f"eta {left}"]
        return "  ".join([*parts, f"mem {peak_memory_gib(self.trainer.cfg.MODEL.DEVICE):.1f} GiB"])


def peak_memory_gib(device: str) -> float:
    """Most memory that this process has held so far: the current GPU's where `device` is one, else its own."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes / 2**20
