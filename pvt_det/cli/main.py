"""The command `pvt-det`.

Only the standard library is imported here, so that the list of commands and a typing error answer at once; a command
is imported when it is run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NoReturn

from pvt_det.utils.text import did_you_mean

COMMANDS = {
    "train": "train a detector or a segmentor",
    "train-cls": "train or evaluate an ImageNet classifier",
    "eval": "evaluate a trained detector",
    "predict": "find objects in images, folders and videos",
    "explain": "draw what the model looks at",
    "compare": "compare finished runs in one table",
    "report": "write a page about a finished run",
    "inspect": "check and show a data set before training on it",
    "convert": "convert weights between layouts",
    "export": "write a model for use without this package",
    "card": "make a folder to share: model card, safetensors, config",
    "benchmark": "measure latency and memory of your model",
    "doctor": "check this machine, with the remedy for what is wrong",
    "completion": "print a shell's completion script",
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
    """A parser whose errors are one line that suggests the command which was meant."""

    def error(self, message: str) -> NoReturn:
        """Print the message and end with exit code 2."""
        print(f"error: {self.prog}: {message.rstrip('.')}. See pvt-det --help.", file=sys.stderr)
        raise SystemExit(2)


def build_parser(parents: Callable[[str], list[Any]] = lambda name: []) -> argparse.ArgumentParser:
    """The parser that knows the names of the commands.

    Args:
        parents: Gives, for a command's name, parsers whose options it shall have; none needed to read the name alone.
    """
    parser = _Parser(
        prog="pvt-det",
        description="Pyramid Vision Transformers for dense prediction.",
        epilog=_EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=18),
    )
    parser.add_argument("--version", action="version", version=f"pvt_det {version('pvt_det')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND [--help]")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False, parents=parents(name))
    return parser


def main() -> int:
    """Run the command that the first word names, and give its exit code."""
    parser, words = build_parser(), sys.argv[1:]
    if not words or words == ["help"]:
        parser.print_help()
        return 0 if words else 2
    name = words[0]
    if name.startswith("-"):
        parser.parse_args(words)
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        print(f"error: {parser.prog}: no command {name!r}.{hint} See {parser.prog} --help.", file=sys.stderr)
        return 2
    try:
        from pvt_det.cli.start import start
        from pvt_det.utils.cli import run_cli
    except ModuleNotFoundError as error:
        if str(error.name).startswith("pvt_det"):
            raise
        print(f"error: {error}; in a checkout, `python tools/setup_env.py --here` installs it", file=sys.stderr)
        return 2
    return run_cli(lambda: start(name, words[1:], f"pvt-det {name}"))


if __name__ == "__main__":
    sys.exit(main())
