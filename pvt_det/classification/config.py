"""The config of a classification run: every key with its type, range and default, and a flag for each of them.

The defaults are the published ImageNet recipe as far as all variants share it. `configs/classification/<model>.yaml`
holds what differs between them.
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
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.paths import file_fault
from pvt_det.utils.plain_yaml import read_plain_yaml
from pvt_det.utils.text import did_you_mean, warn_deprecated

_RECIPES = Path(__file__).parents[2] / "configs/classification"
_DESCRIPTION = "Train and evaluate a classifier on ImageNet or your own folders of images; also under torchrun."
_EXAMPLES = """
examples:
  the published recipe, on one machine with 8 GPUs:
    torchrun --nproc-per-node 8 tools/train_cls.py --model pvt_small --data imagenet
  the same on one GPU of less memory:
    %(prog)s --model pvt_small --data imagenet --accumulate-steps 8
  go on after an interruption:
    the same command with --resume
  evaluate:
    %(prog)s --model pvt_small --data imagenet --eval-only --weights output/cls/model_best.safetensors
  detect from the result:
    pvt-det train --config-file configs/retinanet_pvt_small.yaml MODEL.WEIGHTS output/cls/model_best.safetensors

exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 numeric, 75 stopped and resumable
"""
_WORDS: dict[str, bool] = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_EXPECTED = {"str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false"}


def _option(
    default: Any,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    resumable: bool = False,
) -> Any:
    """A key: its default, its help, its range or choices, and whether a resumed run may change it."""
    metadata = {"help": text, "low": low, "high": high, "choices": tuple(choices), "resumable": resumable}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainConfig:
    """All keys of a classification run. `--help` lists them with their meaning."""

    # --- what
    model: str = _option("", "variant, such as pvt_small or pvt_v2_b2")
    data: str = _option("", "folder with train/ and val/, ILSVRC2012 as downloaded, or tar shards", resumable=True)
    val_labels: str = _option("", "list of ILSVRC2012's validation classes; default: the devkit's", resumable=True)
    output: str = _option("output/cls", "folder for checkpoints and logs", resumable=True)
    resume: bool = _option(False, "resume from the output folder's last checkpoint, if it has one", resumable=True)
    eval_only: bool = _option(False, "only evaluate --weights on the validation images")
    weights: str = _option("", "what --eval-only evaluates: a file, URL or name such as pvt_small", resumable=True)
    img_size: int = _option(224, "side of the network's input, in pixels", low=32)
    drop_path_rate: float = _option(0.1, "stochastic depth of the last block", low=0, high=0.99)
    # --- schedule
    epochs: int = _option(300, "passes over the training images", low=1)
    batch_size: int = _option(1024, "images of one optimizer step, over all processes and accumulated batches", low=1)
    accumulate_steps: int = _option(1, "batches that share an optimizer step; raise it if memory is short", low=1)
    lr: float = _option(5e-4, "learning rate for --lr-batch images; scaled in proportion to batch_size", low=0)
    lr_batch: int = _option(512, "batch size that --lr is for; 0: --lr is taken as it is", low=0)
    warmup_epochs: float = _option(5.0, "epochs of linear warm-up", low=0)
    warmup_lr: float = _option(1e-6, "learning rate that the warm-up begins with", low=0)
    min_lr: float = _option(1e-5, "learning rate that the cosine ends in", low=0)
    # --- optimizer
    weight_decay: float = _option(0.05, "of AdamW; not on the class token and 1-D parameters", low=0)
    beta1: float = _option(0.9, "of AdamW", low=0, high=0.99999)
    beta2: float = _option(0.999, "of AdamW", low=0, high=0.99999)
    eps: float = _option(1e-8, "of AdamW", low=1e-16)
    clip_grad: float = _option(0.0, "largest gradient norm; 0: no clipping", low=0)
    ema_decay: float = _option(0.0, "moving average of the weights, evaluated instead; 0: none", low=0, high=0.99999)
    # --- augmentation
    crop_scale: float = _option(0.08, "smallest area of the random crop, relative to the image", low=0.01, high=1)
    flip: float = _option(0.5, "probability of a horizontal flip", low=0, high=1)
    rand_augment: str = _option("rand-m9-mstd0.5-inc1", "RandAugment as timm describes it; '': none")
    color_jitter: float = _option(0.4, "colour jitter; as in the published code, only without RandAugment", low=0)
    interpolation: str = _option("bicubic", "of resizing", choices=("bicubic", "bilinear"))
    erase_prob: float = _option(0.25, "probability of random erasing", low=0, high=1)
    erase_mode: str = _option("pixel", "what random erasing leaves", choices=("pixel", "rand", "const"))
    repeats: int = _option(3, "repeated augmentation: times that an image comes in a row; 1: none", low=1)
    mixup: float = _option(0.8, "alpha of mixup; 0: none", low=0)
    cutmix: float = _option(1.0, "alpha of cutmix; 0: none", low=0)
    mix_prob: float = _option(1.0, "probability that a batch is mixed", low=0, high=1)
    mix_switch_prob: float = _option(0.5, "probability of cutmix where both are on", low=0, high=1)
    label_smoothing: float = _option(0.1, "of the training loss", low=0, high=0.99)
    # --- evaluation
    crop_pct: float = _option(0.875, "evaluation resizes the short side to img_size / crop_pct", low=0.1, high=1)
    eval_every: int = _option(1, "epochs from one evaluation to the next", low=1)
    eval_batch_size: int = _option(256, "images of an evaluation batch, per process", low=1, resumable=True)
    # --- how
    seed: int = _option(0, "of everything random", low=0)
    device: str = _option("auto", "auto: a GPU if there is one", choices=("auto", "cuda", "cpu"))
    amp: str = _option("bf16", "number format of the forward pass", choices=("none", "bf16", "fp16"))
    compile: bool = _option(False, "torch.compile")
    channels_last: bool = _option(False, "keep images channels-last in memory")
    checkpoint_stages: str = _option("", "stages whose activations are recomputed to save memory, such as 1,2")
    deterministic: bool = _option(False, "slower GPU kernels that give the same bits every time")
    workers: int = _option(
        8, "data loader processes of each training process, at most the cores", low=0, resumable=True
    )
    max_broken: int = _option(10, "broken images (named and left out) before the run stops", low=0, resumable=True)
    log_every: int = _option(50, "updates from one log line to the next", low=1, resumable=True)
    save_minutes: float = _option(15.0, "minutes between checkpoints within an epoch", low=0, resumable=True)

    def __post_init__(self) -> None:
        for name, option in config_fields().items():
            _check(name, getattr(self, name), option.metadata)
        if not self.model:
            raise ConfigError(f"give the variant to train: --model NAME. Known are {', '.join(list_models())}.")
        if self.model not in list_models():
            raise ConfigError(f"model = {self.model!r}: {_meant(self.model, list_models())}")
        self.stages()
        if self.warmup_epochs >= self.epochs:
            raise ConfigError(
                f"warmup_epochs = {self.warmup_epochs:g} is not below epochs = {self.epochs}: set --warmup-epochs."
            )
        if self.eval_only != bool(self.weights):
            raise ConfigError("--eval-only and --weights SOURCE go together: give both or neither.")
        if self.eval_only and self.resume:
            raise ConfigError("--resume is for training: leave it out with --eval-only.")
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ConfigError(f"batch_size = {self.batch_size}: mixup and cutmix need an even number.")

    def stages(self) -> set[int]:
        """`checkpoint_stages` as numbers from 1 to 4."""
        words = [word.strip() for word in self.checkpoint_stages.split(",") if word.strip()]
        if not set(words) <= set("1234"):
            raise ConfigError(
                f"checkpoint_stages = {self.checkpoint_stages!r}: expected numbers from 1 to 4, as in 1,2."
            )
        return set(map(int, words))

    def scaled_lr(self) -> float:
        """The learning rate of this batch size."""
        return self.lr * self.batch_size / self.lr_batch if self.lr_batch else self.lr


def config_fields() -> dict[str, dataclasses.Field]:
    """The keys of a `TrainConfig` by name, with their default and, in `metadata`, their help and choices."""
    return {option.name: option for option in dataclasses.fields(TrainConfig)}


def load_train_config(path: Path | None, flags: Mapping[str, str | bool] | None = None) -> TrainConfig:
    """Build a config from the defaults, a YAML file over them, and flags over both.

    Args:
        path: A file of `name: value` lines, or None for the defaults alone.
        flags: Values from the command line, by name.

    Raises:
        ConfigError: The file is missing or not plain YAML, a name is unknown or given twice, or a value is wrong.
    """
    values = {} if path is None else _read_yaml(path)
    for name, value in (flags or {}).items():
        values[name] = _coerce(name, value, f"--{name.replace('_', '-')}")
    return TrainConfig(**values)


def _read_yaml(path: Path) -> dict[str, Any]:
    if fault := file_fault(path):
        raise ConfigError(f"{path}: cannot be read: {fault}.")
    tree = read_plain_yaml(path, ConfigError)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected lines such as `epochs: 300`, found {type(tree).__name__}.")
    return {name: _coerce(name, value, f"{path}: {name}") for name, value in tree.items()}


def _coerce(name: str, value: Any, where: str) -> Any:
    """Convert a YAML value or a flag's string to the type of its key."""
    fields = config_fields()
    if name not in fields:
        raise ConfigError(f"{where}: unknown option. {_meant(str(name), list(fields))}")
    if name == "resume" and value == "":  # in the options.yaml of runs of earlier versions
        return False
    if name == "resume" and value == "auto":
        warn_deprecated(f"{where} = 'auto'", "--resume, or resume: true in a file")
        return True
    kind = type(fields[name].default)
    try:
        if kind is bool and isinstance(value, str):
            return _WORDS[value.lower()]
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
        raise ConfigError(f"{name} = {value!r}: {_meant(value, limits['choices'])}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} = {value}: expected a finite number.")
    low, high = limits["low"], limits["high"]
    if (low is not None and value < low) or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{name} = {value}: expected a number {limit}.")


def _meant(word: str, known: Sequence[str]) -> str:
    return did_you_mean(word.replace("-", "_"), known).strip() or f"Known are {', '.join(known)}."


def check_same_run(saved: Mapping[str, Any], now: TrainConfig) -> None:
    """Check that a run is resumed with the config that it began with.

    Args:
        saved: The config that the run began with, as `dataclasses.asdict` gives it.
        now: The config to resume with.

    Raises:
        ConfigError: A key differs that changes the result.
    """
    fixed = {name for name, option in config_fields().items() if not option.metadata["resumable"]}
    differing = {n: (saved[n], getattr(now, n)) for n in fixed if n in saved and saved[n] != getattr(now, n)}
    if differing:
        listed = ", ".join(f"{name} was {old!r} and is {new!r}" for name, (old, new) in sorted(differing.items()))
        raise ConfigError(
            f"{now.output}: this run began with other options: {listed}. Give the same ones to resume, or another "
            "--output to start anew."
        )


def dump_train_config(cfg: TrainConfig) -> str:
    """The config as YAML, which `load_train_config` reads."""
    return yaml.safe_dump(dataclasses.asdict(cfg), sort_keys=False, allow_unicode=True)


def argument_parser() -> ArgumentParser:
    """The parser of `pvt-det train-cls` and `tools/train_cls.py`. Flags that are not given are absent from its result.

    Returns:
        The parser. A script may add arguments of its own; `setup` ignores them.
    """
    parser = ArgumentParser(
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config-file", metavar="FILE", help="a config in YAML; default: the model's published recipe")
    parser.add_argument("--config", metavar="FILE", help=argparse.SUPPRESS)
    for name, key in config_fields().items():
        _add_flag(parser, name, key)
    return parser


def setup(args: argparse.Namespace) -> TrainConfig:
    """Build the config of a run from the flags, over those of `--config-file` or of the model's published recipe.

    Args:
        args: What `argument_parser` parsed.

    Raises:
        ConfigError: A file is missing, or a value is wrong.
    """
    flags = {name: value for name, value in vars(args).items() if name in config_fields()}
    return load_train_config(_config_file(args, flags.get("model", "")), flags)


def _config_file(args: argparse.Namespace, model: str) -> Path | None:
    if args.config:
        warn_deprecated("--config", "--config-file")
    if given := args.config_file or args.config:
        return Path(given)
    if not _RECIPES.is_dir():
        raise ConfigError(
            "The published recipes are not installed with the package: give one of a checkout with --config-file."
        )
    recipe = _RECIPES / f"{model}.yaml"
    return recipe if recipe.is_file() else None


def _add_flag(parser: ArgumentParser, name: str, key: dataclasses.Field) -> None:
    flag, text = f"--{name.replace('_', '-')}", key.metadata["help"].replace("%", "%%")
    if name == "resume":
        # A plain flag, which for one more version also takes the word that it used to need.
        parser.add_argument(flag, nargs="?", const=True, metavar="auto", default=argparse.SUPPRESS, help=text)
    elif isinstance(key.default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
    else:
        choices = key.metadata["choices"]
        metavar = "{" + ",".join(choices) + "}" if choices else type(key.default).__name__.upper()
        default = f" (default: {key.default})" if key.default != "" else ""
        parser.add_argument(flag, metavar=metavar, default=argparse.SUPPRESS, help=text + default)
