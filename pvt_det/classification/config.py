"""The config of a classification run, and the command line flags for its keys.

The defaults are the settings of the published ImageNet recipe that all variants share.
`configs/classification/<model>.yaml` contains the settings of each variant.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pvt_det.errors import ConfigError
from pvt_det.models import list_models
from pvt_det.recipes import RECIPES
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.digest import value_digest
from pvt_det.utils.paths import file_fault
from pvt_det.utils.plain_yaml import read_plain_yaml
from pvt_det.utils.text import did_you_mean, warn_deprecated

_RECIPES = RECIPES / "classification"
_DESCRIPTION = "Train and evaluate a classifier on ImageNet or your own folders of images; also under torchrun."
_EXAMPLES = """
examples:
  the published recipe, on one machine with 8 GPUs:
    torchrun --nproc-per-node 8 tools/train_cls.py --model pvt_small --data imagenet
  the same recipe on one GPU with less memory:
    %(prog)s --model pvt_small --data imagenet --accumulate-steps 8
  resume an interrupted run:
    the same command with --resume
  evaluate:
    %(prog)s --model pvt_small --data imagenet --eval-only --weights output/cls/model_best.safetensors
  a model of timm, with its own recipe as options or in a file:
    %(prog)s --model resnet18 --data imagenet --drop-path-rate 0
  train a detector from the result:
    pvt-det train --config-file configs/retinanet_pvt_small.yaml MODEL.WEIGHTS output/cls/model_best.safetensors

exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 numeric, 6 lost process, 75 stopped and resumable
"""
# Keys that may differ between the processes of a run. What the paths lead to is compared by its content.
_MAY_DIFFER = frozenset({"data", "val_labels", "output", "weights", "eval_batch_size", "workers", "save_minutes"})
# Keys that say how the work is done. Like those that a resumed run may change, they are not part of a digest.
_WITHOUT_EFFECT = frozenset({"eval_only", "device", "compile", "channels_last", "checkpoint_stages", "deterministic"})
# Further keys in which a run may differ from a published recipe.
_NOT_OF_RECIPE = frozenset({"seed", "amp", "accumulate_steps", "eval_every"})
_BOOLEANS: dict[str, bool] = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_EXPECTED = {"str": "a string", "int": "an integer", "float": "a number", "bool": "true or false"}


def _option(
    default: Any,
    help_text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    resumable: bool = False,
) -> Any:
    """Define a key with its default, help, range or choices, and whether a resumed run may change it."""
    metadata = {"help": help_text, "low": low, "high": high, "choices": tuple(choices), "resumable": resumable}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainConfig:
    """The config of a classification run. Every key is also a command line flag, listed by `--help`.

    Attributes:
        model: Name of the model: one of `pvt_det.models.list_models()`, or a model of timm, such as "resnet18". A name
            that both have is that of this package.
        data: Folder of the data set: `train/` and `val/` with a folder per class, ILSVRC2012 as downloaded, or tar
            shards.
        val_labels: File with the classes of ILSVRC2012's validation images. "" searches for the devkit in and next to
            `data`.
        output: The run folder, for checkpoints and logs.
        resume: Whether to resume from the last checkpoint in `output`, if there is one.
        eval_only: Whether to only evaluate `weights` on the validation images.
        weights: The weights for `eval_only`: a file, URL or name such as "pvt_small".
        img_size: Side of the input images in pixels, at least 32.
        norm: Normalization of a ResNet of timm: "GN" for GroupNorm with 32 groups, "" for BatchNorm.
        drop_path_rate: Stochastic depth rate of the last block, 0 to 0.99. It rises linearly from 0 at the first block.
        epochs: Number of passes over the training images, at least 1.
        batch_size: Number of images per optimizer step, over all processes and accumulation steps.
        accumulate_steps: Number of batches per optimizer step.
        lr: Learning rate for a batch of `lr_batch` images. See `scaled_lr`.
        lr_batch: Batch size that `lr` refers to. 0 disables the scaling of `lr`.
        warmup_epochs: Length of the linear warm-up in epochs, less than `epochs`. Fractions are allowed.
        warmup_lr: Initial learning rate of the warm-up.
        min_lr: Final learning rate of the cosine schedule.
        weight_decay: Weight decay of AdamW. It is not applied to the class token and 1-D parameters.
        beta1: AdamW's decay rate of the first moment, 0 to 0.99999.
        beta2: AdamW's decay rate of the second moment, 0 to 0.99999.
        eps: AdamW's epsilon, at least 1e-16.
        clip_grad: Maximum gradient norm. 0 disables clipping.
        ema_decay: Decay of the exponential moving average of the weights, 0 to 0.99999. The average is evaluated and
            saved instead of the weights. 0 disables it.
        crop_scale: Minimum area of the random crop as a fraction of the image, 0.01 to 1.
        flip: Probability of a horizontal flip, 0 to 1.
        rand_augment: RandAugment in timm's notation, such as "rand-m9-mstd0.5-inc1". "" disables it.
        color_jitter: Strength of the color jitter. As in the published code, it is applied only without RandAugment.
        interpolation: Interpolation of resizing, "bicubic" or "bilinear".
        erase_prob: Probability of random erasing, 0 to 1.
        erase_mode: Fill of erased rectangles: "pixel" (noise), "rand" (one random color) or "const" (the mean color).
        repeats: Number of times that each image is repeated in a row (repeated augmentation). 1 disables it.
        mixup: Alpha of mixup. 0 disables it.
        cutmix: Alpha of cutmix. 0 disables it.
        mix_prob: Probability that mixup or cutmix is applied to a batch, 0 to 1.
        mix_switch_prob: Probability of cutmix instead of mixup if both are enabled, 0 to 1.
        label_smoothing: Label smoothing of the training loss, 0 to 0.99.
        crop_pct: Crop ratio of evaluation, 0.1 to 1. The short side is resized to `img_size / crop_pct` before the
            center crop.
        eval_every: Number of epochs between evaluations. The last epoch is always evaluated.
        eval_batch_size: Number of images per evaluation batch and process.
        seed: Random seed, at least 0.
        device: "cuda", "mps", "cpu" or "auto", which selects a CUDA GPU if one is available, otherwise the CPU.
        amp: Mixed precision of the forward pass: "bf16", "fp16" or "none" for fp32.
        compile: Whether to compile the model with `torch.compile`.
        channels_last: Whether to use the channels-last memory format.
        checkpoint_stages: Comma-separated stages, from 1 to 4, whose activations are recomputed to save memory. For the
            models of this package only.
        deterministic: Whether to use deterministic GPU kernels, which are slower.
        workers: Number of data loader workers per process. It is lowered to the number of available cores.
        max_broken: Maximum number of broken images. They are named in a warning and skipped.
        log_every: Number of updates between log lines.
        save_minutes: Number of minutes between checkpoints within an epoch.
    """

    # --- task
    model: str = _option("", "model: a variant such as pvt_small or pvt_v2_b2, or a model of timm such as resnet18")
    data: str = _option(
        "", "folder or URL with train/ and val/, ILSVRC2012 as downloaded, or tar shards", resumable=True
    )
    val_labels: str = _option("", "class list of ILSVRC2012's validation images; default: the devkit's", resumable=True)
    output: str = _option("output/cls", "folder for checkpoints and logs", resumable=True)
    resume: bool = _option(False, "resume from the output folder's last checkpoint, if it has one", resumable=True)
    eval_only: bool = _option(False, "only evaluate --weights on the validation images")
    weights: str = _option("", "weights for --eval-only: a file, URL or name such as pvt_small", resumable=True)
    img_size: int = _option(224, "side of the input images, in pixels", low=32)
    norm: str = _option("", "normalization of a ResNet of timm instead of BatchNorm", choices=("", "GN"))
    drop_path_rate: float = _option(0.1, "stochastic depth rate of the last block", low=0, high=0.99)
    # --- schedule
    epochs: int = _option(300, "passes over the training images", low=1)
    batch_size: int = _option(1024, "images per optimizer step, over all processes and accumulation steps", low=1)
    accumulate_steps: int = _option(1, "batches per optimizer step; increase it if memory is short", low=1)
    lr: float = _option(5e-4, "learning rate for --lr-batch images; scaled linearly with batch_size", low=0)
    lr_batch: int = _option(512, "batch size that --lr refers to; 0: do not scale --lr", low=0)
    warmup_epochs: float = _option(5.0, "length of the linear warm-up, in epochs", low=0)
    warmup_lr: float = _option(1e-6, "initial learning rate of the warm-up", low=0)
    min_lr: float = _option(1e-5, "final learning rate of the cosine schedule", low=0)
    # --- optimizer
    weight_decay: float = _option(0.05, "AdamW weight decay; not applied to the class token and 1-D parameters", low=0)
    beta1: float = _option(0.9, "AdamW beta1", low=0, high=0.99999)
    beta2: float = _option(0.999, "AdamW beta2", low=0, high=0.99999)
    eps: float = _option(1e-8, "AdamW epsilon", low=1e-16)
    clip_grad: float = _option(0.0, "maximum gradient norm; 0: no clipping", low=0)
    ema_decay: float = _option(0.0, "decay of the moving average of weights to evaluate; 0: none", low=0, high=0.99999)
    # --- augmentation
    crop_scale: float = _option(0.08, "minimum area of the random crop, as a fraction of the image", low=0.01, high=1)
    flip: float = _option(0.5, "probability of a horizontal flip", low=0, high=1)
    rand_augment: str = _option("rand-m9-mstd0.5-inc1", "RandAugment in timm's notation; '': none")
    color_jitter: float = _option(0.4, "color jitter strength; as published, only without RandAugment", low=0)
    interpolation: str = _option("bicubic", "interpolation of resizing", choices=("bicubic", "bilinear"))
    erase_prob: float = _option(0.25, "probability of random erasing", low=0, high=1)
    erase_mode: str = _option("pixel", "fill of erased rectangles", choices=("pixel", "rand", "const"))
    repeats: int = _option(3, "repeated augmentation: times each image is repeated in a row; 1: none", low=1)
    mixup: float = _option(0.8, "mixup alpha; 0: none", low=0)
    cutmix: float = _option(1.0, "cutmix alpha; 0: none", low=0)
    mix_prob: float = _option(1.0, "probability that a batch is mixed", low=0, high=1)
    mix_switch_prob: float = _option(0.5, "probability of cutmix instead of mixup if both are enabled", low=0, high=1)
    label_smoothing: float = _option(0.1, "label smoothing of the training loss", low=0, high=0.99)
    # --- evaluation
    crop_pct: float = _option(0.875, "evaluation resizes the short side to img_size / crop_pct", low=0.1, high=1)
    eval_every: int = _option(1, "epochs between evaluations", low=1)
    eval_batch_size: int = _option(256, "images per evaluation batch and process", low=1, resumable=True)
    # --- runtime
    seed: int = _option(0, "random seed", low=0)
    device: str = _option("auto", "device; auto: a CUDA GPU if available", choices=("auto", "cuda", "mps", "cpu"))
    amp: str = _option("bf16", "mixed precision of the forward pass; none: fp32", choices=("none", "bf16", "fp16"))
    compile: bool = _option(False, "compile the model with torch.compile")
    channels_last: bool = _option(False, "use the channels-last memory format")
    checkpoint_stages: str = _option("", "stages whose activations are recomputed to save memory, such as 1,2")
    deterministic: bool = _option(False, "use deterministic GPU kernels, which are slower")
    workers: int = _option(8, "data loader workers per process, at most the number of cores", low=0, resumable=True)
    max_broken: int = _option(10, "maximum number of broken images, which are named and skipped", low=0, resumable=True)
    log_every: int = _option(50, "updates between log lines", low=1, resumable=True)
    save_minutes: float = _option(15.0, "minutes between checkpoints within an epoch", low=0, resumable=True)

    def __post_init__(self) -> None:
        for name, option in config_fields().items():
            _check(name, getattr(self, name), option.metadata)
        if not self.model:
            raise ConfigError(
                f"The model is missing. Add --model NAME with one of {', '.join(list_models())}, or a model of timm."
            )
        if self.model in list_models():
            if self.norm:
                raise ConfigError(f"norm = {self.norm!r}: {self.model} has no BatchNorm. It is for ResNets of timm.")
        else:
            self._check_timm_model()
        self.stages()
        if self.warmup_epochs >= self.epochs:
            raise ConfigError(
                f"warmup_epochs = {self.warmup_epochs:g} is not less than epochs = {self.epochs}. Set --warmup-epochs."
            )
        if self.eval_only != bool(self.weights):
            raise ConfigError("--eval-only and --weights SOURCE must be used together. Give both or neither.")
        if self.eval_only and self.resume:
            raise ConfigError("--resume is for training only. Remove it when using --eval-only.")
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ConfigError(f"batch_size = {self.batch_size}: mixup and cutmix need an even number.")

    def _check_timm_model(self) -> None:
        # Only here, because they import torch.
        import timm

        from pvt_det.classification.models import is_resnet

        if not timm.is_model(self.model):
            expected = f"Expected one of {', '.join(list_models())}, or a model of timm."
            hint = did_you_mean(self.model.replace("-", "_"), [*list_models(), *timm.list_models()]).strip()
            raise ConfigError(f"model = {self.model!r}: {hint or expected}")
        if self.norm and not is_resnet(self.model):
            raise ConfigError(f"norm = {self.norm!r}: it is for ResNets of timm, which {self.model} is not.")
        if self.checkpoint_stages:
            raise ConfigError(
                f"checkpoint_stages = {self.checkpoint_stages!r}: {self.model} is a model of timm. It is for models of "
                f"this package only ({', '.join(list_models())}). Use --accumulate-steps to save memory."
            )

    def stages(self) -> set[int]:
        """Return the stage numbers in `checkpoint_stages`, each from 1 to 4.

        Raises:
            ConfigError: `checkpoint_stages` contains something else.
        """
        words = [word.strip() for word in self.checkpoint_stages.split(",") if word.strip()]
        if not set(words) <= set("1234"):
            raise ConfigError(
                f"checkpoint_stages = {self.checkpoint_stages!r}: expected numbers from 1 to 4, such as 1,2."
            )
        return set(map(int, words))

    def scaled_lr(self) -> float:
        """Return the learning rate scaled to the batch size: `lr * batch_size / lr_batch`."""
        return self.lr * self.batch_size / self.lr_batch if self.lr_batch else self.lr

    def shared_values(self) -> dict[str, Any]:
        """Return the keys that must have the same value in all processes."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _MAY_DIFFER}


def config_fields() -> dict[str, dataclasses.Field]:
    """Return the fields of `TrainConfig` by name. Their `metadata` holds the help, range and choices."""
    return {option.name: option for option in dataclasses.fields(TrainConfig)}


def load_train_config(path: Path | None, flags: Mapping[str, str | bool] | None = None) -> TrainConfig:
    """Build a config from the defaults, a YAML file and command line flags, in increasing priority.

    In a file, an `output` of "." is the folder of that file, so that a run folder can be moved with its options.

    Args:
        path: A YAML file with `name: value` lines, or None to use the defaults only.
        flags: Values from the command line, by key.

    Raises:
        ConfigError: The file is missing or not plain YAML, a key is unknown or repeated, or a value is invalid.
    """
    values = {} if path is None else _read_yaml(path)
    if path is not None and values.get("output") == ".":
        values["output"] = str(path.parent)
    for name, value in (flags or {}).items():
        values[name] = _coerce(name, value, f"--{name.replace('_', '-')}")
    return TrainConfig(**values)


def _read_yaml(path: Path) -> dict[str, Any]:
    if fault := file_fault(path):
        raise ConfigError(f"{path} cannot be read: it {fault}.")
    tree = read_plain_yaml(path, ConfigError)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected lines such as `epochs: 300`, got {type(tree).__name__}.")
    return {name: _coerce(name, value, f"{path}: {name}") for name, value in tree.items()}


def _coerce(name: str, value: Any, where: str) -> Any:
    """Convert a value from a YAML file or a flag to the type of its key."""
    fields = config_fields()
    if name not in fields:
        raise ConfigError(f"{where}: unknown option. {_suggestion(str(name), list(fields))}")
    if name == "resume" and value == "":  # written to options.yaml by earlier versions
        return False
    if name == "resume" and value == "auto":
        warn_deprecated(f"{where} = 'auto'", "--resume, or resume: true in a config file")
        return True
    kind = type(fields[name].default)
    try:
        if kind is bool and isinstance(value, str):
            return _BOOLEANS[value.lower()]
        if kind in (int, float) and isinstance(value, str):
            return kind(value)
    except (ValueError, KeyError):
        pass
    else:
        if type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)
    raise ConfigError(f"{where} = {value!r}: expected {_EXPECTED[kind.__name__]}, such as {fields[name].default!r}.")


def _check(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    if limits["choices"] and value not in limits["choices"]:
        raise ConfigError(f"{name} = {value!r}: {_suggestion(value, limits['choices'])}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} = {value}: expected a finite number.")
    low, high = limits["low"], limits["high"]
    if (low is not None and value < low) or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{name} = {value}: expected a number {limit}.")


def _suggestion(word: str, known: Sequence[str]) -> str:
    names = ", ".join(name or repr(name) for name in known)
    return did_you_mean(word.replace("-", "_"), known).strip() or f"Expected one of {names}."


def config_digest(cfg: TrainConfig) -> str:
    """Compute the SHA-256 of the keys that change the model, the data or the evaluation.

    Keys at their default value are not part of it, so that a new key does not change the digest of older runs.

    Args:
        cfg: The config of the run.

    Returns:
        The digest as 64 hex digits.
    """
    return _digest(cfg, _WITHOUT_EFFECT)


def recipe_digest(cfg: TrainConfig) -> str:
    """Compute the SHA-256 of the architecture, the schedule, the augmentation and the evaluation settings.

    A run follows a published recipe if both have the same digest.

    Args:
        cfg: The config of the run.

    Returns:
        The digest as 64 hex digits.
    """
    return _digest(cfg, _WITHOUT_EFFECT | _NOT_OF_RECIPE)


def _digest(cfg: TrainConfig, left_out: frozenset[str]) -> str:
    fields = config_fields().items()
    names = [name for name, option in fields if name not in left_out and not option.metadata["resumable"]]
    values = {name: getattr(cfg, name) for name in names}
    return value_digest({name: value for name, value in values.items() if value != getattr(TrainConfig, name)})


def check_same_run(saved: Mapping[str, Any], now: TrainConfig) -> None:
    """Check that a run is resumed with the config that it was started with.

    Args:
        saved: The config that the run was started with, as a dict by key.
        now: The config to resume with.

    Raises:
        ConfigError: A key that affects the result has changed.
    """
    fixed = {name for name, option in config_fields().items() if not option.metadata["resumable"]}
    differing = {n: (saved[n], getattr(now, n)) for n in fixed if n in saved and saved[n] != getattr(now, n)}
    if differing:
        changes = ", ".join(f"{name} was {old!r} and is {new!r}" for name, (old, new) in sorted(differing.items()))
        raise ConfigError(
            f"{now.output} contains a run with different options: {changes}. Use the same options to resume, or "
            "another --output to start a new run."
        )


def dump_train_config(cfg: TrainConfig) -> str:
    """Convert a config to YAML that `load_train_config` can read.

    Args:
        cfg: The config of the run.
    """
    return yaml.safe_dump(dataclasses.asdict(cfg), sort_keys=False, allow_unicode=True)


def argument_parser() -> ArgumentParser:
    """Build the argument parser of `pvt-det train-cls` and `tools/train_cls.py`.

    Returns:
        The parser. Flags that are not given are absent from its result. A script may add its own arguments, which
        `setup` ignores.
    """
    parser = ArgumentParser(
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config-file", metavar="FILE", help="config in YAML; default: the model's published recipe")
    parser.add_argument("--config", metavar="FILE", help=argparse.SUPPRESS)
    for name, key in config_fields().items():
        _add_flag(parser, name, key)
    return parser


def setup(args: argparse.Namespace) -> TrainConfig:
    """Build the config of a run from the flags and `--config-file`, by default the model's published recipe.

    Args:
        args: The arguments parsed by `argument_parser`. Flags take precedence over the file.

    Raises:
        ConfigError: A file is missing, or a value is invalid.
    """
    flags = {name: value for name, value in vars(args).items() if name in config_fields()}
    return load_train_config(_config_file(args, flags.get("model", "")), flags)


def _config_file(args: argparse.Namespace, model: str) -> Path | None:
    if args.config:
        warn_deprecated("--config", "--config-file")
    if given := args.config_file or args.config:
        return Path(given)
    return classifier_recipe(model)


def classifier_recipe(name: str) -> Path | None:
    """Return the file with the options of a recipe, or None if no recipe has this name.

    Args:
        name: Name of the recipe: that of a model, such as "pvt_small", or another one in `configs/classification/`.
    """
    recipe = _RECIPES / f"{name}.yaml"
    return recipe if recipe.is_file() else None


def _add_flag(parser: ArgumentParser, name: str, key: dataclasses.Field) -> None:
    flag, help_text = f"--{name.replace('_', '-')}", key.metadata["help"].replace("%", "%%")
    if name == "resume":
        # A flag. The deprecated `--resume auto` is still accepted.
        parser.add_argument(flag, nargs="?", const=True, metavar="auto", default=argparse.SUPPRESS, help=help_text)
    elif isinstance(key.default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=help_text)
    else:
        choices = key.metadata["choices"]
        metavar = "{" + ",".join(filter(None, choices)) + "}" if choices else type(key.default).__name__.upper()
        default = f" (default: {key.default})" if key.default != "" else ""
        parser.add_argument(flag, metavar=metavar, default=argparse.SUPPRESS, help=help_text + default)
