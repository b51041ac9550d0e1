"""A whole job, from a config to trained weights and their metrics."""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.utils import comm
from rich.console import Console

from pvt_det.checkpoint import CheckpointStore, write_atomically
from pvt_det.config import load_config
from pvt_det.data.sets import register_datasets
from pvt_det.engine import evaluate, results
from pvt_det.engine.trainer import FINAL_NAME, PVTTrainer
from pvt_det.errors import CheckpointError, ConfigError, Interrupted
from pvt_det.models.complexity import count_parameters
from pvt_det.reports.card import write_card
from pvt_det.utils.distributed import restarts
from pvt_det.utils.lock import FolderLock
from pvt_det.utils.logs import run_logging
from pvt_det.utils.paths import file_fault, make_folder
from pvt_det.utils.rng import seed_all
from pvt_det.utils.signals import termination_reported
from pvt_det.weights import load_pretrained

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobOptions:
    """What a job is besides its config.

    Attributes:
        config_file: Where the config came from.
        command: The command that repeats the job with `--resume`, for the message of an interrupted run.
        resume: Go on from the last checkpoint of the output folder, if it has one.
        eval_only: Evaluate, without training.
        allow_partial: Patterns of keys that `MODEL.WEIGHTS` may lack or have besides.
    """

    config_file: str = ""
    command: str = ""
    resume: bool = False
    eval_only: bool = False
    allow_partial: tuple[str, ...] = ()


def job(cfg: CfgNode, options: JobOptions) -> int:
    """`run_job` as `pvt_det.engine.launch.launch` wants it: gives an exit code."""
    run_job(cfg, options)
    return 0


def run_job(cfg: CfgNode, options: JobOptions) -> dict[str, Any]:
    """Train and evaluate, or only evaluate, in this process; with others where a process group was joined.

    Args:
        cfg: A complete config, not frozen; is fitted to the machine and to the data.
        options: What to do with it.

    Returns:
        The final metrics on the first process.

    Raises:
        PvtDetError: A user's mistake or an interruption; its `exit_code` tells which.
    """
    console = Console()
    folder = Path(cfg.OUTPUT_DIR)
    make_folder(folder)
    go_on = "" if options.eval_only else options.command
    with _lock(folder), run_logging(folder, comm.get_rank(), console), termination_reported(go_on):
        _fit_to_machine(cfg)
        _refuse_unsupported(cfg)
        if not options.eval_only and not _resumes(options):
            _refuse_used(folder)
        register_datasets(cfg, training=not options.eval_only)
        if options.eval_only:
            return _evaluate(cfg, options)
        return _train(cfg, options, console)


def _train(cfg: CfgNode, options: JobOptions, console: Console) -> dict[str, Any]:
    folder = Path(cfg.OUTPUT_DIR)
    resume = _resumes(options)
    store = CheckpointStore(folder)
    if comm.is_main_process():
        store.clean()
    cfg.SEED = _seed(cfg, resume)
    seed_all(cfg.SEED + comm.get_rank())
    cfg.freeze()
    trainer = PVTTrainer(cfg, console)
    trainer.resume_or_load(resume, options.allow_partial)
    if comm.is_main_process():
        write_atomically(folder / results.CONFIG_NAME, cfg.dump())
        store.check_space(trainer.checkpoint_bytes())
        _say_what_is_trained(cfg, trainer)
    try:
        metrics = trainer.train()
    except Interrupted as error:
        raise Interrupted(f"{error} Go on with: {options.command}" if options.command else str(error)) from error
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"out of memory on {cfg.MODEL.DEVICE} with SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}: halve it and "
            f"set SOLVER.ACCUMULATE_STEPS {2 * cfg.SOLVER.ACCUMULATE_STEPS}, use SOLVER.AMP.ENABLED "
            "True, or MODEL.PVT.CHECKPOINT_STAGES [1, 2]."
        ) from error
    if comm.is_main_process():
        path = results.write_results(
            cfg,
            trainer.model,
            metrics,
            config_file=options.config_file,
            iterations=trainer.iter + 1,
            best=trainer.best(),
        )
        write_card(folder, cfg)
        _say_where(folder, path)
    return metrics


def _evaluate(cfg: CfgNode, options: JobOptions) -> dict[str, Any]:
    if not cfg.DATASETS.TEST:
        raise ConfigError("There is nothing to evaluate on: give --val-json and --val-images, or DATASETS.TEST.")
    weights, iterations = _weights_to_evaluate(cfg, options)
    cfg.freeze()
    model = build_model(cfg)
    load_pretrained(model, weights, allow_partial=options.allow_partial).require_whole()
    metrics = evaluate.evaluate(cfg, model)
    if comm.is_main_process():
        # Beside a training run's own config nothing is written: that one says how its checkpoints were made.
        if not (folder := Path(cfg.OUTPUT_DIR)).joinpath(results.CONFIG_NAME).exists():
            write_atomically(folder / results.CONFIG_NAME, cfg.dump())
        path = results.write_results(
            cfg, model, metrics, config_file=options.config_file, iterations=iterations, best={}
        )
        _log.info("Metrics of %s are in %s.", weights, path)
    return metrics


def _weights_to_evaluate(cfg: CfgNode, options: JobOptions) -> tuple[str, int]:
    """The weights' file or catalog name, and the iterations they were trained for, 0 where that is not known."""
    if options.resume:
        store = CheckpointStore(Path(cfg.OUTPUT_DIR))
        last = store.latest()
        if last is None:
            raise CheckpointError(f"{cfg.OUTPUT_DIR} holds no checkpoint to evaluate: give one as MODEL.WEIGHTS.")
        return str(last), store.verify_if_listed(last)
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            "--eval-only needs weights: add MODEL.WEIGHTS path/to/model_final.pth, or --resume for the last checkpoint "
            "of OUTPUT_DIR."
        )
    path = Path(cfg.MODEL.WEIGHTS)
    return cfg.MODEL.WEIGHTS, 0 if file_fault(path) else CheckpointStore(path.parent).verify_if_listed(path)


def _lock(folder: Path) -> AbstractContextManager[Any]:
    return FolderLock(folder) if comm.is_main_process() else nullcontext()


def _fit_to_machine(cfg: CfgNode) -> None:
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        _log.warning("MODEL.DEVICE is %s, but this machine has no usable GPU: running on the CPU.", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    _take_gpu(torch.device(cfg.MODEL.DEVICE))
    cores = len(os.sched_getaffinity(0))
    if cores < cfg.DATALOADER.NUM_WORKERS:
        _log.info("DATALOADER.NUM_WORKERS lowered from %d to %d, the cores here.", cfg.DATALOADER.NUM_WORKERS, cores)
        cfg.DATALOADER.NUM_WORKERS = cores
    if cfg.SOLVER.REFERENCE_WORLD_SIZE:
        scaled = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        cfg.merge_from_other_cfg(scaled)


def _take_gpu(device: torch.device) -> None:
    """Make a GPU that the config names by its number the one that random states, memory and timing are asked of."""
    if device.type != "cuda" or device.index is None:
        return
    if comm.get_world_size() > 1:
        raise ConfigError(f"MODEL.DEVICE {device}: of several processes each has a GPU of its own. Give cuda.")
    if device.index >= torch.cuda.device_count():
        raise ConfigError(
            f"MODEL.DEVICE {device}: this machine has {torch.cuda.device_count()} GPUs, the first of them cuda:0."
        )
    torch.cuda.set_device(device)


def _resumes(options: JobOptions) -> bool:
    return options.resume or restarts() > 0


def _refuse_used(folder: Path) -> None:
    """Refuse a folder with checkpoints, before the data is checked."""
    if comm.is_main_process() and (found := sorted(folder.glob("model_*.pth"))):
        raise ConfigError(
            f"{folder} holds checkpoints of an earlier run ({found[-1].name}): go on from them with --resume, or "
            "choose another folder with --output."
        )


def _refuse_unsupported(cfg: CfgNode) -> None:
    for key, value in (
        ("TEST.PRECISE_BN.ENABLED", cfg.TEST.PRECISE_BN.ENABLED),
        ("TEST.EXPECTED_RESULTS", cfg.TEST.EXPECTED_RESULTS),
    ):
        if value:
            raise ConfigError(f"{key} = {value!r}: this trainer has no such step. Leave it at Detectron2's default.")


def _seed(cfg: CfgNode, resume: bool) -> int:
    """The config's seed; below 0, that of the run to resume, or one that is drawn, the same on every process."""
    if cfg.SEED >= 0:
        return int(cfg.SEED)
    saved = Path(cfg.OUTPUT_DIR) / results.CONFIG_NAME
    drawn = secrets.randbelow(2**31)
    if comm.is_main_process() and resume and saved.is_file():
        drawn = load_config(saved).SEED
    return int(comm.all_gather(drawn)[0])


def _say_what_is_trained(cfg: CfgNode, trainer: PVTTrainer) -> None:
    _log.info(
        "%s, %.1f M parameters, on %s; %s; data: %s; output: %s",
        results.model_name(cfg),
        count_parameters(trainer.model) / 1e6,
        cfg.MODEL.DEVICE,
        results.recipe(cfg),
        ", ".join(cfg.DATASETS.TRAIN),
        cfg.OUTPUT_DIR,
    )


def _say_where(folder: Path, results_path: Path) -> None:
    _log.info("Weights: %s. Metrics: %s.", folder / FINAL_NAME, results_path)
    _log.info("To see what it finds: pvt-det predict IMAGES --config-file %s", folder)
