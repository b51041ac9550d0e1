"""Seed, save and restore the random states of Python, NumPy and PyTorch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on all devices.

    Args:
        seed: The seed, 0 to 2³² - 1.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Return the states of all random number generators of this process and of the current GPU.

    Returns:
        States by library. They consist of plain values and tensors only, so that `torch.load(weights_only=True)`
        accepts them.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        # Reading the GPU's state would allocate GPU memory in a run on the CPU, which does not use it.
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the states that `random_state` returned.

    Args:
        state: The states. The GPU's state is skipped if it was not saved or no GPU is available.
    """
    random.setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    # Absent in states of versions without support for Apple GPUs.
    if state.get("mps") is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restore the random states after a block, so that training continues as if it had not run."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


@contextmanager
def sample_random_state(seed: int, position: int) -> Iterator[None]:
    """Seed the generators that augmentations use, for one sample, and restore their states on exit.

    These are Python's and NumPy's global generators and PyTorch's generator for the CPU.

    Args:
        seed: Seed of the run, at least 0.
        position: Position of the sample in the run, at least 0.
    """
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    words = np.random.SeedSequence((seed, position)).generate_state(6)
    random.seed(int(words[5]))
    np.random.seed(words[:4])
    # `torch.manual_seed` would also seed the GPUs, whose generators belong to the training step.
    torch.default_generator.manual_seed(int(words[4]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
