"""Base of the loggers that send a run to a tracking service, such as MLflow.

A service that does not answer costs what was to be sent, never the run: everything is in the run folder as well.
"""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from pvt_det.config.digest import leaves
from pvt_det.errors import Interrupted
from pvt_det.results import load_run
from pvt_det.run_folder import (
    BEST_NAME,
    CARD_NAME,
    CHANGES_NAME,
    CONFIG_NAME,
    FINAL_NAME,
    LOGGER_RUNS_NAME,
    PAGE_NAME,
    RESULTS_NAME,
)
from pvt_det.utils.environment import CODE, code_fingerprint
from pvt_det.utils.files import write_atomically
from pvt_det.utils.text import counted

Status = Literal["FINISHED", "FAILED", "KILLED"]
# Files of a finished run that are sent, if they exist.
FILES = (PAGE_NAME, CARD_NAME, CONFIG_NAME, CHANGES_NAME, RESULTS_NAME, BEST_NAME, FINAL_NAME)
# Number of values over which losses are smoothed by their median, as in Detectron2's own writers.
_WINDOW = 20
# Seconds without an attempt after a failure. The pause doubles with each further failure, so that a service that is
# down costs a run little time.
_FIRST_PAUSE, _LONGEST_PAUSE = 30.0, 600.0
_CREDENTIALS = re.compile(r"//[^/\s@]+@")
# Writers whose run has not ended.
_open: list[TrackingWriter] = []
logger = logging.getLogger(__name__)


class TrackingWriter(EventWriter):
    """Sends the config, the metrics, the files and the end of a run to a tracking service.

    Subclasses implement the abstract methods for their service. These may raise any `Exception`. The first one is
    logged, what could not be sent is counted and reported at the end, and the service is tried again later.

    `logger_runs.json` in the run folder has the id of the service's run, which a resumed run continues. It ends when
    `pvt_det.engine.defaults.default_setup` exits, after reports have been written.

    Args:
        name: Name of the service in messages, and of its id in `logger_runs.json`.
        cfg: The run's config.
        folder: The run folder.
    """

    def __init__(self, name: str, cfg: CfgNode, folder: Path) -> None:
        self.name, self.cfg, self.folder = name, cfg, folder
        self._is_started = False
        # The last iteration that was sent, by metric.
        self._sent: dict[str, int] = {}
        self._lost: Counter[str] = Counter()
        self._failed = False
        self._retry_at, self._pause = 0.0, _FIRST_PAUSE
        _open.append(self)
        self._attempt(lambda: None)

    # --- implemented for each service ----------------------------------------------------------------------------

    @abstractmethod
    def start(self, run_id: str | None) -> str:
        """Start a run of the service, or continue one.

        Args:
            run_id: Id of the run to continue, or None to start one. If the service no longer has it, start a new one.

        Returns:
            Id of the run.
        """

    @abstractmethod
    def log_config(self, values: Mapping[str, Any]) -> None:
        """Send the config. A resumed run sends it again, and some values may have changed.

        Args:
            values: The values by dotted key.
        """

    @abstractmethod
    def log_metrics(self, values: Mapping[str, float], iteration: int) -> None:
        """Send metrics.

        Args:
            values: The values by name, such as `total_loss` or `bbox/AP`.
            iteration: Their iteration, from 0.
        """

    @abstractmethod
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Send facts about the run.

        Args:
            tags: The facts by name, such as the code version and the digests of the checkpoints.
        """

    @abstractmethod
    def log_file(self, path: Path) -> None:
        """Send a file.

        Args:
            path: Path of the file in the run folder.
        """

    @abstractmethod
    def end(self, status: Status) -> None:
        """End the run of the service.

        Args:
            status: "FINISHED", "FAILED" for an error, or "KILLED" for an interrupted run, which may be resumed.
        """

    # --- what they share -----------------------------------------------------------------------------------------

    def write(self) -> None:
        """Send the metrics that are new since the last call."""
        due: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(_WINDOW).items():
            if iteration > self._sent.get(name, -1):
                due.setdefault(iteration, {})[name] = float(value)
                self._sent[name] = iteration
        for iteration, values in sorted(due.items()):
            self._attempt(partial(self.log_metrics, values, iteration), "metric value", len(values))

    def close(self) -> None:
        """Do nothing: the run ends after its reports have been written, see `tracked_runs`."""

    def finish(self, status: Status) -> None:
        """Send the files of a finished run, end the run, and report what was lost.

        Args:
            status: How the run ended.
        """
        self._retry_at = 0.0
        try:
            if status == "FINISHED":
                self._send_results()
        finally:  # Ctrl-C may stop the transfer of large files
            self._attempt(partial(self.end, status), "status", 1)
        if self._lost:
            lost = ", ".join(counted(count, what) for what, count in self._lost.items())
            logger.warning(
                "%s has not received everything: lost %s. Metrics and files are in %s.", self.name, lost, self.folder
            )

    def _send_results(self) -> None:
        if tags := _checkpoint_tags(self.folder):
            self._attempt(partial(self.set_tags, tags), "tag", len(tags))
        for path in (self.folder / name for name in FILES):
            if path.is_file():
                self._attempt(partial(self.log_file, path), "file", 1)

    def _attempt(self, action: Callable[[], None], what: str = "", count: int = 0) -> None:
        """Call the service, and count what is lost if it fails or failed a short time ago."""
        if time.monotonic() < self._retry_at:
            self._lost[what] += count
            return
        try:
            if not self._is_started:
                self._start()
            action()
        # The libraries of services raise errors of many kinds, and none of them may end a training of hours.
        except Exception as error:
            if count:
                self._lost[what] += count
            self._retry_at, self._pause = time.monotonic() + self._pause, min(2 * self._pause, _LONGEST_PAUSE)
            if not self._failed:
                self._failed = True
                logger.warning(
                    "%s failed: %s. The run continues; what cannot be sent is counted. Metrics are also in %s.",
                    self.name,
                    without_credentials(str(error) or type(error).__name__),
                    self.folder,
                )
                logger.debug("%s", _CREDENTIALS.sub("//…@", traceback.format_exc()))
        else:
            self._pause = _FIRST_PAUSE

    def _start(self) -> None:
        path = self.folder / LOGGER_RUNS_NAME
        ids = _read_ids(path)
        ids[self.name] = self.start(ids.get(self.name))
        self._is_started = True
        write_atomically(path, json.dumps(ids, indent=1))
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in leaves(self.cfg)}
        self._attempt(partial(self.log_config, values), "config value", len(values))
        self._attempt(partial(self.set_tags, {CODE: code_fingerprint()}), "tag", 1)


@contextmanager
def tracked_runs() -> Iterator[None]:
    """Context manager that ends the runs of tracking services with the status of the block.

    `FINISHED` sends the files of the run folder first. `Interrupted` and Ctrl-C are `KILLED`, other errors `FAILED`.
    """
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        while _open:
            _open.pop(0).finish(status)


def has_tracked_runs() -> bool:
    """Return whether a tracking service waits for the files of this run. False on all but the main process."""
    return bool(_open)


def without_credentials(text: str) -> str:
    """Return the first line of a message, at most 300 characters, without the user and password of a URL.

    Args:
        text: Any text.
    """
    lines = text.strip().splitlines() or [""]
    return _CREDENTIALS.sub("//…@", lines[0])[:300].rstrip(".")


def _checkpoint_tags(folder: Path) -> dict[str, str]:
    """Return the digests of the checkpoints of a run, as its results record them."""
    if not (folder / RESULTS_NAME).is_file():
        return {}
    return {f"{name}.sha256": found.sha256 for name, found in load_run(folder).checkpoints.items()}


def _read_ids(path: Path) -> dict[str, str]:
    """Read the ids of the runs by service. A missing file has none."""
    if not path.is_file():
        return {}
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        ids = None
    if isinstance(ids, dict) and all(isinstance(value, str) for value in ids.values()):
        return ids
    logger.warning("%s is damaged. Tracking services start a new run for this one.", path)
    return {}
