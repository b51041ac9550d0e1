"""Long-running tests of reliability: killed saves, resumed runs, mutated files, absurd values and growing memory.

Each drill prints a summary. Its exit code is 0, or 1 if anything failed. Run them in the root of a checkout.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pvt_det.utils.cli import ArgumentParser, run_cli
from tests.drills.config_values import run_config_values
from tests.drills.fuzz import KINDS, run_fuzz
from tests.drills.hosts import run_hosts
from tests.drills.kills import run_kills
from tests.drills.memory import run_evaluation, run_loader, run_training
from tests.drills.outcome import Outcome
from tests.drills.parts import run_parts
from tests.drills.restarts import run_restarts
from tests.drills.resume import run_resume
from tests.drills.storage import run_storage

_RETINANET, _MASK_RCNN = "configs/retinanet_pvt_tiny.yaml", "configs/mask_rcnn_pvt_tiny.yaml"
_EXAMPLES = """
examples:
  python -m tests.drills kills --count 200
  python -m tests.drills fuzz --count 10000
  python -m tests.drills loader --minutes 60
"""
Drill = Callable[[argparse.Namespace, Path], Outcome]


def _kills(args: argparse.Namespace, folder: Path) -> Outcome:
    return run_kills(folder, args.count, seed=args.seed)


def _resume(args: argparse.Namespace, folder: Path) -> Outcome:
    seeds = range(args.seed, args.seed + args.count)
    return run_resume(folder, args.config_file or [_RETINANET, _MASK_RCNN], seeds=seeds, workers=args.workers)


def _restarts(args: argparse.Namespace, folder: Path) -> Outcome:
    return run_restarts(folder, _RETINANET, args.count, seed=args.seed)


def _parts(args: argparse.Namespace, folder: Path) -> Outcome:
    return run_parts(folder, _RETINANET, args.count, seed=args.seed)


def _storage(args: argparse.Namespace, folder: Path) -> Outcome:
    return run_storage(folder, _RETINANET, range(args.seed, args.seed + args.count))


def _fuzz(args: argparse.Namespace, folder: Path) -> Outcome:
    return run_fuzz(folder, args.count, seed=args.seed, kinds=tuple(args.kinds))


def _config_values(args: argparse.Namespace, folder: Path) -> Outcome:
    return run_config_values(args.count, seed=args.seed)


def _loader(args: argparse.Namespace, folder: Path) -> Outcome:
    return run_loader(folder, _RETINANET, args.minutes)


def _training(args: argparse.Namespace, folder: Path) -> Outcome:
    return run_training(folder, _RETINANET, args.minutes)


def _evaluation(args: argparse.Namespace, folder: Path) -> Outcome:
    return run_evaluation(folder, args.count, detections=100)


def _hosts(args: argparse.Namespace, folder: Path) -> Outcome:
    return run_hosts(folder, _RETINANET, args.count, seed=args.seed)


# name: (drill, description, default of --count or --minutes)
_DRILLS: dict[str, tuple[Drill, str, int]] = {
    "kills": (_kills, "kill -9 a process that saves checkpoints: all files stay intact, and every run resumes", 200),
    "resume": (
        _resume,
        "stop and resume runs of --count seeds five times: they are bit-identical to uninterrupted runs",
        3,
    ),
    "restarts": (_restarts, "kill -9 one of two processes under torchrun: the run restarts and finishes", 20),
    "parts": (
        _parts,
        "predict in parts with four processes, kill two and start two others: the result is that of one process",
        5,
    ),
    "storage": (
        _storage,
        "train --count runs on shards in a failing object store: they are bit-identical to undisturbed runs on a disk",
        3,
    ),
    "fuzz": (
        _fuzz,
        "read --count mutated annotation files, images and checkpoints each: refused, or read correctly",
        10_000,
    ),
    "config-values": (
        _config_values,
        "load configs with at most --count absurd values of every key: refused, or the model is built",
        100_000,
    ),
    "evaluation": (
        _evaluation,
        "evaluate --count images with 100 detections each: peak memory stays below 3 GiB",
        10_000,
    ),
    "loader": (_loader, "read training data with 2 workers: memory and open files do not grow", 60),
    "training": (_training, "train: memory and open files do not grow", 30),
    "hosts": (
        _hosts,
        "train on three hosts (network namespaces) of which one is stopped for a time and one killed: the end is that "
        "of an undisturbed run",
        4,
    ),
}


def build_parser() -> ArgumentParser:
    """Build the command-line parser, with one subcommand per drill."""
    parser = ArgumentParser(
        prog="python -m tests.drills",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    drills = parser.add_subparsers(dest="drill", required=True, metavar="DRILL")
    for name, (_, description, default) in _DRILLS.items():
        timed = name in ("loader", "training")
        example = f"example: python -m tests.drills {name} {'--minutes' if timed else '--count'} {default}"
        drill = drills.add_parser(name, help=description, description=description, epilog=example)
        drill.add_argument(
            "--folder", metavar="DIR", help="empty folder for the files of the drill (default: a temporary folder)"
        )
        if timed:
            drill.add_argument("--minutes", type=float, default=default)
            continue
        drill.add_argument("--count", type=int, default=default)
        drill.add_argument("--seed", type=int, default=0)
        if name == "fuzz":
            drill.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
        if name == "resume":
            drill.add_argument(
                "--config-file", action="append", help="config of a detector (default: RetinaNet and Mask R-CNN)"
            )
            drill.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a drill.

    Args:
        argv: Command-line arguments. By default those of the process.

    Returns:
        Exit code of the process: 0, or 1 if anything failed.
    """
    args = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        outcome = _DRILLS[args.drill][0](args, folder)
    print(outcome)
    return int(bool(outcome.failures))


if __name__ == "__main__":
    sys.exit(run_cli(main))
