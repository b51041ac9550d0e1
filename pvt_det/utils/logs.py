"""Set up the logging of a run: short messages on the console and full details in `log.txt`.

Logs and metrics are worth less than the run. One that cannot be written, because the disk is full, is dropped.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from rich.console import Console
from rich.logging import RichHandler

from pvt_det.utils.text import printable

# Logged to the file only: Python warnings, which libraries use for details that do not concern users, and PyTorch's
# advice to Detectron2 on how to check whether a model is being traced.
_FILE_ONLY = ("py.warnings", "torch.fx._symbolic_trace")
_LOGGERS = ("pvt_det", "detectron2", "fvcore", *_FILE_ONLY)
logger = logging.getLogger(__name__)


class Closable(Protocol):
    """Anything that can be closed."""

    def close(self) -> None:
        """Close it."""


Writer = TypeVar("Writer", bound=Closable)


class OptionalWriters(Generic[Writer]):
    """Writers that a run can do without. One that fails is dropped with a warning.

    Args:
        writers: The writers, each after what it writes, as named in the warning.
    """

    def __init__(self, writers: Iterable[tuple[str, Writer]]) -> None:
        self._writers = list(writers)

    def each(self, action: Callable[[Writer], object]) -> None:
        """Use each writer.

        Args:
            action: Called with each writer. If it raises `OSError`, the writer is closed and not used again.
        """
        for name, writer in list(self._writers):
            try:
                action(writer)
            except OSError as error:
                self._writers.remove((name, writer))
                _warn_dropped(name, error)
                with suppress(OSError):
                    writer.close()

    def close(self) -> None:
        """Close all writers. Closing them again has no effect."""
        self.each(lambda writer: writer.close())
        self._writers = []


def _warn_dropped(name: str, error: OSError) -> None:
    logger.warning(
        "%s cannot be written and is incomplete: %s. The run continues without it. Free some space or fix the folder.",
        name,
        error.strerror or error,
    )


class _Formatter(logging.Formatter):
    """Formatter whose messages and tracebacks are safe for terminals."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _OptionalHandler(logging.StreamHandler):
    """Handler that is dropped with a warning if its stream cannot be written, where others print a traceback."""

    name_in_warning = "The output"
    is_dropped = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.is_dropped:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self.is_dropped = True
            _warn_dropped(self.name_in_warning, error)
        else:
            super().handleError(record)

    def flush(self) -> None:
        if not self.is_dropped:
            super().flush()


class _LogFile(_OptionalHandler, logging.FileHandler):
    """The file `log.txt`."""

    def __init__(self, path: Path) -> None:
        logging.FileHandler.__init__(self, path, encoding="utf-8", errors="backslashreplace")
        self.name_in_warning = str(path)

    def close(self) -> None:
        with suppress(OSError):  # what is buffered may not fit either
            super().close()


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
    to_file = _LogFile(folder / name)
    to_file.setFormatter(_Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s"))
    handlers: list[logging.Handler] = [to_file, *([_console_handler(console)] if rank == 0 else [])]
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    show_warning = warnings.showwarning
    logging.captureWarnings(True)
    captured_before = warnings.showwarning is show_warning
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        for handler in handlers:
            logger.addHandler(handler)
    try:
        yield
    finally:
        logging.captureWarnings(captured_before)
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            for handler in handlers:
                logger.removeHandler(handler)
        to_file.close()


@contextmanager
def errors_only(*names: str) -> Iterator[None]:
    """Context manager in which loggers of libraries show errors only.

    Args:
        names: Names of the loggers.
    """
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _console_handler(console: Console) -> logging.Handler:
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="[%H:%M:%S]")
        handler.setFormatter(_Formatter("%(message)s"))
    else:
        handler = _OptionalHandler(sys.stdout)
        handler.setFormatter(_Formatter("[%(asctime)s] %(message)s", datefmt="%H:%M:%S"))
    handler.setLevel(logging.INFO)
    handler.addFilter(_concerns_user)
    return handler


def _concerns_user(record: logging.LogRecord) -> bool:
    return record.name.startswith("pvt_det") or (record.levelno >= logging.WARNING and record.name not in _FILE_ONLY)
