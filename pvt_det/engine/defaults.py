"""What every training script needs around its trainer: command-line arguments and the setting up of a run."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm
from rich.console import Console

from pvt_det.config import load_config
from pvt_det.data.sets import register_datasets
from pvt_det.engine.launch import launch
from pvt_det.errors import ConfigError, Interrupted
from pvt_det.run_folder import CONFIG_NAME
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.distributed import restarts
from pvt_det.utils.lock import FolderLock
from pvt_det.utils.logs import run_logging
from pvt_det.utils.paths import make_folder
from pvt_det.utils.rng import seed_all
from pvt_det.utils.signals import termination_reported

logger = logging.getLogger(__name__)

# Options that set a key of the config.
_SHORTCUTS = {
    "output": ("OUTPUT_DIR", "DIR", "folder for everything that the run writes"),
    "train_json": ("DATASETS.TRAIN_JSON", "FILE", "annotations to train on; classes come from it"),
    "train_images": ("DATASETS.TRAIN_IMAGES", "DIR", "their images"),
    "val_json": ("DATASETS.VAL_JSON", "FILE", "annotations to evaluate on"),
    "val_images": ("DATASETS.VAL_IMAGES", "DIR", "their images"),
    "train_labels": ("DATASETS.TRAIN_LABELS", "DIR", "their label maps, for segmentation"),
    "val_labels": ("DATASETS.VAL_LABELS", "DIR", "theirs, to evaluate on"),
    "check_data": ("DATASETS.CHECK", "full|fast|off", "how the data is checked before the first step"),
    "on_error": ("DATASETS.ON_ERROR", "stop|skip|strict", "what to do about broken data"),
    "evaluator": ("TEST.EVALUATOR", "hotcoco|pycocotools", "what computes AP; the numbers are the same"),
}


def default_argument_parser(description: str = "", epilog: str = "") -> ArgumentParser:
    """Build the parser of a training script; the options are Detectron2's, and shortcuts for keys of the config.

    Args:
        description: What the script does, for `--help`.
        epilog: Examples, shown below the options; `%(prog)s` becomes the script's name.
    """
    parser = ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="one of configs/, or your own")
    parser.add_argument("--resume", action="store_true", help="resume from the output folder's last checkpoint")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    add_run_options(parser, training=True)
    return parser


def add_run_options(parser: ArgumentParser, *, training: bool) -> None:
    """Add the options that training and evaluation share.

    Args:
        parser: Gets the options.
        training: Add those of the training data too.
    """
    shown = {name: row for name, row in _SHORTCUTS.items() if training or not name.startswith("train_")}
    for name, (key, value, text) in shown.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=value, help=f"{text} ({key})")
    parser.add_argument(
        "--strict",
        dest="on_error",
        action="store_const",
        const="strict",
        help="refuse data that anything is wrong with, even what could be fixed (--on-error strict)",
    )
    parser.add_argument(
        "--allow-partial",
        action="append",
        default=[],
        metavar="PATTERN",
        help="keys of MODEL.WEIGHTS that may be missing or left over, such as 'head.*'; may be repeated",
    )
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        help="processes on each machine: GPUs, or with MODEL.DEVICE cpu, parts of the CPU",
    )
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument("--dist-url", default="auto", help="where the processes meet, tcp://HOST:PORT")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="keys of the config and their values")


def config_from_args(args: argparse.Namespace, config_file: str | Path = "", settings: Sequence[str] = ()) -> CfgNode:
    """Load the config that the arguments of a training script describe.

    Args:
        args: The options of `add_run_options`.
        config_file: The config; "" takes `args.config_file`.
        settings: Keys of the config and their values, alternating; those of `args` win.

    Returns:
        A complete config, not frozen.

    Raises:
        ConfigError: A key is unknown, or a value wrong.
    """
    given = {key: getattr(args, name, None) for name, (key, _, _) in _SHORTCUTS.items()}
    shortcuts = [word for key, value in given.items() if value is not None for word in (key, value)]
    cfg = load_config(config_file or args.config_file, [*settings, *args.overrides, *shortcuts])
    if args.allow_partial and not cfg.MODEL.WEIGHTS and not getattr(args, "eval_only", True):
        raise ConfigError("--allow-partial is for MODEL.WEIGHTS, which is empty: name weights, or leave it out.")
    return cfg


def launch_from_args(job: Callable[[CfgNode], Any], cfg: CfgNode, args: argparse.Namespace) -> None:
    """Run `job(cfg)` in the processes that the arguments of a training script ask for.

    Args:
        job: A function that can be imported by name, or a `functools.partial` of one.
        cfg: The config; `MODEL.DEVICE` says where the processes run.
        args: The options of `add_run_options`.

    Raises:
        ConfigError: There are fewer GPUs than requested processes.
    """
    processes = (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
    launch(job, *processes, args=(cfg,), device=cfg.MODEL.DEVICE)


@contextmanager
def default_setup(
    cfg: CfgNode, *, resume: bool = False, eval_only: bool = False, resume_command: str = ""
) -> Iterator[None]:
    """Set up a run; to be entered by every process before the trainer is built.

    Makes and locks `OUTPUT_DIR`, opens `log.txt`, fits the config to this machine, checks and registers the data sets,
    seeds the random numbers, and freezes the config.

    Args:
        cfg: A complete config; is changed in place and frozen.
        resume: Whether the output folder may hold an earlier run.
        eval_only: Leave the training data alone.
        resume_command: The command that resumes the run, for the message of an interrupted one.

    Raises:
        ConfigError: The folder is in use or holds another run, or a value does not suit this machine or the data; on
            leaving: the device is out of memory.
        DataError: The data cannot be used.
        Interrupted: On leaving: SIGINT or SIGTERM came.
    """
    folder = Path(cfg.OUTPUT_DIR)
    make_folder(folder)
    lock = FolderLock(folder) if comm.is_main_process() else nullcontext()
    reported = termination_reported("" if eval_only else resume_command)
    with lock, run_logging(folder, comm.get_rank(), Console()), reported:
        _fit_to_machine(cfg)
        _refuse_unsupported(cfg)
        resume = resume or restarts() > 0
        if not eval_only and not resume:
            _refuse_used(folder)
        register_datasets(cfg, training=not eval_only)
        if not eval_only:
            cfg.SEED = _seed(cfg, resume)
            seed_all(cfg.SEED + comm.get_rank())
        cfg.freeze()
        try:
            yield
        except Interrupted as error:
            raise Interrupted(f"{error} Go on with: {resume_command}" if resume_command else str(error)) from error
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"out of memory on {cfg.MODEL.DEVICE} with SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}: halve it "
                f"and set SOLVER.ACCUMULATE_STEPS {2 * cfg.SOLVER.ACCUMULATE_STEPS}, use SOLVER.AMP.ENABLED "
                "True, or MODEL.PVT.CHECKPOINT_STAGES [1, 2]."
            ) from error


def _fit_to_machine(cfg: CfgNode) -> None:
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s, but this machine has no usable GPU: running on the CPU.", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    select_gpu(torch.device(cfg.MODEL.DEVICE))
    cores = len(os.sched_getaffinity(0))
    if cores < cfg.DATALOADER.NUM_WORKERS:
        logger.info("DATALOADER.NUM_WORKERS lowered from %d to %d, the cores here.", cfg.DATALOADER.NUM_WORKERS, cores)
        cfg.DATALOADER.NUM_WORKERS = cores
    if cfg.SOLVER.REFERENCE_WORLD_SIZE:
        cfg.merge_from_other_cfg(DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size()))


def select_gpu(device: torch.device) -> None:
    """Make a GPU that is named by its number the current one, whose memory and random state are reported.

    Args:
        device: Any device; nothing happens for a CPU, or for a GPU without a number.

    Raises:
        ConfigError: This machine has no such GPU, or several processes would share it.
    """
    if device.type != "cuda" or device.index is None:
        return
    if comm.get_world_size() > 1:
        raise ConfigError(f"MODEL.DEVICE {device}: of several processes each has a GPU of its own. Give cuda.")
    if device.index >= torch.cuda.device_count():
        raise ConfigError(
            f"MODEL.DEVICE {device}: this machine has {torch.cuda.device_count()} GPUs, the first of them cuda:0."
        )
    torch.cuda.set_device(device)


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
    saved = Path(cfg.OUTPUT_DIR) / CONFIG_NAME
    drawn = secrets.randbelow(2**31)
    if comm.is_main_process() and resume and saved.is_file():
        drawn = load_config(saved).SEED
    return int(comm.all_gather(drawn)[0])
