"""Build the config of a run from a recipe and what a user has set, by options of a command or in Python."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from pvt_det import run_folder
from pvt_det.config import get_config, validate_config
from pvt_det.config.image_size import image_size_keys
from pvt_det.config.loader import COMMAND_LINE, copy_config
from pvt_det.config.table import get_value, set_value
from pvt_det.config.values import coerce
from pvt_det.data.given import require_coco_files
from pvt_det.engine.fingerprint import check_allowed_changes
from pvt_det.engine.options import LOGGED, SHORTCUTS, option_name
from pvt_det.errors import ConfigError
from pvt_det.runtimes.backends import is_exported
from pvt_det.runtimes.metadata import load_model_config
from pvt_det.utils.paths import file_fault
from pvt_det.utils.signing import verify_signed


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
    training, options = not getattr(args, "eval_only", True), _options(args)
    path = Path(config_file or args.config_file)
    cfg = build_run_config(path, options, args.overrides, settings=settings, training=training)
    if args.image_size:
        keys = dict(zip(args.overrides[::2], args.overrides[1::2], strict=True))
        for key, value in image_size_keys(cfg, args.image_size, training="train_json" in args).items():
            _check_agrees("--image-size", key, value, keys)
            set_value(cfg, key, coerce(value, get_value(cfg, key), key, COMMAND_LINE))
        validate_config(cfg, where=COMMAND_LINE, training=training)
    if "train_json" in args:
        _verify_weights(args.public_key, cfg.MODEL.WEIGHTS)
    changes = getattr(args, "allow_change", [])
    resume = bool(getattr(args, "resume", False)) and training
    check_run(cfg, path, training=training, resume=resume, allow_partial=args.allow_partial, allow_change=changes)
    return cfg


def _verify_weights(public_key: str, weights: str) -> None:
    """Verify the signature of the folder of `MODEL.WEIGHTS`, or warn that it has one."""
    if weights and (public_key or not file_fault(weights)):
        verify_signed(public_key, Path(weights))
    elif public_key:
        raise ConfigError("--public-key has no effect without MODEL.WEIGHTS. Set it, or leave out --public-key.")


def build_run_config(
    config: str | Path | CfgNode,
    options: Mapping[str, Any],
    overrides: Sequence[Any] = (),
    *,
    settings: Sequence[str] = (),
    training: bool = True,
) -> CfgNode:
    """Build a config from a recipe, options and keys.

    Args:
        config: Name of a recipe, path of a config file or an exported file, or a config, which is not changed.
        options: Values of options in `SHORTCUTS`, such as `{"output": "output/mine"}`. Those with the value None were
            not given.
        overrides: Config keys and values, alternating.
        settings: Config keys and values, alternating, over which options and overrides take precedence.
        training: Whether the config is for training.

    Returns:
        A complete, unfrozen config.

    Raises:
        ConfigError: If a key is unknown, a value is wrong, or an option and a key disagree.
    """
    given = _given(options)
    words = [*settings, *(word for pair in given.values() for word in pair), *overrides]
    # A key without a value is reported when the config is loaded.
    keys = dict(zip(overrides[::2], overrides[1::2], strict=False))
    if options.get("epochs") is not None:
        _refuse_both(options["epochs"], keys)
    build = copy_config if isinstance(config, CfgNode) else load_model_config
    cfg = build(config, words, training=training)
    # The config of a run of an earlier version names the folder that the run was trained in. It may have moved.
    if not isinstance(config, CfgNode) and "OUTPUT_DIR" not in words[::2]:
        path = Path(config)
        if path.name == run_folder.CONFIG_NAME and run_folder.folder_kind(path.parent) == run_folder.TRAINING:
            cfg.OUTPUT_DIR = str(path.parent)
    for option, (key, value) in given.items():
        _check_agrees(option, key, value, keys)
    if cfg.SOLVER.EPOCHS and training:
        _refuse_both(cfg.SOLVER.EPOCHS, keys)
    return cfg


def _refuse_both(epochs: object, keys: Mapping[str, Any]) -> None:
    """Raise an error if SOLVER.MAX_ITER is given although the epochs replace it."""
    if "SOLVER.MAX_ITER" in keys:
        raise ConfigError(
            f"SOLVER.MAX_ITER {keys['SOLVER.MAX_ITER']} would have no effect, because SOLVER.EPOCHS {epochs} "
            "(--epochs) replaces it. Give only one of them."
        )


def check_run(
    cfg: CfgNode,
    config_file: str | Path,
    *,
    training: bool,
    resume: bool,
    allow_partial: Sequence[str] = (),
    allow_change: Sequence[str] = (),
) -> None:
    """Check what a run was started with, before anything else is done.

    Args:
        cfg: A complete config.
        config_file: The config file, for messages.
        training: Whether the run trains.
        resume: Whether the run resumes an earlier one.
        allow_partial: Patterns of keys that may be missing from or unexpected in `MODEL.WEIGHTS`.
        allow_change: Config keys that may differ from the checkpoint's in a resumed run, or patterns of them.

    Raises:
        ConfigError: If an argument has no effect, or names no config key.
        DataError: If annotations are not in COCO's format.
    """
    require_coco_files(cfg, training=training, config_file=config_file)
    if allow_partial and not cfg.MODEL.WEIGHTS and training:
        raise ConfigError("--allow-partial needs MODEL.WEIGHTS, which is empty. Set it, or leave out --allow-partial.")
    check_allowed_changes(allow_change)
    if allow_change and not (training and resume):
        raise ConfigError("--allow-change is for resumed training only. Add --resume, or leave out --allow-change.")


def find_run(run: str, weights: str, overrides: Sequence[Any], public_key: str) -> tuple[Path, list[str]]:
    """Find the config and the weights to evaluate.

    Args:
        run: A run folder, a config file, the name of a recipe, or an exported file.
        weights: Weights to evaluate; "" uses the run's best checkpoint.
        overrides: Config keys and values, alternating.
        public_key: PEM file with which the signature of the run is verified; "" verifies nothing.

    Returns:
        The config file, and config keys and values, alternating, for the weights and the folder of the run.

    Raises:
        CheckpointError: If the weights are missing, or the signature does not match.
        ConfigError: If the run does not exist, or weights are given twice.
    """
    path, named = run_folder.config_file(run), run_folder.named_weights(weights, overrides)
    verify_signed(public_key, path, *([Path(named)] if named else []))
    settings = ["MODEL.WEIGHTS", run_folder.run_weights(path, named)]
    if is_exported(path):
        settings += ["OUTPUT_DIR", str(run_folder.exported_evaluation(path))]
    elif Path(run).is_dir():
        # The run folder may have moved since training.
        settings += ["OUTPUT_DIR", str(path.parent)]
    return path, settings


def _options(args: argparse.Namespace) -> dict[str, Any]:
    options = {name: getattr(args, name, None) for name in SHORTCUTS}
    # Options that may be repeated and are given once have the form of the others, in the run's config.yaml too.
    return {name: each[0] if isinstance(each, list) and len(each) == 1 else each for name, each in options.items()}


def _given(options: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Return the key and the value of each given option for a single key, by the name of the option."""
    return {option_name(name): (SHORTCUTS[name][0], value) for name, value in options.items() if value is not None}


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
    given = _given(_options(args))
    used = [option for option in map(option_name, LOGGED) if option in given]
    parts = [f"{option} {given[option][1]} sets {given[option][0]}" for option in used]
    if args.image_size:
        training = "train_json" in args
        keys = image_size_keys(cfg, args.image_size, training=training)
        sides = " ".join(map(str, args.image_size))
        parts.append(
            f"--image-size {sides} sets " + ", ".join(f"{key} {_in_pixels(get_value(cfg, key))}" for key in keys)
        )
    if "--batch-size" in given and "--lr" not in given:
        parts.append(f"SOLVER.BASE_LR stays {cfg.SOLVER.BASE_LR:g}")
    return "; ".join(parts)


def _in_pixels(sides: Any) -> str:
    """Format image sizes without the fractions that Detectron2's INPUT.CROP.SIZE has."""
    return str([int(side) for side in sides] if isinstance(sides, list | tuple) else sides)
