"""Setup of a run, shared by all training scripts."""

from __future__ import annotations

import argparse
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from pvt_det.config import load_config, validate_config
from pvt_det.data.sets import register_datasets
from pvt_det.engine.epochs import resolve_epochs
from pvt_det.engine.fingerprint import config_values
from pvt_det.engine.launch import launch
from pvt_det.engine.loggers.find import find_loggers
from pvt_det.engine.loggers.tracking import tracked_runs
from pvt_det.engine.options import default_argument_parser
from pvt_det.engine.run_config import config_from_args, describe_options
from pvt_det.errors import ConfigError, Interrupted
from pvt_det.run_folder import CONFIG_NAME, EVALUATION, TRAINING, WITH_MODEL, folder_kind, require_kind
from pvt_det.utils.agreement import check_agreement, check_shared_folder
from pvt_det.utils.console import get_console
from pvt_det.utils.devices import require_device, require_single_process
from pvt_det.utils.environment import BUSY, available_cores, busy_share, library_versions
from pvt_det.utils.lock import FolderLock
from pvt_det.utils.logs import run_logging
from pvt_det.utils.paths import make_folder
from pvt_det.utils.precision import has_fast_bf16
from pvt_det.utils.rank_watch import missing_ranks_named
from pvt_det.utils.rng import seed_all
from pvt_det.utils.signals import termination_reported
from pvt_det.utils.torchrun import restarts

__all__ = ["config_from_args", "default_argument_parser", "default_setup", "describe_options"]

logger = logging.getLogger(__name__)


def launch_from_args(job: Callable[[CfgNode], Any], cfg: CfgNode, args: argparse.Namespace) -> None:
    """Run `job(cfg)` in the processes that the arguments of a training script request.

    Args:
        job: A function that can be pickled, or a `functools.partial` of one.
        cfg: The config. The processes run on `MODEL.DEVICE`.
        args: Parsed options of `add_run_options`.

    Raises:
        ConfigError: If more processes than GPUs are requested.
    """
    processes = (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
    command = "" if getattr(args, "eval_only", True) else args.resume_command
    launch(job, *processes, args=(cfg,), device=cfg.MODEL.DEVICE, resume_command=command)


@contextmanager
def default_setup(
    cfg: CfgNode, *, resume: bool = False, eval_only: bool = False, resume_command: str = "", note: str = ""
) -> Iterator[None]:
    """Set up a run. Enter this context in every process before building the trainer.

    Creates and locks `OUTPUT_DIR`, opens `log.txt`, compares the config with that of the other processes, adapts it to
    the machine, checks and registers the data sets, seeds the random number generators, and freezes the config.

    On exit, the files of the run are sent to the loggers that take files, and their runs are ended.

    Args:
        cfg: A complete config. It is changed in place and frozen.
        resume: Whether the output folder may contain an earlier run.
        eval_only: Whether to skip the training data.
        resume_command: The command that resumes the run, shown if the run is interrupted.
        note: A line to log first, such as the result of `describe_options`.

    Raises:
        ConfigError: If the folder is in use, contains another run or belongs to another command, the processes have
            different configs, or a value does not fit the machine or the data. On exit, if the device is out of memory.
        DataError: If the data cannot be used.
        Interrupted: On exit, if SIGINT or SIGTERM was received.
        RankError: On exit, if another process has died or hangs.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if not (eval_only and folder_kind(folder) in WITH_MODEL):
        require_kind(folder, EVALUATION if eval_only else TRAINING)
    make_folder(folder)
    lock = FolderLock(folder) if comm.is_main_process() else nullcontext()
    reported = termination_reported("" if eval_only else resume_command)
    named = missing_ranks_named("" if eval_only else resume_command)
    with lock, run_logging(folder, comm.get_rank(), get_console()), reported, named, tracked_runs():
        if note:
            logger.info("%s.", note)
        if not eval_only:
            check_shared_folder(folder, comm.get_rank(), comm.all_gather)
        check_agreement(config_values(cfg) | library_versions(), comm.all_gather)
        _adapt_to_machine(cfg)
        validate_config(cfg, training=not eval_only)
        # A host that replaces another one was not restarted itself.
        resume = resume or any(comm.all_gather(restarts()))
        if not eval_only and not resume:
            _check_unused(folder)
        if not eval_only and comm.is_main_process():
            find_loggers(cfg.LOGGERS)
        register_datasets(cfg, training=not eval_only)
        if not eval_only:
            resolve_epochs(cfg)
            cfg.SEED = _seed(cfg, resume)
            seed_all(cfg.SEED + comm.get_rank())
        cfg.freeze()
        try:
            yield
        except Interrupted as error:
            raise Interrupted(f"{error} Resume with: {resume_command}" if resume_command else str(error)) from error
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"out of memory on {cfg.MODEL.DEVICE} with SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}. Halve it "
                f"and set SOLVER.ACCUMULATE_STEPS {2 * cfg.SOLVER.ACCUMULATE_STEPS}, or set SOLVER.AMP.ENABLED "
                "True or MODEL.PVT.CHECKPOINT_STAGES [1, 2]."
            ) from error


def _adapt_to_machine(cfg: CfgNode) -> None:
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s, but no usable GPU was found. Running on the CPU.", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    select_device(torch.device(cfg.MODEL.DEVICE))
    if cfg.SOLVER.AMP.ENABLED and not has_fast_bf16(torch.device(cfg.MODEL.DEVICE)):
        logger.warning("Mixed precision is slower than fp32 on this processor. Set SOLVER.AMP.ENABLED False.")
    if cfg.MODEL.DEVICE == "cpu" and torch.get_num_threads() > 1 and busy_share() >= BUSY:
        logger.warning(
            "Other programs keep the processor busy: the load average is %.0f %% of the cores. End them, or train with "
            "one thread, which is faster then (set the environment variable OMP_NUM_THREADS=1).",
            100 * busy_share(),
        )
    cores = available_cores()
    if cores < cfg.DATALOADER.NUM_WORKERS:
        logger.info(
            "DATALOADER.NUM_WORKERS lowered from %d to %d, the number of cores.", cfg.DATALOADER.NUM_WORKERS, cores
        )
        cfg.DATALOADER.NUM_WORKERS = cores
    if cfg.SOLVER.REFERENCE_WORLD_SIZE:
        cfg.merge_from_other_cfg(DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size()))


def select_device(device: torch.device) -> None:
    """Check that this machine has a device, and make a GPU with an index the current one.

    PyTorch reports the memory and the random state of the current GPU.

    Args:
        device: Any device.

    Raises:
        ConfigError: If the machine has no such device, or several processes would share it.
    """
    require_device(device, f"MODEL.DEVICE {device}")
    require_single_process(device, comm.get_world_size())
    if device.type != "cuda" or device.index is None:
        return
    if comm.get_world_size() > 1:
        raise ConfigError(f"MODEL.DEVICE {device}: with several processes, each uses its own GPU. Set it to cuda.")
    torch.cuda.set_device(device)


def _check_unused(folder: Path) -> None:
    """Check that the folder has no checkpoints, before the data check takes its time."""
    if comm.is_main_process() and (found := sorted(folder.glob("model_*.pth"))):
        raise ConfigError(
            f"{folder} contains checkpoints of an earlier run ({found[-1].name}). Resume from them with --resume, or "
            "choose another folder with --output."
        )


def _seed(cfg: CfgNode, resume: bool) -> int:
    """Return the config's seed. If negative, return that of the run to resume, or draw a new one."""
    if cfg.SEED >= 0:
        return int(cfg.SEED)
    saved = Path(cfg.OUTPUT_DIR) / CONFIG_NAME
    drawn = secrets.randbelow(2**31)
    if comm.is_main_process() and resume and saved.is_file():
        drawn = load_config(saved).SEED
    return int(comm.all_gather(drawn)[0])
