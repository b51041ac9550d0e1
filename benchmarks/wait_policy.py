"""Measure how OpenMP's wait policy changes the speed of training on a free and on a busy CPU.

    python -m benchmarks.wait_policy --seconds 8 --repeats 3

Each measurement is a new process that trains RetinaNet PVT-Tiny on random images, because the OpenMP library reads its
settings when torch is loaded. On the busy CPU, as many other processes as cores compute all the time. The settings take
turns.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from statistics import median

from pvt_det.utils.environment import available_cores

_SETTINGS = {
    "spinning (the default of GNU OpenMP)": {"GOMP_SPINCOUNT": "300000"},
    "passive (the default of pvt_det)": {"OMP_WAIT_POLICY": "PASSIVE"},
    "passive, one thread": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
}
_NAMES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
_COMPUTE = "while True: pass"
_SIDE, _BATCH = 256, 2


def train(seconds: float) -> tuple[float, float]:
    """Train on a free and on a busy CPU, and return the numbers of iterations per second.

    Args:
        seconds: How long to train in each case.
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

    def speed() -> float:
        step(iter([batch]))
        start, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            step(iter([batch]))
            count += 1
        return count / elapsed

    with EventStorage():
        speed()
        free = speed()
        others = [subprocess.Popen([sys.executable, "-c", _COMPUTE]) for _ in range(available_cores())]
        try:
            return free, speed()
        finally:
            for other in others:
                other.kill()


def measure(settings: dict[str, str], seconds: float) -> tuple[float, float]:
    """Return the speed of a new training process on a free and on a busy CPU, in iterations per second.

    Args:
        settings: Environment variables of the process.
        seconds: How long to train in each case.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _NAMES} | settings
    command = [sys.executable, "-m", "benchmarks.wait_policy", "--seconds", str(seconds), "--train"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    free, busy = map(float, done.stdout.splitlines()[-1].split())
    return free, busy


def main() -> None:
    """Measure all settings and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of one measurement (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="number of rounds (%(default)s)")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        print(*train(args.seconds))
        return
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in _SETTINGS}
    for _ in range(args.repeats):
        for name, settings in _SETTINGS.items():
            speeds[name].append(measure(settings, args.seconds))
            print(name, *speeds[name][-1], file=sys.stderr, flush=True)
    cores = available_cores()
    print(f"| waiting threads | iterations/s on {cores} free cores | beside {cores} busy processes |\n|---|---|---|")
    for name, found in speeds.items():
        print(f"| {name} | {median(free for free, _ in found):.2f} | {median(busy for _, busy in found):.2f} |")


if __name__ == "__main__":
    main()
