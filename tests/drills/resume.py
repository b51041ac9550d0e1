"""Runs that are stopped and resumed end with the same state as an uninterrupted run, bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from rich.console import Console
from torch import Tensor

from pvt_det.checkpoint import CheckpointStore
from pvt_det.data.sets import register_datasets
from pvt_det.engine.trainer import PVTTrainer
from pvt_det.errors import Interrupted
from pvt_det.run_folder import FINAL_NAME
from pvt_det.utils.rng import seed_all
from pvt_det.weights.reader import read_file
from tests.drills.outcome import Outcome
from tests.drills.tiny import tiny_config

_MEASURED = ".hooks.UsageHook"
CUTS = (1, 2, 3, 4, 5)
_SETTINGS: dict[str, Any] = {
    "SOLVER.MAX_ITER": CUTS[-1] + 1,
    "SOLVER.ACCUMULATE_STEPS": 2,
    "SOLVER.EMA.ENABLED": True,
    "SOLVER.EMA.DECAY": 0.9,
}


def run_resume(
    folder: Path, config_files: Iterable[str], *, seeds: Iterable[int] = (0, 1, 2), workers: Iterable[int] = (0, 2)
) -> Outcome:
    """Compare an uninterrupted run with a run that is stopped and resumed after each of five iterations.

    Both average the weights and accumulate gradients over two batches.

    Args:
        folder: Folder for the data and the runs.
        config_files: Configs of the detectors, of which tiny versions are used.
        seeds: Seeds of the runs.
        workers: Numbers of data loader workers of the stopped runs. The uninterrupted run has none.
    """
    outcome = Outcome("resume")
    for config_file in config_files:
        for seed in seeds:
            name = f"{Path(config_file).stem}, seed {seed}"
            settings = _SETTINGS | {"SEED": seed}
            whole = folder / f"{Path(config_file).stem}-{seed}-whole"
            train_or_stop(tiny_config(config_file, folder, whole, settings))
            expected = saved_state(whole)
            for number in workers:
                parts = folder / f"{Path(config_file).stem}-{seed}-{number}"
                for cut in (*CUTS, None):
                    cfg = tiny_config(config_file, folder, parts, settings | {"DATALOADER.NUM_WORKERS": number})
                    train_or_stop(cfg, cut)
                outcome.tried += 1
                if different := list(differences(expected, saved_state(parts))):
                    outcome.failures.append(
                        f"{name}, {number} workers: {len(different)} differ, such as {different[0]}"
                    )
    outcome.facts = {"stopped and resumed in each": f"{len(CUTS)} times, after iterations {CUTS[0]} to {CUTS[-1]}"}
    return outcome


class _StopIn(HookBase):
    """Sends SIGTERM to this process in the given iteration, counted from 1."""

    def __init__(self, iteration: int) -> None:
        self._iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter + 1 == self._iteration:
            os.kill(os.getpid(), signal.SIGTERM)


def train_or_stop(cfg: CfgNode, cut: int | None = None) -> None:
    """Train, or resume a run.

    Args:
        cfg: Config of the run.
        cut: Iteration in which the run is stopped, counted from 1. None does not stop it.
    """
    register_datasets(cfg)
    # A new process has different random states, which the saved states must replace.
    is_resumed = any(Path(cfg.OUTPUT_DIR).glob("model_*.pth"))
    seed_all(cfg.SEED + 1000 * is_resumed)
    trainer = PVTTrainer(cfg, console=Console(quiet=True))
    if cut is not None:
        trainer.register_hooks([_StopIn(cut)])
    trainer.resume_or_load(resume=True)
    try:
        trainer.train()
    except Interrupted:
        assert cut is not None


def saved_state(folder: Path) -> dict[str, Any]:
    """Return the training state at the end of a run, and its final weights.

    Args:
        folder: The run folder.
    """
    last = CheckpointStore(folder).latest()
    assert last is not None
    return {"state": read_file(last), "final": read_file(folder / FINAL_NAME)}


def differences(expected: Any, found: Any, name: str = "state") -> Iterator[str]:
    """Yield the names of all entries that differ, except the training time and memory, which are measured.

    Args:
        expected: State of `saved_state`, or a part of it.
        found: The same of another run.
        name: Name of the part.
    """
    if name.endswith(_MEASURED):
        return
    if isinstance(expected, Tensor):
        if not (isinstance(found, Tensor) and torch.equal(expected, found)):
            yield name
    elif isinstance(expected, dict):
        for key in expected.keys() | found.keys():
            if key not in expected or key not in found:
                yield f"{name}.{key}"
            else:
                yield from differences(expected[key], found[key], f"{name}.{key}")
    elif isinstance(expected, (list, tuple)) and len(expected) == len(found):
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, f"{name}.{number}")
    elif expected != found:
        yield name
