"""Kill -9 at random moments of a save: what is left must be whole, and the newest that was finished."""

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
from tests.drills.outcome import Outcome

_PATIENCE = 120.0


def run_kills(folder: Path, count: int, *, seed: int = 0, mebibytes: float = 2.0) -> Outcome:
    """Kill a process that saves without end, `count` times; each goes on where the last one died.

    Args:
        folder: an empty folder for the checkpoints.
        count: number of kills.
        seed: of the moments.
        mebibytes: size of a checkpoint.
    """
    outcome = Outcome("kills")
    generator = random.Random(seed)
    processes = multiprocessing.get_context("fork")
    half_written, saves = 0, 0
    for attempt in range(count):
        begun = processes.Event()
        saver = processes.Process(target=_save_for_ever, args=(folder, begun, mebibytes))
        start = time.perf_counter()
        saver.start()
        if not begun.wait(_PATIENCE):
            outcome.failures.append(f"attempt {attempt}: nothing was saved in {_PATIENCE:.0f} s")
        # A pair of saves took this long: any moment of the next ones is as likely.
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


def _save_for_ever(folder: Path, begun: Event, mebibytes: float) -> None:
    torch.set_num_threads(1)  # a forked process cannot use its parent's threads
    store = CheckpointStore(folder)
    store.clean()
    last = store.latest()
    iteration = 0 if last is None else store.load(last)["iteration"] + 1
    while True:
        state = _state(iteration, mebibytes)
        store.save(f"model_{iteration:07d}.pth", state, iteration)
        store.save(BEST_NAME, state, iteration, is_last=False)
        begun.set()
        iteration += 1


def _state(iteration: int, mebibytes: float) -> dict[str, Any]:
    weight = torch.full((int(mebibytes * 2**18),), float(iteration))
    return {"model": {"weight": weight}, "iteration": iteration, "optimizer": {}, "random": [], "seed": 0}


def _check(folder: Path, least: int) -> int:
    """Check every file; returns the iteration to resume from, which is at least `least`."""
    store = CheckpointStore(folder)
    last = store.latest()
    assert last is not None, "no checkpoint is left"
    for path in sorted(folder.glob("model_*.pth")):
        state = store.load(path)
        weight = state["model"]["weight"]
        assert bool((weight == state["iteration"]).all()), f"{path.name} is torn"
    found = int(store.load(last)["iteration"])
    assert found >= least, f"resumed from iteration {found}, and {least} was saved"
    return found
