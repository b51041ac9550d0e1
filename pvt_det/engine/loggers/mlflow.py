"""The logger "mlflow": parameters, metrics, tags and artifacts of a run in MLflow.

The server and the experiment come from MLflow's own environment variables, such as `MLFLOW_TRACKING_URI` and
`MLFLOW_EXPERIMENT_NAME`, so that no config contains a host name or a password.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from pvt_det.engine.loggers.tracking import Status, TrackingWriter, without_credentials
from pvt_det.utils.text import listed

EXPERIMENT = "pvt_det"
# Limits of MLflow (mlflow.utils.validation).
MAX_NAME, MAX_PARAMETER, MAX_TAG = 250, 6000, 8000
_PARAMETERS_PER_CALL, _METRICS_PER_CALL = 100, 1000
# MLflow's defaults would stop the training for up to four minutes at each call to a server that is down.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
_INVALID = re.compile(r"[^\w./ \-]")
Item = TypeVar("Item")
logger = logging.getLogger(__name__)


def build_writer(cfg: CfgNode, folder: Path) -> EventWriter:
    """Build the writer, which starts a run of MLflow or continues that of the run folder.

    Args:
        cfg: The run's config.
        folder: The run folder.
    """
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    return _MLflowWriter("MLflow", cfg, folder)


class _MLflowWriter(TrackingWriter):
    """Sends a run to MLflow."""

    _client: MlflowClient
    _id: str

    def start(self, run_id: str | None) -> str:
        """Start a run in the experiment of the environment, or continue one."""
        self._client = MlflowClient()
        run = self._find(run_id) if run_id else None
        if run is None:
            run = self._client.create_run(_experiment(self._client), run_name=self.folder.resolve().name)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._id = run.info.run_id
        logger.info("MLflow run %s at %s", self._id, without_credentials(self._client.tracking_uri))
        return self._id

    def log_config(self, values: Mapping[str, Any]) -> None:
        """Send the config as parameters. Values that MLflow cannot change become tags, `changed.KEY`."""
        strings = {_valid_name(key): str(value) for key, value in values.items()}
        if long := [name for name, text in strings.items() if len(text) > MAX_PARAMETER]:
            logger.warning(
                "MLflow: cut to %d characters: %s. The artifact config.yaml has the whole values.",
                MAX_PARAMETER,
                listed(long),
            )
        strings = {name: text[:MAX_PARAMETER] for name, text in strings.items()}
        known = self._client.get_run(self._id).data.params
        new = [Param(name, text) for name, text in strings.items() if name not in known]
        for part in _parts(new, _PARAMETERS_PER_CALL):
            self._client.log_batch(self._id, params=part, synchronous=True)
        changed = {name: text for name, text in strings.items() if known.get(name, text) != text}
        if changed:
            logger.info("MLflow keeps the first value of %s; tags have the new ones.", listed(list(changed)))
            self.set_tags({f"changed.{name}": text for name, text in changed.items()})

    def log_metrics(self, values: Mapping[str, float], iteration: int) -> None:
        """Send metrics with their iteration as step."""
        now = int(1000 * time.time())
        metrics = [Metric(_valid_name(name), value, now, iteration) for name, value in values.items()]
        for part in _parts(metrics, _METRICS_PER_CALL):
            self._client.log_batch(self._id, metrics=part, synchronous=True)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Send facts as tags."""
        found = [RunTag(_valid_name(name), text[:MAX_TAG]) for name, text in tags.items()]
        for part in _parts(found, _PARAMETERS_PER_CALL):
            self._client.log_batch(self._id, tags=part, synchronous=True)

    def log_file(self, path: Path) -> None:
        """Send a file as an artifact."""
        self._client.log_artifact(self._id, str(path))

    def end(self, status: Status) -> None:
        """End the run."""
        self._client.set_terminated(self._id, status)

    def _find(self, run_id: str) -> Run | None:
        try:
            return self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        logger.warning("MLflow no longer has the run %s of this folder. Starting a new one.", run_id)
        return None


def _experiment(client: MlflowClient) -> str:
    """Return the id of the experiment that the environment names, which is created if it does not exist."""
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found is not None else client.create_experiment(name))


def _valid_name(name: str) -> str:
    """Return a name that MLflow accepts. Names of classes are parts of metrics, and may contain any character."""
    valid = _INVALID.sub(lambda match: f"_{ord(match[0]):x}_", name)
    if valid != posixpath.normpath(valid) or valid.startswith(("/", ".")):
        valid = valid.replace("/", "_2f_").lstrip(".")
    return valid[:MAX_NAME]


def _parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
