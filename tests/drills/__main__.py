"""Long drills of what must never go wrong: kills, exact resumes, restarts, memory over hours, mutated files.

Each prints a summary and ends with exit code 0, or 1 if anything failed. To be run in the root of a checkout.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pvt_det.utils.cli import ArgumentParser, run_cli
from tests.drills.fuzz import KINDS, run_fuzz
from tests.drills.growth import run_evaluation, run_loader, run_training
from tests.drills.kills import run_kills
from tests.drills.outcome import Outcome
from tests.drills.restarts import run_restarts
from tests.drills.resume import run_resume

_RETINANET, _MASK_RCNN = "configs/retinanet_pvt_tiny.yaml", "configs/mask_rcnn_pvt_tiny.yaml"
_EXAMPLES = """
examples:
  python tests/drills/__main__.py kills --count 200
  python tests/drills/__main__.py fuzz --count 10000
  python tests/drills/__main__.py loader --minutes 60
"""
Drill = Callable[[argparse.Namespace, Path], Outcome]


def _kills(args: argparse.Namespace, folder: Path) -> Outcome:
    return run_kills(folder, args.count, seed=args.seed)


def _resume(args: argparse.Namespace, folder: Path) -> Outcome:
    seeds = range(args.seed, args.seed + args.count)
    return run_resume(folder, args.config_file or [_RETINANET, _MASK_RCNN], seeds=seeds, workers=args.workers)


def _restarts(args: argparse.Namespace, folder: Path) -> Outcome:
    return run_restarts(folder, _RETINANET, args.count, seed=args.seed)


def _fuzz(args: argparse.Namespace, folder: Path) -> Outcome:
    return run_fuzz(folder, args.count, seed=args.seed, kinds=tuple(args.kinds))


def _loader(args: argparse.Namespace, folder: Path) -> Outcome:
    return run_loader(folder, _RETINANET, args.minutes)


def _training(args: argparse.Namespace, folder: Path) -> Outcome:
    return run_training(folder, _RETINANET, args.minutes)


def _evaluation(args: argparse.Namespace, folder: Path) -> Outcome:
    return run_evaluation(folder, args.count, detections=100)


# name: (drill, what it does, default of --count or --minutes)
_DRILLS: dict[str, tuple[Drill, str, int]] = {
    "kills": (_kills, "kill -9 a process that saves checkpoints; nothing torn, every one resumes", 200),
    "resume": (_resume, "runs stopped five times and resumed, for --count seeds: equal to the bit to whole ones", 3),
    "restarts": (_restarts, "kill -9 one of two processes under torchrun: the group recovers", 20),
    "fuzz": (_fuzz, "read --count mutated jsons, images and checkpoints each, safely", 10_000),
    "evaluation": (_evaluation, "peak memory of evaluating --count images of 100 detections", 10_000),
    "loader": (_loader, "read training data with 2 workers: memory and open files stay", 60),
    "training": (_training, "train: memory and open files stay", 30),
}


def build_parser() -> ArgumentParser:
    """The command line's options."""
    parser = ArgumentParser(
        prog="python -m tests.drills",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    drills = parser.add_subparsers(dest="drill", required=True, metavar="DRILL")
    for name, (_, text, default) in _DRILLS.items():
        timed = name in ("loader", "training")
        example = f"example: python tests/drills/__main__.py {name} {'--minutes' if timed else '--count'} {default}"
        drill = drills.add_parser(name, help=text, description=text, epilog=example)
        drill.add_argument("--folder", metavar="DIR", help="an empty folder for its files; a temporary one by default")
        if timed:
            drill.add_argument("--minutes", type=float, default=default)
            continue
        drill.add_argument("--count", type=int, default=default)
        drill.add_argument("--seed", type=int, default=0)
        if name == "fuzz":
            drill.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
        if name == "resume":
            drill.add_argument("--config-file", action="append", help="a detector; RetinaNet and Mask R-CNN by default")
            drill.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a drill; gives 1 if anything failed."""
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
