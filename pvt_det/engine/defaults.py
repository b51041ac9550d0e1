"""Setup of a run from its command-line arguments, shared by all training scripts."""

from __future__ import annotations

import argparse
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from pvt_det.config import get_config, load_config, validate_config
from pvt_det.config.image_size import image_size_keys
from pvt_det.config.loader import COMMAND_LINE
from pvt_det.config.table import get_value, set_value
from pvt_det.config.values import coerce
from pvt_det.data.given import require_coco_files
from pvt_det.data.sets import register_datasets
from pvt_det.engine.epochs import resolve_epochs
from pvt_det.engine.fingerprint import check_allowed_changes, config_values
from pvt_det.engine.launch import launch
from pvt_det.engine.options import LOGGED, SHORTCUTS, option_name
from pvt_det.engine.options import default_argument_parser as default_argument_parser
from pvt_det.errors import ConfigError, Interrupted
from pvt_det.run_folder import CONFIG_NAME, EVALUATION, TRAINING, WITH_MODEL, folder_kind, require_kind
from pvt_det.utils.agreement import check_agreement
from pvt_det.utils.console import get_console
from pvt_det.utils.devices import require_device, require_single_process
from pvt_det.utils.environment import BUSY, available_cores, busy_share
from pvt_det.utils.lock import FolderLock
from pvt_det.utils.logs import run_logging
from pvt_det.utils.paths import make_folder
from pvt_det.utils.precision import has_fast_bf16
from pvt_det.utils.rank_watch import missing_ranks_named
from pvt_det.utils.rng import seed_all
from pvt_det.utils.signals import termination_reported
from pvt_det.utils.torchrun import restarts

logger = logging.getLogger(__name__)


def config_from_args(args: argparse.Namespace, config_file: str | Path = "", settings: Sequence[str] = ()) -> CfgNode:
    """Load the config that the arguments of a training script describe.

    Args:
        args: Parsed options of `add_run_options`.
        config_file: Path of the config file. "" takes `args.config_file`.
        settings: Config keys and values, alternating. Those in `args` take precedence.

    Returns:
        A complete, unfrozen config.

    Raises:
        ConfigError: If a key is unknown, a value is wrong, or an option and a key in the arguments disagree.
        DataError: If annotations are not in COCO's format.
    """
    shortcuts = [word for key, value in _given(args).values() for word in (key, value)]
    training = not getattr(args, "eval_only", True)
    path, words = Path(config_file or args.config_file), [*settings, *shortcuts, *args.overrides]
    cfg = load_config(path, words, training=training)
    # The config of a run of an earlier version names the folder that the run was trained in. It may have moved.
    if path.name == CONFIG_NAME and folder_kind(path.parent) == TRAINING and "OUTPUT_DIR" not in words[::2]:
        cfg.OUTPUT_DIR = str(path.parent)
    keys = dict(zip(args.overrides[::2], args.overrides[1::2], strict=True))
    for option, (key, value) in _given(args).items():
        _check_agrees(option, key, value, keys)
    if cfg.SOLVER.EPOCHS and training and "SOLVER.MAX_ITER" in keys:
        raise ConfigError(
            f"SOLVER.MAX_ITER {keys['SOLVER.MAX_ITER']} would have no effect, because SOLVER.EPOCHS "
            f"{cfg.SOLVER.EPOCHS} (--epochs) replaces it. Give only one of them."
        )
    if args.image_size:
        for key, value in image_size_keys(cfg, args.image_size, training="train_json" in args).items():
            _check_agrees("--image-size", key, value, keys)
            set_value(cfg, key, coerce(value, get_value(cfg, key), key, COMMAND_LINE))
        validate_config(cfg, where=COMMAND_LINE, training=training)
    require_coco_files(cfg, training=training, config_file=path)
    if args.allow_partial and not cfg.MODEL.WEIGHTS and training:
        raise ConfigError("--allow-partial needs MODEL.WEIGHTS, which is empty. Set it, or leave out --allow-partial.")
    check_allowed_changes(allowed := getattr(args, "allow_change", []))
    if allowed and (args.eval_only or not args.resume):
        raise ConfigError("--allow-change is for resumed training only. Add --resume, or leave out --allow-change.")
    return cfg


def _given(args: argparse.Namespace) -> dict[str, tuple[str, Any]]:
    """Return the key and the value of each given option for a single key, by the name of the option."""
    values = {name: getattr(args, name, None) for name in SHORTCUTS}
    return {option_name(name): (SHORTCUTS[name][0], value) for name, value in values.items() if value is not None}


def _check_agrees(option: str, key: str, value: Any, keys: Mapping[str, str]) -> None:
    """Raise an error if the command line gives a key another value than an option does."""
    if key not in keys:
        return
    default = get_value(get_config(), key)
    if coerce(keys[key], default, key, COMMAND_LINE) != coerce(value, default, key, COMMAND_LINE):
        raise ConfigError(f"{option} sets {key} to {value}, but {key} {keys[key]} is given too. Leave one of them out.")


def describe_options(args: argparse.Namespace, cfg: CfgNode) -> str:
    """Describe in one line which config keys the options for the length, batch and images of a run have set.

    Args:
        args: Parsed options of `add_run_options`.
        cfg: The config that `config_from_args` returned.

    Returns:
        The description, for the log; "" if none of these options is given.
    """
    given = _given(args)
    used = [option for option in map(option_name, LOGGED) if option in given]
    parts = [f"{option} {given[option][1]} sets {given[option][0]}" for option in used]
    if args.image_size:
        training = "train_json" in args
        keys = image_size_keys(cfg, args.image_size, training=training)
        sides = " ".join(map(str, args.image_size))
        parts.append(f"--image-size {sides} sets " + ", ".join(f"{key} {get_value(cfg, key)}" for key in keys))
    if "--batch-size" in given and "--lr" not in given:
        parts.append(f"SOLVER.BASE_LR stays {cfg.SOLVER.BASE_LR:g}")
    return "; ".join(parts)


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
    with lock, run_logging(folder, comm.get_rank(), get_console()), reported, named:
        if note:
            logger.info("%s.", note)
        check_agreement(config_values(cfg), comm.all_gather)
        _adapt_to_machine(cfg)
        validate_config(cfg, training=not eval_only)
        resume = resume or restarts() > 0
        if not eval_only and not resume:
            _check_unused(folder)
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
