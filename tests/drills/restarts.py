"""If a process is killed under `torchrun --max-restarts`, all processes restart and the run finishes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from pvt_det.checkpoint import CheckpointStore
from pvt_det.errors import CheckpointError
from pvt_det.run_folder import FINAL_NAME
from tests.drills.outcome import Outcome, children
from tests.drills.tiny import tiny_words

_PERIOD = 4
_PROCESSES, _RESTARTS = 2, 3
# Maximum seconds until the first checkpoint, and from the kill to the end of the run.
_START_TIMEOUT, _END_TIMEOUT = 300.0, 300.0


def run_restarts(folder: Path, config_file: str, count: int, *, seed: int = 0, iterations: int = 40) -> Outcome:
    """Kill -9 one of two CPU processes (gloo) during training, once per run.

    Args:
        folder: Folder for the data, the runs and their logs.
        config_file: Config of the detector, of which a tiny version is used.
        count: Number of runs.
        seed: Seed of the time of the kill and the choice of the process.
        iterations: Number of iterations of each run, 12 or more.
    """
    outcome = Outcome("restarts")
    generator = random.Random(seed)
    for attempt in range(count):
        output = folder / f"restarts{attempt}"
        output.mkdir(parents=True)
        start = time.perf_counter()
        failure = _run_once(folder, config_file, output, generator, iterations)
        outcome.tried += 1
        outcome.facts[f"run {attempt}"] = f"{time.perf_counter() - start:.0f} s"
        if failure:
            outcome.failures.append(f"run {attempt}: {failure}. See {output}")
    return outcome


def _run_once(folder: Path, config_file: str, output: Path, generator: random.Random, iterations: int) -> str:
    settings = {"SOLVER.MAX_ITER": iterations, "SOLVER.CHECKPOINT_PERIOD": _PERIOD}
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={_PROCESSES}"]
    words = ["--config-file", config_file, *tiny_words(folder, output, settings)]
    command = [sys.executable, *torchrun, f"--max-restarts={_RESTARTS}", "tools/train_net.py", *words]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    with (output / "torchrun.log").open("w") as log:
        agent = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            return _kill_one(agent, output, generator, iterations)
        finally:
            # Kill a run that hangs together with its agent.
            for pid in [*children(agent.pid), agent.pid]:
                if agent.poll() is None:
                    os.kill(pid, signal.SIGKILL)
            agent.wait()


def _kill_one(agent: subprocess.Popen, output: Path, generator: random.Random, iterations: int) -> str:
    store = CheckpointStore(output)
    deadline = time.monotonic() + _START_TIMEOUT
    while not (output / "last_checkpoint").exists():
        if agent.poll() is not None or time.monotonic() > deadline:
            return f"no checkpoint (exit code {agent.returncode})"
        time.sleep(0.05)
    time.sleep(generator.uniform(0, iterations / 20))
    ranks = children(agent.pid)
    if len(ranks) != _PROCESSES:
        return f"got {len(ranks)} processes, expected {_PROCESSES}"
    os.kill(generator.choice(ranks), signal.SIGKILL)
    try:
        code = agent.wait(_END_TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"still hanging after {_END_TIMEOUT:.0f} s"
    if code:
        return f"exit code {code}"
    try:
        store.verify(output / FINAL_NAME)
        last = store.latest()
        iteration = -1 if last is None else store.load(last)["iteration"]
    except CheckpointError as error:
        return str(error)
    if iteration != iterations - 1:
        return f"ended after iteration {iteration}"
    return "" if "Resumed from" in (output / "log.txt").read_text() else "the run started from the beginning"
