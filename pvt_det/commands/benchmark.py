"""Time and memory of the models against others' forms of them, their growth with the image, and the batch that fits.

Examples:
    %(prog)s --json output/benchmark.json
    %(prog)s --models pvt_small pvt_v2_b2 --sizes 1x800x1216 8x224x224 --dtypes fp32 bf16 --compile
    %(prog)s --suite growth --plot output/growth.png
    %(prog)s --suite input --data imagenet/val
    %(prog)s --plan --memory 16 --models configs/retinanet_pvt_small.yaml --sizes 1x800x1333

Contestants take turns, step by step, in one process; medians are shown, and the median of the rounds' ratios.
"pvt_det" is this package, "textbook" the same models with softmax(q k^T) v and plain convolutions; transformers and
timm join where they have the model. Memory is a step's peak, measured in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from pvt_det.engine.benchmark import suites
from pvt_det.engine.benchmark.contestants import DTYPE_NAMES
from pvt_det.engine.benchmark.inputs import InputRow, input_table, run_inputs
from pvt_det.engine.benchmark.measure import environment
from pvt_det.engine.benchmark.plan import Plan, plan_batches
from pvt_det.engine.benchmark.report import as_table, plan_table, plot_growth, write_json
from pvt_det.engine.cli import ArgumentParser
from pvt_det.errors import ConfigError
from pvt_det.models.variants import VARIANTS

_MODES = ("inference", "training")
_TASKS = ("pyramid", "classifier")


def run(args: argparse.Namespace) -> int:
    """Measure what is asked for, print one table, and write it where asked."""
    _check(args)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    found = environment(device)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(" · ".join(f"{key} {value}" for key, value in found.items()), style="dim", highlight=False)
    results: list[suites.Row] | list[Plan] | list[InputRow]
    if args.plan:
        results = plans = list(plan_batches(_plan_cases(args), args.memory * 1024, device))
        console.print(plan_table(plans, args.memory * 1024))
    elif args.suite == "input":
        results = inputs = list(run_inputs(args.data, args.limit, args.repeats))
        console.print(input_table(inputs))
    else:
        results = rows = _measure(args, device)
        console.print(as_table(rows))
        if args.plot:
            about = f"{found['device']}, {found['threads']} threads, torch {torch.__version__}"
            plot_growth(rows, args.plot, about)
    if args.json:
        write_json(args.json, found, results)
    return 0


def _measure(args: argparse.Namespace, device: torch.device) -> list[suites.Row]:
    if args.suite == "growth":
        models, (mode, *_), (dtype, *_) = args.models or suites.GROWTH_MODELS, args.modes, args.dtypes
        return list(suites.run_growth(models, args.sides, mode, dtype, device, args.repeats))
    models = args.models or ["pvt_small"]
    cases = suites.cross(models, args.sizes, args.tasks, args.modes, args.dtypes)
    return list(suites.run_trunk(cases, device, args.repeats, args.compile))


def _plan_cases(args: argparse.Namespace) -> list[suites.Case]:
    cases = []
    for model in args.models or ["pvt_small"]:
        task = "detector" if model.endswith((".yaml", ".yml")) else "pyramid"
        for case in suites.cross([model], args.sizes, [task], args.modes, args.dtypes):
            cases += [case, replace(case, checkpointed=True)] if case.mode == "training" else [case]
    return cases


def _size(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None or min(size := (int(match[1]), int(match[2]), int(match[3]))) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxHEIGHTxWIDTH, such as 1x800x1216")
    return size


def build_parser() -> ArgumentParser:
    """The command line's options."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=("trunk", "growth", "input"), default="trunk")
    parser.add_argument("--data", type=Path, metavar="DIR", help="photos for the input suite")
    parser.add_argument("--limit", type=int, default=200, metavar="N", help="how many of them (default 200)")
    parser.add_argument("--plan", action="store_true", help="say which batch fits into --memory")
    parser.add_argument("--memory", type=float, default=16.0, metavar="GIB", help="for --plan (default 16)")
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", help="variants (default pvt_small); --plan: also configs"
    )
    parser.add_argument("--sizes", nargs="+", type=_size, default=[(1, 800, 1216)], metavar="BxHxW")
    parser.add_argument("--sides", nargs="+", type=int, default=list(suites.GROWTH_SIDES), help="of the growth suite")
    parser.add_argument("--tasks", nargs="+", choices=_TASKS, default=["pyramid"])
    parser.add_argument("--modes", nargs="+", choices=_MODES, default=list(_MODES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPE_NAMES, default=["fp32"], help="bf16 is by autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile joins; needs a C++ compiler on a CPU")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds that count (default 5)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="of the growth suite")
    return parser


def _check(args: argparse.Namespace) -> None:
    unknown = [name for name in args.models or () if not _is_known(name, args)]
    if args.suite == "input" and args.data is None:
        raise ConfigError("--suite input needs --data DIR, a folder of photos")
    if unknown:
        raise ConfigError(f"--models {unknown[0]}: known are {', '.join(VARIANTS)}; resnet50 with --suite growth")


def _is_known(name: str, args: argparse.Namespace) -> bool:
    also = args.suite == "growth" and name == "resnet50"
    return name in VARIANTS or also or (args.plan and name.endswith((".yaml", ".yml")))
