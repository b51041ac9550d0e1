"""Check that this machine has the device that a user asks for."""

from __future__ import annotations

import torch

from pvt_det.errors import ConfigError


def available_devices() -> list[str]:
    """Return the names of the devices that PyTorch can compute on here, such as "cuda:0", "mps" and "cpu"."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [*gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def require_device(device: torch.device, named: str) -> None:
    """Check that this machine has a device.

    Devices other than CPUs, CUDA GPUs and Apple GPUs are left to PyTorch.

    Args:
        device: The device.
        named: How the user asked for it, such as "--device mps", for the message.

    Raises:
        ConfigError: The machine does not have it. The message names the devices that it has.
    """
    found = available_devices()
    wanted = f"cuda:{device.index or 0}" if device.type == "cuda" else device.type
    if device.type not in ("cuda", "mps") or wanted in found:
        return
    raise ConfigError(
        f"{named} is not available: PyTorch can use {', '.join(found)} on this machine. Choose one of these, or run "
        "pvt-det doctor to see why."
    )


def require_single_process(device: torch.device, count: int) -> None:
    """Check that several processes do not use an Apple GPU, for which PyTorch has no collective operations.

    Args:
        device: The device of each process.
        count: Number of processes.

    Raises:
        ConfigError: There are several processes, and the device is an Apple GPU.
    """
    if device.type == "mps" and count > 1:
        raise ConfigError(f"{count} processes cannot share device mps. Start one process, or use device cpu.")
