"""The logger "wandb": config, metrics and artifacts of a run in Weights & Biases.

The account and the project come from W&B's own environment variables, such as `WANDB_PROJECT`. With
`WANDB_MODE=offline`, everything stays in the run folder until `wandb sync`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter

from pvt_det.engine.loggers.tracking import Status, TrackingWriter

PROJECT = "pvt_det"
_STEP = "iteration"
logger = logging.getLogger(__name__)


def build_writer(cfg: CfgNode, folder: Path) -> EventWriter:
    """Build the writer, which starts a run of W&B or continues that of the run folder.

    Args:
        cfg: The run's config.
        folder: The run folder.
    """
    return _WandbWriter("W&B", cfg, folder)


class _WandbWriter(TrackingWriter):
    """Sends a run to Weights & Biases."""

    _run: Any

    def start(self, run_id: str | None) -> str:
        """Start a run in the project of the environment, or continue one."""
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=os.environ.get("WANDB_NAME") or self.folder.resolve().name,
            dir=os.environ.get("WANDB_DIR") or str(self.folder),
            id=run_id,
            resume="allow" if run_id else None,
            # The console belongs to the progress bar, and log.txt has its messages.
            settings=wandb.Settings(console="off", quiet=True),
        )
        # W&B's own step must never fall, as it does when a resumed run repeats what was lost.
        self._run.define_metric("*", step_metric=_STEP)
        logger.info("W&B run %s at %s", self._run.id, self._run.dir if self._run.offline else self._run.url)
        return str(self._run.id)

    def log_config(self, values: Mapping[str, Any]) -> None:
        """Send the config."""
        self._run.config.update(dict(values), allow_val_change=True)

    def log_metrics(self, values: Mapping[str, float], iteration: int) -> None:
        """Send metrics with their iteration, the x-axis of W&B's charts."""
        self._run.log({**values, _STEP: iteration})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Send facts as values of the config, since W&B's tags are single words."""
        self._run.config.update(dict(tags), allow_val_change=True)

    def log_file(self, path: Path) -> None:
        """Send a file as an artifact of type "model" or "report"."""
        kind = "model" if path.suffix == ".pth" else "report"
        artifact = wandb.Artifact(f"{self._run.id}-{path.name}", type=kind)
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def end(self, status: Status) -> None:
        """End the run. W&B knows success and failure only."""
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)
