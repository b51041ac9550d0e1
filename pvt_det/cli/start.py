"""Starting a command, from `pvt-det` or from its script in `tools/`.

A command is a module of this package with two functions: `build_parser() -> ArgumentParser`, whose help may say
`%(prog)s` for the name it was started by, and `run(args) -> int`, which gives the exit code.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import Protocol, cast

from pvt_det.utils.cli import ArgumentParser


class Command(Protocol):
    """What a module of this package offers."""

    def build_parser(self) -> ArgumentParser:
        """The command's options."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the command; `args.command_line` is how it was started."""


def load(name: str) -> Command:
    """Import a command by its name, such as "train-cls"."""
    return cast(Command, importlib.import_module(f"pvt_det.cli.{name.replace('-', '_')}"))


def start(name: str, argv: Sequence[str] | None, prog: str) -> int:
    """Run a command.

    Args:
        name: The command, such as "train-cls".
        argv: Its options and words; None for this program's own.
        prog: What the user called it by, as it can be repeated in a shell.

    Returns:
        The exit code.

    Raises:
        PvtDetError: A user's mistake, for `pvt_det.utils.cli.run_cli`.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    command = load(name)
    parser = command.build_parser()
    parser.prog = prog
    args = parser.parse_words(words)
    args.command_line = f"{prog} {shlex.join(words)}"
    with warnings.catch_warnings():
        # What torch tells of Detectron2's code is for its authors.
        warnings.filterwarnings("ignore", message="torch.meshgrid")
        logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
        return command.run(args)
