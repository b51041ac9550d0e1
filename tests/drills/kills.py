"""Kill -9 at random moments of a save: all files stay intact, and the newest save is resumed."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from pvt_det.checkpoint import CheckpointStore
from pvt_det.errors import CheckpointError
from pvt_det.run_folder import BEST_NAME
from pvt_det.weights.reader import read_file
from tests.drills.outcome import Outcome

_TIMEOUT = 120.0


def run_kills(folder: Path, count: int, *, seed: int = 0, mebibytes: float = 2.0) -> Outcome:
    """Repeatedly kill a process that saves checkpoints.

    Each process resumes from the newest checkpoint of the previous one.

    Args:
        folder: Empty folder for the checkpoints.
        count: Number of kills.
        seed: Seed of the times of the kills.
        mebibytes: Size of a checkpoint in MiB.
    """
    outcome = Outcome("kills")
    generator = random.Random(seed)
    processes = multiprocessing.get_context("fork")
    half_written, saves = 0, 0
    for attempt in range(count):
        started = processes.Event()
        saver = processes.Process(target=_save_forever, args=(folder, started, mebibytes))
        start = time.perf_counter()
        saver.start()
        if not started.wait(_TIMEOUT):
            outcome.failures.append(f"attempt {attempt}: nothing was saved in {_TIMEOUT:.0f} s")
        # The first pair of saves took this long, so all moments of the next pair are equally likely.
        time.sleep(generator.uniform(0, time.perf_counter() - start))
        saver.kill()
        saver.join()
        half_written += bool(list(folder.glob(".*.tmp")))
        outcome.tried += 1
        try:
            saves = _check(folder, saves)
        except (CheckpointError, AssertionError) as error:
            outcome.failures.append(f"attempt {attempt}: {error}")
    outcome.facts = {"killed with a file half written": str(half_written), "saves finished": str(saves + 1)}
    return outcome


def _save_forever(folder: Path, started: Event, mebibytes: float) -> None:
    torch.set_num_threads(1)  # a forked process cannot use its parent's threads
    store = CheckpointStore(folder)
    store.clean()
    last = store.latest()
    iteration = 0 if last is None else store.load(last)["iteration"] + 1
    while True:
        state = _state(iteration, mebibytes)
        store.save(f"model_{iteration:07d}.pth", state, iteration)
        store.save_weights(BEST_NAME, state["model"], iteration)
        started.set()
        iteration += 1


def _state(iteration: int, mebibytes: float) -> dict[str, Any]:
    weight = torch.full((int(mebibytes * 2**18),), float(iteration))
    return {"model": {"weight": weight}, "iteration": iteration, "optimizer": {}, "random": [], "seed": 0}


def _check(folder: Path, minimum: int) -> int:
    """Check all files, and return the iteration to resume from, which must be at least `minimum`."""
    store = CheckpointStore(folder)
    last = store.latest()
    assert last is not None, "there is no checkpoint"
    for path in sorted(folder.glob("model_*.pth")):
        store.verify(path)
        state = read_file(path)
        weight = state["model"]["weight"]
        assert bool((weight == state["iteration"]).all()), f"{path.name} is damaged"
    found = int(store.load(last)["iteration"])
    assert found >= minimum, f"resumed from iteration {found}, but {minimum} was saved"
    return found
