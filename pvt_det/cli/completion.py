"""Print a completion script for your shell, which completes commands and options with the Tab key."""

from __future__ import annotations

import argparse

import shtab

import pvt_det.cli.main
from pvt_det.cli.start import load
from pvt_det.utils.cli import ArgumentParser

_EXAMPLES = """
examples:
  bash:  %(prog)s bash > ~/.local/share/bash-completion/completions/pvt-det
  zsh:   %(prog)s zsh > ~/.zfunc/_pvt-det     (with fpath+=~/.zfunc before compinit)
  fish:  %(prog)s fish > ~/.config/fish/completions/pvt-det.fish
"""
# Placeholders in the help that mean a file or a folder.
_PLACES = {"DIR": shtab.DIR, "IMAGES": shtab.DIR} | dict.fromkeys(
    ("ANNOTATIONS", "FILE", "IMAGE", "INPUT", "PNG", "RUN"), shtab.FILE
)


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the completion script.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.
    """
    parser = pvt_det.cli.main.build_parser(lambda name: [_with_places(load(name).build_parser())])
    print(shtab.complete(parser, args.shell))
    return 0


def _with_places(parser: ArgumentParser) -> ArgumentParser:
    """Make the options of a parser complete files and folders; return the parser."""
    for action in parser._actions:
        if place := _PLACES.get(str(action.metavar)):
            action.complete = place  # type: ignore[attr-defined]
    return parser
