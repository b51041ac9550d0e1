"""Measure latency and memory of your model on this machine, or find the largest batch that fits.

A model is a run folder, a config file, an exported file, or the name of a PVT variant. Runs are measured with their
trained weights, other models with random weights. The images are random.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvt_det.config.detectron2_keys import is_device
from pvt_det.errors import ConfigError
from pvt_det.models.variants import VARIANTS
from pvt_det.runtimes.backends import is_exported
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.environment import available_cores, environment
from pvt_det.utils.paths import make_parent_folder

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from pvt_det.profiling import Case

MODES = ("inference", "training")
DTYPES = ("fp32", "bf16")

_REPEATS, _MEMORY_GIB = 5, 16.0
_EXAMPLES = f"""
examples:
  latency and memory of a trained model, in fp32 and bf16:
    %(prog)s --models output/mine --sizes 1x800x1333 --dtypes fp32 bf16
  an exported file:
    %(prog)s --models mine_openvino --sizes 1x800x1333 --dtypes fp32 bf16
  two PVT trunks in inference:
    %(prog)s --models pvt_small pvt_v2_b2 --modes inference
  the largest batch that fits into 16 GiB, with and without activation checkpointing:
    %(prog)s --plan --memory 16 --models configs/retinanet_pvt_small.yaml --sizes 1x800x1333

variants: {", ".join(VARIANTS)}
A training step is a forward and a backward pass. Peak memory is measured in a separate process. --plan counts the whole
process, including the state of AdamW.
exit codes: 0 done, 2 configuration, 4 checkpoint
"""
# Measurements as JSON values by name, and their table.
Results = tuple[Sequence[dict[str, Any]], "Table"]


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    cores = available_cores()
    add("--models", nargs="+", required=True, metavar="MODEL", help="run folders, configs, exported files or variants")
    sizes = "batch, height and width of the images (1x800x1216)"
    add("--sizes", nargs="+", type=image_size, default=[(1, 800, 1216)], metavar="BxHxW", help=sizes)
    add("--modes", nargs="+", choices=MODES, help="default: both; inference for exported files")
    add("--dtypes", nargs="+", choices=DTYPES, default=["fp32"], help="number formats; bf16 uses autocast (fp32)")
    add("--device", help="such as cpu, mps or cuda:1 (the first GPU if this machine has one, otherwise cpu)")
    add("--repeats", type=positive_int, metavar="N", help=f"number of timed steps ({_REPEATS})")
    add("--plan", action="store_true", help="find the largest batch that fits into --memory")
    add("--memory", type=float, metavar="GIB", help=f"memory limit for --plan ({_MEMORY_GIB:g})")
    add("--threads", type=positive_int, default=cores, metavar="N", help="number of CPU threads (all cores)")
    add("--json", type=Path, metavar="FILE", help="write the results and the environment to this file")
    return parser


def device(text: str) -> torch.device:
    """Parse a device that PyTorch can compute on.

    Args:
        text: Value of the option, such as "cpu" or "cuda:1".

    Raises:
        argparse.ArgumentTypeError: The device is unknown or not available.
    """
    import torch

    from pvt_det.utils.devices import require_device

    if not is_device(text):
        raise argparse.ArgumentTypeError(f"{text}: expected cpu, cuda, mps, or a GPU by its index, such as cuda:1")
    try:
        require_device(parsed := torch.device(text), text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).removesuffix(".")) from None
    return parsed


def image_size(text: str) -> tuple[int, int, int]:
    """Parse batch size, height and width of the images.

    Args:
        text: Value of the option, such as "1x800x1216".

    Raises:
        argparse.ArgumentTypeError: The value is not of this form, or a number is 0.
    """
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None or min(size := (int(match[1]), int(match[2]), int(match[3]))) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxHEIGHTxWIDTH, such as 1x800x1216")
    return size


def positive_int(text: str) -> int:
    """Parse an integer of 1 or more.

    Args:
        text: Value of the option.

    Raises:
        argparse.ArgumentTypeError: The value is not such an integer.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of 1 or more")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Measure the models, print a table, and write it to a file with `--json`.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.
    """
    import torch

    _check_options(args)
    try:
        args.device = device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"--device {error}.") from None
    return report(args, _plan if args.plan else _measure)


def report(args: argparse.Namespace, measure: Callable[[argparse.Namespace], Results]) -> int:
    """Print the environment and a table of measurements, and write both to a file with `--json`.

    Args:
        args: Parsed options; `device`, `threads` and `json` are used here.
        measure: Function of `args` that returns the measurements, as JSON values by name, and their table.

    Returns:
        The exit code.
    """
    import torch

    from pvt_det.utils.console import Console

    if args.json:
        make_parent_folder(args.json)
    torch.set_num_threads(args.threads)
    versions = environment(args.device)
    # The tables have many columns, and files and pipes have no width.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(" · ".join(f"{key} {value}" for key, value in versions.items()), style="dim", highlight=False)
    rows, table = measure(args)
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps({"environment": versions, "rows": rows}, indent=1))
    return 0


def format_time(seconds: float | None) -> str:
    """Format the time of a step in milliseconds.

    Args:
        seconds: Time in seconds; None means that the step ran out of memory.
    """
    return "out of memory" if seconds is None else f"{seconds * 1000:.1f} ms"


def _check_options(args: argparse.Namespace) -> None:
    if args.memory is not None and not args.plan:
        raise ConfigError("--memory has no effect without --plan. Add --plan, or leave --memory out.")
    if args.memory is not None and not 0 < args.memory < float("inf"):
        raise ConfigError(f"--memory {args.memory}: expected more than 0 GiB.")
    if args.plan and args.repeats:
        raise ConfigError("--repeats has no effect with --plan, which measures memory only. Leave it out.")


def _cases(args: argparse.Namespace) -> Iterator[Case]:
    from pvt_det.profiling import Case
    from pvt_det.runtimes.metadata import load_model_config

    # Load all configs before the first measurement, which takes long.
    exported = {model for model in args.models if model not in VARIANTS and is_exported(_config_file(model))}
    if exported and (args.plan or "training" in (args.modes or ())):
        given = "--plan" if args.plan else "--modes training"
        raise ConfigError(f"{given}: {min(exported)} is an exported file, whose inference only is measured.")
    for model in set(args.models) - VARIANTS.keys():
        keys = [["MODEL.DEVICE", str(args.device), "TEST.PRECISION", dtype] for dtype in args.dtypes]
        for words in keys if model in exported else [[]]:
            load_model_config(_config_file(model), words, training=model not in exported)
    for model, size, mode, dtype in product(args.models, args.sizes, args.modes or MODES, args.dtypes):
        if model not in exported or mode == "inference":
            yield Case(model, "pyramid" if model in VARIANTS else "detector", mode, dtype, *size)


def _config_file(model: str) -> Path:
    from pvt_det.profiling import find_config

    return find_config(model)


def _measure(args: argparse.Namespace) -> Results:
    from pvt_det.profiling import measure_latency

    rows = [measure_latency(case, args.device, args.repeats or _REPEATS) for case in _cases(args)]
    cells = [
        {
            **{key: row[key] for key in ("model", "weights", "mode", "dtype")},
            "images": f"{row['batch']}x3x{row['height']}x{row['width']}",
            "median": format_time(row["median_s"]),
            "min": "" if row["min_s"] is None else format_time(row["min_s"]),
            "images/s": "" if row["images_per_s"] is None else f"{row['images_per_s']:.2f}",
            "peak memory": "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f} MiB",
        }
        for row in rows
    ]
    return rows, _table(cells, "Peak memory: one step, without the model and the images")


def _plan(args: argparse.Namespace) -> Results:
    from pvt_det.profiling import plan_batch

    memory = args.memory or _MEMORY_GIB
    cases = [
        replace(case, checkpointed=checkpointed)
        for case in _cases(args)
        for checkpointed in (False, case.mode == "training")
    ]
    rows = [plan_batch(case, 1024 * memory, args.device) for case in dict.fromkeys(cases)]
    cells = [
        {
            **{key: row[key] for key in ("model", "mode", "dtype")},
            "image": f"{row['height']}x{row['width']}",
            "checkpointing": "all stages" if row["checkpointed"] else "no",
            "fixed": f"{row['fixed_mib']:.0f} MiB",
            "each image": f"{row['image_mib']:.0f} MiB",
            "largest batch": str(row["batch"] or "not even 1"),
            "takes": f"{row['total_mib']:.0f} MiB" if row["batch"] else "",
        }
        for row in rows
    ]
    return rows, _table(cells, f"Fits into {memory:.1f} GiB: the whole process, including the state of AdamW")


def _table(rows: Sequence[dict[str, str]], caption: str) -> Table:
    from pvt_det.utils.tables import as_table

    table = as_table(rows)
    table.caption = caption
    for column in table.columns[-4:]:
        column.justify = "right"
    return table
