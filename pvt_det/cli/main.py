"""The command line program `pvt-det`.

This module imports only the standard library, so that the list of commands and typing errors are shown at once. The
module of a command imports torch and Detectron2 in `run`, so that its help and typing errors are shown at once too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from pvt_det import __version__
from pvt_det.utils.text import did_you_mean

COMMANDS = {
    "train": "train a detector or a segmentor",
    "train-cls": "train or evaluate an ImageNet classifier",
    "eval": "evaluate a trained detector",
    "predict": "detect objects in images, videos and live streams",
    "app": "try a model on a local web page",
    "explain": "draw attention maps",
    "configs": "list the recipes that come with this package",
    "study": "train many configs, data sets and seeds, and compare them",
    "compare": "compare finished runs in one table",
    "report": "write a report page about a finished run",
    "inspect": "check a data set before training",
    "shard": "turn a data set into tar shards",
    "convert": "convert weights between layouts",
    "export": "write a model for use without this package",
    "card": "create a folder to share: model card, safetensors, config",
    "benchmark": "measure latency and memory of your model",
    "doctor": "check this machine, with a fix for each problem",
    "completion": "print a completion script for your shell",
}
_EXAMPLES = """
examples:
  pvt-det doctor
  pvt-det train --config-file configs/retinanet_pvt_tiny.yaml --output output/mine \\
      --train-json train.json --train-images images/ --val-json val.json --val-images images/
  pvt-det predict photos/ --config-file output/mine --output found
  pvt-det train --help

exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 numeric, 75 stopped and resumable
"""


class _Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line, without argparse's usage."""

    def error(self, message: str) -> NoReturn:
        """Print an error message and exit with code 2.

        Args:
            message: What is wrong.
        """
        print(f"error: {self.prog}: {message.rstrip('.')}. See pvt-det --help.", file=sys.stderr)
        raise SystemExit(2)


def build_parser(parents: Callable[[str], list[Any]] = lambda name: []) -> argparse.ArgumentParser:
    """Build the parser of the command names.

    Args:
        parents: Returns the parsers whose options a command inherits, by the command's name. By default commands have
            no options, which is enough for parsing the name.
    """
    parser = _Parser(
        prog="pvt-det",
        description="Pyramid Vision Transformers for dense prediction.",
        epilog=_EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=18),
    )
    parser.add_argument("--version", action="version", version=f"pvt_det {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND [--help]")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False, parents=parents(name))
    return parser


def main() -> int:
    """Run the command named by the first argument, and return its exit code."""
    parser, words = build_parser(), sys.argv[1:]
    if not words or words == ["help"]:
        parser.print_help()
        return 0 if words else 2
    name = words[0]
    if name.startswith("-"):
        parser.parse_args(words)
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        print(f"error: {parser.prog}: unknown command {name!r}.{hint} See {parser.prog} --help.", file=sys.stderr)
        return 2
    try:
        from pvt_det.cli.start import start
        from pvt_det.utils.cli import run_cli
        from pvt_det.utils.resume import program_words

        program = [*program_words(), name]
        return run_cli(lambda: start(name, words[1:], f"pvt-det {name}", program))
    except ModuleNotFoundError as error:
        if str(error.name).startswith("pvt_det"):
            raise
        print(f"error: {error}. In a checkout, run python tools/setup_env.py --here to install it.", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
