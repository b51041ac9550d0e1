"""The command line of a classification run: one flag for each key of the config."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from pvt_det.classification.config import TrainConfig, config_fields, load_train_config
from pvt_det.errors import ConfigError
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.deprecation import warn_deprecated

RECIPES = Path(__file__).parents[2] / "configs/classification"
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
    if not RECIPES.is_dir():
        raise ConfigError(
            "The published recipes are not installed with the package: give one of a checkout with --config-file."
        )
    recipe = RECIPES / f"{model}.yaml"
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
