"""Measure how OpenMP's wait policy changes the speed of training on a free and on a busy CPU.

    python -m benchmarks.wait_policy --seconds 8 --repeats 3

Each measurement is a new process that trains RetinaNet PVT-Tiny on random images, because the OpenMP library reads its
settings when torch is loaded. On the busy CPU, as many other processes as cores compute all the time. The settings take
turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack

_SETTINGS = {
    "spinning (the default of GNU OpenMP)": {"GOMP_SPINCOUNT": "300000"},
    "passive (the default of pvt_det)": {"OMP_WAIT_POLICY": "PASSIVE"},
    "passive, one thread": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
}
_NAMES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
_COMPUTE = "while True: pass"
_SIDE, _BATCH = 256, 2


def train(seconds: float) -> float:
    """Train for some seconds and return the number of iterations per second.

    Args:
        seconds: How long to train after two iterations of warm-up.
    """
    import torch
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    from pvt_det.config import load_config
    from pvt_det.engine.step import TrainStep

    cfg = load_config("configs/small/retinanet_pvt_tiny_blood_cells.yaml", ["MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    step = TrainStep.from_config(cfg, build_model(cfg).train())
    boxes = Boxes(torch.tensor([[20.0, 30.0, 120.0, 140.0], [100.0, 90.0, 220.0, 200.0]]))
    target = Instances((_SIDE, _SIDE), gt_boxes=boxes, gt_classes=torch.tensor([0, 1]))
    batch = [
        {"image": torch.randint(256, (3, _SIDE, _SIDE), dtype=torch.uint8), "instances": target} for _ in range(_BATCH)
    ]
    with EventStorage():
        for _ in range(2):
            step(iter([batch]))
        start, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            step(iter([batch]))
            count += 1
    return count / elapsed


def measure(settings: dict[str, str], seconds: float, others: int) -> float:
    """Return the speed of a new training process, in iterations per second.

    Args:
        settings: Environment variables of the process.
        seconds: How long to train.
        others: Number of processes that compute at the same time.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _NAMES} | settings
    with ExitStack() as stack:
        for _ in range(others):
            stack.callback(stack.enter_context(subprocess.Popen([sys.executable, "-c", _COMPUTE])).kill)
        command = [sys.executable, "-m", "benchmarks.wait_policy", "--seconds", str(seconds), "--train"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure all settings and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of one measurement (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="number of rounds (%(default)s)")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        print(train(args.seconds))
        return
    cores = len(os.sched_getaffinity(0))
    speeds: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.repeats):
        for others in (0, cores):
            for name, settings in _SETTINGS.items():
                speeds.setdefault((name, others), []).append(measure(settings, args.seconds, others))
    print(f"| setting | iterations/s on {cores} free cores | beside {cores} busy processes |\n|---|---|---|")
    for name in _SETTINGS:
        free, busy = (statistics.median(speeds[name, others]) for others in (0, cores))
        print(f"| {name} | {free:.2f} | {busy:.2f} |")


if __name__ == "__main__":
    main()
