"""What a run says: short lines on the terminal, everything in `log.txt`, a live bar where there is a terminal."""

from __future__ import annotations

import datetime
import logging
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.engine import HookBase
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# For the file only: Python's own warnings, which libraries use for what does not concern a user, and PyTorch's advice
# to Detectron2 on how to ask whether a model is being traced.
_FILE_ONLY = ("py.warnings", "torch.fx._symbolic_trace")
_LOGGERS = ("pvt_det", "detectron2", "fvcore", *_FILE_ONLY)
# Lines and metrics are written every so many iterations, as in Detectron2.
PERIOD = 20
logger = logging.getLogger(__name__)


@contextmanager
def run_logging(folder: Path, rank: int, console: Console) -> Iterator[None]:
    """While entered, send messages to the console (first process only) and, with all details, to a file.

    Detectron2's messages reach the console as warnings and errors only, those of `_FILE_ONLY` not at all.

    Args:
        folder: Gets `log.txt`; other processes than the first write `log.txt.rank1` ….
        rank: Number of this process.
        console: Where a progress bar may live.
    """
    name = "log.txt" if rank == 0 else f"log.txt.rank{rank}"
    to_file = logging.FileHandler(folder / name, encoding="utf-8", errors="backslashreplace")
    to_file.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s"))
    handlers: list[logging.Handler] = [to_file, *([_console_handler(console)] if rank == 0 else [])]
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        for handler in handlers:
            logger.addHandler(handler)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            for handler in handlers:
                logger.removeHandler(handler)
        to_file.close()


def _console_handler(console: Console) -> logging.Handler:
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="[%H:%M:%S]")
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", datefmt="%H:%M:%S"))
    handler.setLevel(logging.INFO)
    handler.addFilter(_concerns_user)
    return handler


def _concerns_user(record: logging.LogRecord) -> bool:
    return record.name.startswith("pvt_det") or (record.levelno >= logging.WARNING and record.name not in _FILE_ONLY)


class ProgressHook(HookBase):
    """Losses, learning rate, speed, time to go and memory: a live bar on a terminal, now and then a line elsewhere.

    Args:
        console: A terminal or not.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None

    def before_train(self) -> None:
        """Show the bar."""
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[status]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(
                "train", total=self.trainer.max_iter, completed=self.trainer.start_iter, status=""
            )
            self._bar.start()

    def after_step(self) -> None:
        """Move the bar, or print a line where it is time."""
        done = self.trainer.iter + 1
        if self._bar is not None:
            self._bar.update(self._task, completed=done, status=self._status())
        elif done % PERIOD == 0 or done == self.trainer.max_iter:
            logger.info("iteration %d/%d  %s", done, self.trainer.max_iter, self._status())

    def after_train(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

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
