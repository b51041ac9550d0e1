"""Train and evaluate a classifier on ImageNet or your own folders of images; also under torchrun."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from pvt_det.classification.options import Options, add_flags, load_options
from pvt_det.classification.run import evaluate_only, train
from pvt_det.errors import ConfigError
from pvt_det.reports.published import published_classifier
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.distributed import start_process

RECIPES = Path(__file__).parents[2] / "configs/classification"
_EXAMPLES = """
examples:
  the published recipe, on one machine with 8 GPUs:
    torchrun --nproc-per-node 8 tools/train_cls.py --model pvt_small --data imagenet
  the same on one GPU of less memory:
    %(prog)s --model pvt_small --data imagenet --accumulate-steps 8
  go on after an interruption:
    the same command with --resume auto
  evaluate:
    %(prog)s --model pvt_small --data imagenet --eval-only --weights output/cls/best.safetensors
  detect from the result:
    pvt-det train --config-file configs/retinanet_pvt_small.yaml MODEL.WEIGHTS output/cls/best.safetensors

exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 numeric, 75 stopped and resumable
"""


def build_parser() -> ArgumentParser:
    """The command line's options."""
    parser = ArgumentParser(
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="options as YAML; default: the model's published recipe")
    add_flags(parser)
    return parser


def read_options(args: argparse.Namespace) -> Options:
    """Options from the flags, over those of the config file or the model's published recipe."""
    flags = {name: value for name, value in vars(args).items() if name not in ("config", "command_line")}
    config = args.config
    if not config and not RECIPES.is_dir():
        raise ConfigError(
            "the published recipes are not installed with the package: give one of a checkout as --config"
        )
    recipe = RECIPES / f"{flags.get('model')}.yaml"
    path = Path(config) if config else recipe if recipe.is_file() else None
    return load_options(path, flags)


def run(args: argparse.Namespace) -> int:
    """Train and evaluate, or only evaluate; gives the exit code."""
    options = read_options(args)
    console = Console(stderr=True)
    handler = RichHandler(console=console, show_path=False) if console.is_terminal else logging.StreamHandler()
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", datefmt="[%X]", handlers=[handler])
    with start_process(options.device) as process:
        if options.eval_only:
            result = evaluate_only(options, process)
            if process.is_main_process:
                published = published_classifier(options.model)
                known = f"{published.classification['top1']} %" if published else "none"
                print(f"{options.model} {options.weights}: {result} (published ImageNet-1k top-1: {known})")
        else:
            best = train(options, process, f"{args.command_line} --resume auto")
            if process.is_main_process:
                print(f"best top-1 {best:.2f} %: {Path(options.output) / 'best.safetensors'}")
    return 0
