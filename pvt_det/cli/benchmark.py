"""Time and memory of the models against others' forms of them, their growth with the image, and the batch that fits.

Examples:
    %(prog)s --json output/benchmark.json
    %(prog)s --models pvt_small pvt_v2_b2 --sizes 1x800x1216 8x224x224 --dtypes fp32 bf16 --compile
    %(prog)s --suite growth --plot output/growth.png
    %(prog)s --suite input --data imagenet/val
    %(prog)s --suite detector --data datasets/coco --repeats 3
    %(prog)s --suite detector --data datasets/coco --sizes 1x800x1333 16x800x1333 --compile --workers 8
    %(prog)s --suite mapper --data datasets/coco
    %(prog)s --suite evaluation --repeats 1
    %(prog)s --plan --memory 16 --models configs/retinanet_pvt_small.yaml --sizes 1x800x1333

Contestants take turns, step by step, in one process; medians are shown, and the median of the rounds' ratios.
"pvt_det" is this package, "textbook" the same models with softmax(q k^T) v and plain convolutions; transformers and
timm join where they have the model. Memory is a step's peak, measured in a process of its own. "Detectron2" is its own
detector on the textbook trunk, from the file to the detections or the new weights, or its mapper. On a GPU, --compile
and --workers show what a training or an evaluation there is like.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import suites
from benchmarks.evaluation import IMAGES, evaluation_table, run_evaluation
from benchmarks.implementations import DTYPE_NAMES
from benchmarks.inputs import input_table, run_inputs
from benchmarks.mapping import RECIPES, mapper_table, run_mapper
from benchmarks.plan import plan_batches
from benchmarks.report import as_table, plan_table, plot_growth, write_json
from benchmarks.whole import CONFIGS, Setup, run_detectors
from pvt_det.config.validate import is_device
from pvt_det.errors import ConfigError
from pvt_det.models.variants import VARIANTS
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.environment import environment
from pvt_det.utils.paths import make_place

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_MODES = ("inference", "training")
_TASKS = ("pyramid", "classifier")
# What --data is for each suite that needs it.
_DATA = {"detector": "a folder in COCO's layout", "mapper": "a folder in COCO's layout", "input": "a folder of photos"}
# The options that each suite reads, and --plan, besides --threads and --json.
_MODEL = ("models", "modes", "dtypes", "device", "repeats")
_READS = {
    "trunk": (*_MODEL, "sizes", "tasks", "compile"),
    "growth": (*_MODEL, "sides", "plot"),
    "input": ("data", "limit", "repeats"),
    "detector": (*_MODEL, "sizes", "data", "limit", "compile", "workers"),
    "mapper": ("data", "limit", "recipes", "repeats"),
    "evaluation": ("images", "repeats"),
    "plan": ("models", "modes", "dtypes", "device", "sizes", "memory"),
}
_SUITES = tuple(suite for suite in _READS if suite != "plan")


def run(args: argparse.Namespace) -> int:
    """Measure what is asked for, print one table, and write it where asked."""
    _check(args)
    for file in filter(None, (args.json, args.plot)):
        make_place(file)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    found = environment(device)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(" · ".join(f"{key} {value}" for key, value in found.items()), style="dim", highlight=False)
    results, table = _measure(args, device)
    console.print(table)
    if args.plot:
        plot_growth(results, args.plot, f"{found['device']}, {found['threads']} threads, torch {torch.__version__}")
    if args.json:
        write_json(args.json, found, results)
    return 0


def _measure(args: argparse.Namespace, device: torch.device) -> tuple[list[Any], Table]:
    """All rows of what is asked for, and their table."""
    if args.plan:
        plans = list(plan_batches(_plan_cases(args), args.memory * 1024, device))
        return plans, plan_table(plans, args.memory * 1024)
    if args.suite == "input":
        inputs = list(run_inputs(args.data, args.limit, args.repeats))
        return inputs, input_table(inputs)
    if args.suite == "mapper":
        mapped = list(run_mapper(args.data, args.recipes, args.limit, args.repeats))
        return mapped, mapper_table(mapped)
    if args.suite == "evaluation":
        evaluated = list(run_evaluation(args.images, args.repeats))
        return evaluated, evaluation_table(evaluated)
    rows = list(_model_rows(args, device))
    return rows, as_table(rows)


def _model_rows(args: argparse.Namespace, device: torch.device) -> Iterator[suites.Row]:
    if args.suite == "growth":
        (mode,), (dtype,), models = args.modes or ["inference"], _dtypes(args), args.models or suites.GROWTH_MODELS
        return suites.run_growth(models, args.sides, mode, dtype, device, args.repeats)
    modes = args.modes or _MODES
    if args.suite == "detector":
        sizes = args.sizes or [(1, 800, 1333)]
        cases = suites.cross(args.models or CONFIGS, sizes, ["detector"], modes, _dtypes(args))
        setup = Setup(args.data, args.limit, device, args.workers)
        return run_detectors(cases, setup, args.repeats, compiled=args.compile)
    cases = suites.cross(args.models or ["pvt_small"], _sizes(args), args.tasks, modes, _dtypes(args))
    return suites.run_trunk(cases, device, args.repeats, args.compile)


def _sizes(args: argparse.Namespace) -> list[tuple[int, int, int]]:
    return args.sizes or [(1, 800, 1216)]


def _dtypes(args: argparse.Namespace) -> list[str]:
    return args.dtypes or ["bf16" if args.suite == "detector" else "fp32"]


def _plan_cases(args: argparse.Namespace) -> list[suites.Case]:
    cases = []
    for model in args.models or ["pvt_small"]:
        task = "detector" if model.endswith((".yaml", ".yml")) else "pyramid"
        for case in suites.cross([model], _sizes(args), [task], args.modes or _MODES, _dtypes(args)):
            cases += [case, replace(case, checkpointed=True)] if case.mode == "training" else [case]
    return cases


def _size(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None or min(size := (int(match[1]), int(match[2]), int(match[3]))) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxHEIGHTxWIDTH, such as 1x800x1216")
    return size


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def build_parser() -> ArgumentParser:
    """The command line's options."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=_SUITES, default="trunk")
    parser.add_argument("--data", type=Path, metavar="DIR", help="photos; detector and mapper: in COCO's layout")
    parser.add_argument("--limit", type=_count, default=200, metavar="N", help="how many of them (default 200)")
    parser.add_argument(
        "--recipes", nargs="+", choices=tuple(RECIPES), default=list(RECIPES), help="of the mapper suite's resize"
    )
    parser.add_argument("--images", type=_count, default=IMAGES, metavar="N", help="of the evaluation suite")
    parser.add_argument("--plan", action="store_true", help="say which batch fits into --memory")
    parser.add_argument("--memory", type=float, default=16.0, metavar="GIB", help="for --plan (default 16)")
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", help="variants (default pvt_small); detector, --plan: configs"
    )
    parser.add_argument("--sizes", nargs="+", type=_size, metavar="BxHxW", help="1x800x1216; detector: 1x800x1333")
    parser.add_argument(
        "--sides", nargs="+", type=_count, default=list(suites.GROWTH_SIDES), help="of the growth suite"
    )
    parser.add_argument("--tasks", nargs="+", choices=_TASKS, default=["pyramid"], help="of the trunk suite")
    parser.add_argument("--modes", nargs="+", choices=_MODES, help="default both; growth: inference, or the other one")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPE_NAMES, help="default fp32; detector: bf16, by autocast")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile joins; trunk on a CPU: needs a C++ compiler; detector: on a GPU only",
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="of the detector suite's loaders (default 0)"
    )
    parser.add_argument("--repeats", type=_count, default=5, metavar="N", help="rounds that count (default 5)")
    parser.add_argument("--device", default=_DEVICE, help=f"default {_DEVICE}")
    parser.add_argument("--threads", type=_count, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="of the growth suite")
    return parser


def _check(args: argparse.Namespace) -> None:
    suite, parser = "plan" if args.plan else args.suite, build_parser()
    for name in sorted(set().union(*_READS.values()).difference(_READS[suite])):
        if getattr(args, name) != parser.get_default(name):
            readers = ", ".join(_named(reader) for reader, names in _READS.items() if name in names)
            raise ConfigError(f"--{name}: {_named(suite)} does not read it. What does: {readers}.")
    if args.plan and args.suite != "trunk":
        raise ConfigError(f"--plan and --suite {args.suite}: give one of the two.")
    if suite in _DATA and args.data is None:
        raise ConfigError(f"--suite {suite} needs --data DIR, {_DATA[suite]}")
    if suite == "growth" and (len(args.modes or [""]) > 1 or len(args.dtypes or [""]) > 1):
        raise ConfigError("--suite growth draws one line a model: give one of --modes and one of --dtypes.")
    if not is_device(args.device):
        raise ConfigError(f"--device {args.device}: expected cpu or cuda, or one of several GPUs, such as cuda:1.")
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {args.device}: PyTorch sees no GPU here.")
    if args.compile and suite == "detector" and torch.device(args.device).type == "cpu":
        raise ConfigError("--compile with --suite detector: detectors are compiled on a GPU only.")
    if args.workers < 0 or args.memory <= 0:
        raise ConfigError(f"--workers {args.workers}, --memory {args.memory}: expected 0 or more workers, and memory.")
    for name in args.models or ():
        if not _is_known(name, suite):
            raise ConfigError(f"--models {name}: expected {_known(suite)}")


def _named(suite: str) -> str:
    return "--plan" if suite == "plan" else f"--suite {suite}"


def _is_known(name: str, suite: str) -> bool:
    is_config = name.endswith((".yaml", ".yml"))
    if suite == "detector":
        return is_config
    return name in VARIANTS or (suite == "growth" and name == "resnet50") or (suite == "plan" and is_config)


def _known(suite: str) -> str:
    configs = "config files, such as configs/retinanet_pvt_small.yaml"
    if suite == "detector":
        return configs
    also = {"growth": ", resnet50", "plan": f", or {configs}"}.get(suite, "")
    return f"one of {', '.join(VARIANTS)}{also}"
