"""Load and run a command, from `pvt-det` or from its script in `tools/`.

A command is a module of this package with two functions: `build_parser() -> ArgumentParser`, whose help can use
`%(prog)s` for the name that the user typed, and `run(args) -> int`, which returns the exit code.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.resume import resume_command

# What takes most of the time of starting a command.
_SLOW_IMPORTS = {
    "benchmark": "torch",
    "card": "pvt_det.reports.card",
    "compare": "pvt_det.reports.compare",
    "convert": "torch",
    "eval": "pvt_det.api",
    "explain": "pvt_det.inference.attention",
    "export": "pvt_det.deployment.api",
    "inspect": "pvt_det.inspection.run",
    "predict": "pvt_det.inference.predictor",
    "report": "pvt_det.api",
    "shard": "pvt_det.data.sharding.run",
    "study": "pvt_det.studies.run",
    "train": "pvt_det.api",
    "train-cls": "torch",
}


class Command(Protocol):
    """Interface of a command's module.

    The module imports only light modules. `run` imports the others, so that help and typing errors are shown at once.
    """

    def build_parser(self) -> ArgumentParser:
        """Build the parser of the command's options."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the command.

        Args:
            args: Parsed options, and `resume_command`, which resumes a run.

        Returns:
            The exit code.
        """


def load(name: str) -> Command:
    """Import a command.

    Args:
        name: Name of the command, such as "train-cls".
    """
    return cast(Command, importlib.import_module(f"pvt_det.cli.{name.replace('-', '_')}"))


def start(name: str, argv: Sequence[str] | None, prog: str, program: Sequence[str] = ()) -> int:
    """Run a command.

    Args:
        name: Name of the command, such as "train-cls".
        argv: Arguments of the command; None uses `sys.argv`.
        prog: The program as the user typed it, for the help and messages.
        program: The words before `argv` that start the command again, for messages. If empty, those of `prog`.

    Returns:
        The exit code.

    Raises:
        PvtDetError: An error that the user can fix; `pvt_det.utils.cli.run_cli` reports it.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    command = load(name)
    parser = command.build_parser()
    parser.prog = prog
    args = parser.parse_words(words)
    resumed = bool(getattr(args, "resume", False))
    args.resume_command = resume_command(resumed, words, program or prog.split())
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    _load_libraries(name)
    return command.run(args)


def _load_libraries(name: str) -> None:
    """Import the slow libraries of a command, and say so on a terminal.

    This takes seconds, and half a minute on a busy machine. Without a word it looks as if the program hangs.
    """
    # Programs started by torchrun would write over each other.
    if name not in _SLOW_IMPORTS or not sys.stdout.isatty() or "LOCAL_RANK" in os.environ:
        return
    from pvt_det.utils.console import get_console

    with get_console().status("Loading PyTorch …"):
        importlib.import_module(_SLOW_IMPORTS[name])
