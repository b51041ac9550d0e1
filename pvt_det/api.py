"""What the commands and a user's own script call: each function puts rooms together, such as training and its card."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from pvt_det.engine.defaults import default_setup
from pvt_det.engine.evaluate import evaluate_weights
from pvt_det.engine.trainer import PVTTrainer
from pvt_det.errors import PvtDetError
from pvt_det.reports.card import write_card
from pvt_det.reports.page import write_report
from pvt_det.run_folder import PAGE_NAME

logger = logging.getLogger(__name__)


def train(
    cfg: CfgNode,
    *,
    config_file: str = "",
    resume: bool = False,
    allow_partial: Sequence[str] = (),
    resume_command: str = "",
) -> dict[str, Any]:
    """Train a model, evaluate it, and write its card; in this process, and in others that joined its group.

    Args:
        cfg: A complete config, not frozen; is fitted to the machine and to the data.
        config_file: The file that the config came from, for `results.json`.
        resume: Resume from the last checkpoint of the output folder, if it has one.
        allow_partial: Patterns of keys that may be missing from `MODEL.WEIGHTS`, or unexpected in it.
        resume_command: The command that resumes the run, for the message of an interrupted one.

    Returns:
        The final metrics on the first process, by task and name, in percent; empty without test data.

    Raises:
        PvtDetError: A user's mistake or an interruption; its `exit_code` tells which.
    """
    with default_setup(cfg, resume=resume, resume_command=resume_command):
        trainer = PVTTrainer(cfg, config_file=config_file)
        trainer.resume_or_load(resume, allow_partial)
        metrics = trainer.train()
        if comm.is_main_process():
            write_card(Path(cfg.OUTPUT_DIR), cfg)
    return metrics


def evaluate(
    cfg: CfgNode,
    *,
    config_file: str = "",
    resume: bool = False,
    allow_partial: Sequence[str] = (),
    page: bool = False,
    against: Path | None = None,
) -> dict[str, Any]:
    """Evaluate weights on `DATASETS.TEST`; in this process, and in others that joined its group.

    Args:
        cfg: A complete config, not frozen; is fitted to the machine and to the data.
        config_file: The file that the config came from, for `results.json`.
        resume: Evaluate the last checkpoint of the output folder, not `MODEL.WEIGHTS`.
        allow_partial: Patterns of keys that may be missing from `MODEL.WEIGHTS`, or unexpected in it.
        page: Write the report page too.
        against: The folder of a run that the page compares with.

    Returns:
        The metrics on the first process, by task and name, in percent.

    Raises:
        PvtDetError: A user's mistake; its `exit_code` tells which.
    """
    with default_setup(cfg, resume=resume, eval_only=True):
        metrics = evaluate_weights(cfg, config_file=config_file, resume=resume, allow_partial=allow_partial)
        if page and comm.is_main_process():
            output = Path(cfg.OUTPUT_DIR) / PAGE_NAME
            try:
                write_page(output.parent, output, against)
                logger.info("Open %s in a browser.", output)
            except PvtDetError as error:
                # The metrics are there: the evaluation has not failed.
                logger.warning("No page is written: %s", error)
    return metrics


def write_page(folder: Path, output: Path, against: Path | None = None) -> None:
    """Write the report page of a finished run.

    Args:
        folder: The run's output folder.
        output: The page.
        against: The folder of a run to compare with.

    Raises:
        ConfigError: The page cannot be written there.
        DataError: A file of a run is missing or broken.
    """
    for name in ("detectron2", "matplotlib.font_manager"):
        logging.getLogger(name).setLevel(logging.ERROR)
    write_report(folder, output, against)
