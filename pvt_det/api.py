"""Train and evaluate a complete config, and write a report page: what the commands and `pvt_det.train` share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from pvt_det.engine.defaults import default_setup
from pvt_det.engine.evaluate import evaluate_weights
from pvt_det.engine.loggers.tracking import has_tracked_runs
from pvt_det.engine.trainer import PVTTrainer
from pvt_det.errors import PvtDetError
from pvt_det.reports.card import write_card
from pvt_det.reports.page import write_report
from pvt_det.run_folder import PAGE_NAME, evaluation_folder
from pvt_det.utils.logs import errors_only

__all__ = ["evaluate", "train", "write_page"]

logger = logging.getLogger(__name__)


def train(
    cfg: CfgNode,
    *,
    config_file: str = "",
    resume: bool = False,
    allow_partial: Sequence[str] = (),
    allow_change: Sequence[str] = (),
    resume_command: str = "",
    note: str = "",
    hooks: Sequence[HookBase] = (),
    writers: Sequence[EventWriter] = (),
    augmentations: Sequence[Any] = (),
) -> dict[str, Any]:
    """Train a model, evaluate it, and write its model card, and its report page for loggers that take files.

    With several processes, call it in every process of the group.

    Args:
        cfg: A complete, unfrozen config. It is adapted to the machine and the data in place.
        config_file: Path of the config file, recorded in `results.json`.
        resume: Whether to resume from the last checkpoint of the output folder, if there is one.
        allow_partial: Patterns of keys that may be missing from or unexpected in `MODEL.WEIGHTS`.
        allow_change: Config keys that may differ from the checkpoint's in a resumed run, or patterns such as `INPUT.*`.
        resume_command: The command that resumes the run, shown if the run is interrupted.
        note: A line to log first, such as what the options of a command have set.
        hooks: Hooks to call after those of `PVTTrainer`.
        writers: Writers of metrics to add to those of `PVTTrainer`.
        augmentations: Augmentations of Detectron2 or transforms of `torchvision.transforms.v2` to apply to training
            images before those of the config.

    Returns:
        On the main process, the final metrics by task and name, in percent. Empty without test data.

    Raises:
        PvtDetError: If the user made a mistake or the run was interrupted. Its `exit_code` says which.
    """
    with default_setup(cfg, resume=resume, resume_command=resume_command, note=note):
        trainer = PVTTrainer(cfg, config_file=config_file, hooks=hooks, writers=writers, augmentations=augmentations)
        trainer.resume_or_load(resume, allow_partial, allow_change)
        metrics = trainer.train()
        if comm.is_main_process():
            write_card(Path(cfg.OUTPUT_DIR), cfg)
            if has_tracked_runs():
                # `default_setup` sends it when it exits.
                _try_page(Path(cfg.OUTPUT_DIR) / PAGE_NAME)
    return metrics


def evaluate(
    cfg: CfgNode,
    *,
    config_file: str = "",
    resume: bool = False,
    allow_partial: Sequence[str] = (),
    page: bool = False,
    against: Path | None = None,
    note: str = "",
) -> dict[str, Any]:
    """Evaluate weights on `DATASETS.TEST`.

    The results are written to the output folder. If that is a run folder, or if there are several data sets, they go to
    `evaluation/DATASET` in it.

    With several processes, call it in every process of the group.

    Args:
        cfg: A complete, unfrozen config. It is adapted to the machine and the data in place.
        config_file: Path of the config file, recorded in `evaluation.json`.
        resume: Whether to evaluate the last checkpoint of the output folder instead of `MODEL.WEIGHTS`.
        allow_partial: Patterns of keys that may be missing from or unexpected in `MODEL.WEIGHTS`.
        page: Whether to also write the report page.
        against: The run folder to compare with on the page, or None.
        note: A line to log first, such as what the options of a command have set.

    Returns:
        On the main process, the metrics by task and name, in percent.

    Raises:
        PvtDetError: If the user made a mistake. Its `exit_code` says which.
    """
    with default_setup(cfg, resume=resume, eval_only=True, note=note):
        metrics = evaluate_weights(cfg, config_file=config_file, resume=resume, allow_partial=allow_partial)
        for name in cfg.DATASETS.TEST if page and comm.is_main_process() else ():
            _try_page(evaluation_folder(cfg, name) / PAGE_NAME, against)
    return metrics


def _try_page(output: Path, against: Path | None = None) -> None:
    """Write the report page of the folder that it is in. The run itself succeeded, so a failure is only a warning."""
    try:
        write_page(output.parent, output, against)
        logger.info("Open %s in a browser.", output)
    except PvtDetError as error:
        logger.warning("The report page could not be written: %s", error)


def write_page(
    folder: Path,
    output: Path,
    against: Path | None = None,
    *,
    images: Path | None = None,
    labels: Path | None = None,
    score_threshold: float | None = None,
) -> None:
    """Write the report page of a run.

    Args:
        folder: The run folder.
        output: Path of the HTML file to write.
        against: The run folder to compare with, or None.
        images: Folder of the validation images. None takes the one that the run's config names.
        labels: Folder of the validation label maps. None takes the one that the run's config names.
        score_threshold: Minimum score of the detections that are drawn and counted, 0 to 1. None takes the threshold
            with the best F1.

    Raises:
        ConfigError: If the page cannot be written to `output`, `images` or `labels` is not a folder, or the score
            threshold is not from 0 to 1.
        DataError: If a file of a run is missing or broken, or the run was not evaluated.
    """
    with errors_only("detectron2", "matplotlib.font_manager"):
        write_report(folder, output, against, images=images, labels=labels, score_threshold=score_threshold)
