"""The logger "tensorboard": event files in the run folder."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, TensorboardXWriter


def build_writer(cfg: CfgNode, folder: Path) -> EventWriter:
    """Build Detectron2's writer of TensorBoard files.

    Args:
        cfg: The run's config.
        folder: The run folder.
    """
    return TensorboardXWriter(str(folder))
