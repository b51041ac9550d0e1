"""Train and evaluate a classifier on ImageNet or your own image folders; also works under torchrun."""

from __future__ import annotations

import argparse

from pvt_det.classification import argument_parser, setup
from pvt_det.utils.cli import ArgumentParser


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    return argument_parser()


def run(args: argparse.Namespace) -> int:
    """Train and evaluate, or only evaluate with `--eval-only`.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.
    """
    from pvt_det.classification import evaluate, start_run, train

    cfg = setup(args)
    with start_run(cfg, args.resume_command) as process:
        if cfg.eval_only:
            evaluate(cfg, process)
        else:
            train(cfg, process)
    return 0
