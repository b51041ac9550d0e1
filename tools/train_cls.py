"""Train and evaluate a classifier on ImageNet or your own folders of images; also under torchrun."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from pvt_det.engine.classification_dist import start_process
from pvt_det.engine.classification_options import Options, add_flags, load_options
from pvt_det.engine.classification_run import evaluate_only, train
from pvt_det.engine.cli import ArgumentParser, run_cli
from pvt_det.evaluation.published import published_top1

RECIPES = Path(__file__).parents[1] / "configs/classification"
_EXAMPLES = """
examples:
  the published recipe, on one machine with 8 GPUs:
    torchrun --nproc-per-node 8 tools/train_cls.py --model pvt_small --data imagenet
  the same on one GPU of less memory:
    python tools/train_cls.py --model pvt_small --data imagenet --accumulate-steps 8
  go on after an interruption:
    the same command with --resume auto
  evaluate:
    python tools/train_cls.py --model pvt_small --data imagenet --eval-only --weights output/cls/best.safetensors
  detect from the result:
    python tools/train_net.py --config-file configs/retinanet_pvt_small.yaml MODEL.WEIGHTS output/cls/best.safetensors

exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 numeric, 75 stopped and resumable
"""


def build_parser() -> ArgumentParser:
    """The command line's options."""
    parser = ArgumentParser(
        prog="train_cls.py",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="options as YAML; default: the model's published recipe")
    add_flags(parser)
    return parser


def read_command(argv: Sequence[str] | None) -> Options:
    """Options from the flags, over those of the config file or the model's published recipe."""
    flags = vars(build_parser().parse_args(argv))
    config = flags.pop("config")
    recipe = RECIPES / f"{flags.get('model')}.yaml"
    path = Path(config) if config else recipe if recipe.is_file() else None
    return load_options(path, flags)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    options = read_command(argv)
    words = [word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("--resume=")]
    if "--resume" in words:
        del words[words.index("--resume") : words.index("--resume") + 2]
    console = Console(stderr=True)
    handler = RichHandler(console=console, show_path=False) if console.is_terminal else logging.StreamHandler()
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", datefmt="[%X]", handlers=[handler])
    with start_process(options.device) as process:
        if options.eval_only:
            result = evaluate_only(options, process)
            if process.is_main:
                top1 = published_top1(options.model)
                print(f"{options.model} {options.weights}: {result} (published ImageNet-1k top-1: {top1} %)")
        else:
            best = train(options, process, f"python tools/train_cls.py {shlex.join(words)} --resume auto")
            if process.is_main:
                print(f"best top-1 {best:.2f} %: {Path(options.output) / 'best.safetensors'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
