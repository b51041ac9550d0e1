"""Set up the logging of a run: short messages on the console and full details in `log.txt`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

# Logged to the file only: Python warnings, which libraries use for details that do not concern users, and PyTorch's
# advice to Detectron2 on how to check whether a model is being traced.
_FILE_ONLY = ("py.warnings", "torch.fx._symbolic_trace")
_LOGGERS = ("pvt_det", "detectron2", "fvcore", *_FILE_ONLY)


@contextmanager
def run_logging(folder: Path, rank: int, console: Console) -> Iterator[None]:
    """Context manager that sends log messages to the console and, with all details, to a file.

    Only the main process logs to the console. Messages of Detectron2 and fvcore reach it only if they are warnings or
    errors.

    Args:
        folder: The run folder, where the main process writes `log.txt` and the others `log.txt.rank1` and so on.
        rank: Rank of this process.
        console: The console that is logged to. It may also show a progress bar.
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
