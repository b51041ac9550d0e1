"""Measure latency and memory of your model on this machine, or find the largest batch that fits.

A model is a run's output folder, a config file, or a variant of the PVT trunk by its name. A run is measured with its
own weights, other models with random ones. The images are random.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from rich.table import Table

from pvt_det.errors import ConfigError
from pvt_det.models.variants import VARIANTS
from pvt_det.profiling.case import Case, build_cases
from pvt_det.profiling.latency import measure_latency
from pvt_det.profiling.models import check_model
from pvt_det.profiling.options import add_model_options, add_run_options, add_sizes, positive_int
from pvt_det.profiling.plan import plan_batches, with_checkpointing
from pvt_det.profiling.report import Result, latency_table, plan_table, print_environment, print_table, write_json
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.environment import environment
from pvt_det.utils.paths import make_place

_REPEATS, _MEMORY_GIB = 5, 16.0
_EXAMPLES = f"""
examples:
  latency and memory of a trained run, in both number formats:
    %(prog)s --models output/mine --sizes 1x800x1333 --dtypes fp32 bf16
  two trunks in inference, eager and compiled:
    %(prog)s --models pvt_small pvt_v2_b2 --modes inference --compile
  the largest batch that fits into 16 GiB, with and without activation checkpointing:
    %(prog)s --plan --memory 16 --models configs/retinanet_pvt_small.yaml --sizes 1x800x1333

variants: {", ".join(VARIANTS)}
A training step is the forward and the backward pass. A step's peak memory is measured in a process of its own. The plan
counts the whole process, including the state of AdamW.
exit codes: 0 done, 2 configuration, 4 checkpoint
"""


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="MODEL", help="output folders, config files or variants"
    )
    add_sizes(parser, (1, 800, 1216))
    add_model_options(parser)
    parser.add_argument("--compile", action="store_true", help="measure trunks with torch.compile as well")
    parser.add_argument("--repeats", type=positive_int, metavar="N", help=f"steps that are timed ({_REPEATS})")
    parser.add_argument("--plan", action="store_true", help="find the largest batch that fits into --memory")
    parser.add_argument("--memory", type=float, metavar="GIB", help=f"for --plan ({_MEMORY_GIB:g})")
    add_run_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure, print one table and write it where asked; return the exit code."""
    _check_options(args)
    if args.json:
        make_place(args.json)
    for model in args.models:
        check_model(model)
    torch.set_num_threads(args.threads)
    found = environment(args.device)
    print_environment(found)
    rows, table = _plan(args) if args.plan else _measure(args)
    print_table(table)
    if args.json:
        write_json(args.json, found, rows)
    return 0


def _measure(args: argparse.Namespace) -> tuple[Sequence[Result], Table]:
    latencies = list(measure_latency(_cases(args), args.device, args.repeats or _REPEATS, compiled=args.compile))
    return latencies, latency_table(latencies)


def _plan(args: argparse.Namespace) -> tuple[Sequence[Result], Table]:
    memory_mib = 1024 * (args.memory or _MEMORY_GIB)
    plans = list(plan_batches(with_checkpointing(_cases(args)), memory_mib, args.device))
    return plans, plan_table(plans, memory_mib)


def _cases(args: argparse.Namespace) -> list[Case]:
    cases = []
    for model in args.models:
        task = "pyramid" if model in VARIANTS else "detector"
        cases += build_cases([model], args.sizes, [task], args.modes, args.dtypes)
    return cases


def _check_options(args: argparse.Namespace) -> None:
    if args.memory is not None and not args.plan:
        raise ConfigError("--memory has no effect without --plan. Add --plan, or leave --memory out.")
    if args.memory is not None and not 0 < args.memory < float("inf"):
        raise ConfigError(f"--memory {args.memory}: expected more than 0 GiB.")
    for name in ("repeats", "compile"):
        if args.plan and getattr(args, name):
            raise ConfigError(f"--{name} has no effect with --plan, which measures memory alone. Leave it out.")
    configs = [model for model in args.models if model not in VARIANTS]
    if args.compile and configs:
        raise ConfigError(
            f"--compile is for trunks, not for {configs[0]}. Set MODEL.PVT.COMPILE in the config to compile its trunk "
            "on a GPU."
        )
