"""Measure the time and peak memory of a model on random images, and predict the largest batch that fits in memory."""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context, get_start_method, set_start_method
from pathlib import Path
from typing import Any, TypeVar

import torch
from detectron2.modeling import build_model as build_from_config
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from pvt_det.config import load_config
from pvt_det.errors import ConfigError
from pvt_det.models import create_model
from pvt_det.models.variants import VARIANTS
from pvt_det.run_folder import config_file, has_weights, run_weights
from pvt_det.runtimes.backends import is_exported
from pvt_det.runtimes.metadata import load_model_config
from pvt_det.runtimes.model import load_model
from pvt_det.utils.memory import peak_resident_memory
from pvt_det.utils.precision import autocast
from pvt_det.utils.text import did_you_mean
from pvt_det.weights import load_pretrained

MIB = 1 << 20
# A model and the function that runs it on a batch.
Runnable = tuple[nn.Module, Callable[[Any], Any]]
Result = TypeVar("Result")
_ALL_STAGES = [1, 2, 3, 4]
_BOXES = 10


@dataclass(frozen=True)
class Case:
    """A model, a mode and an input size to measure.

    Attributes:
        model: Name of a PVT variant. For a detector or segmentor, a config file, a run folder or an exported file.
        task: "pyramid" (four feature maps), "classifier" (logits) or "detector" (any model that a config describes).
        mode: "inference", or "training" for the forward and backward pass.
        dtype: "fp32", or "bf16" with autocast.
        batch: Number of images.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        checkpointed: Whether to recompute the activations of all trunk stages in the backward pass.
    """

    model: str
    task: str
    mode: str
    dtype: str
    batch: int
    height: int
    width: int
    checkpointed: bool = False


def measure_latency(case: Case, device: torch.device, repeats: int) -> dict[str, Any]:
    """Measure the time and peak memory of a case.

    Args:
        case: Model, mode and input size to measure.
        device: Device to measure on.
        repeats: Number of timed steps, after one warm-up step.

    Returns:
        The attributes of the case and these keys. Numbers are None if a step ran out of GPU memory.

        - `weights`: File name of the run's weights, or "random".
        - `median_s`, `min_s`: Median and shortest time of a step in seconds.
        - `images_per_s`: Images per second at the median time.
        - `peak_mib`: Peak memory of a step in MiB, in addition to the model and its images. Also None if
          the peak memory of the device cannot be measured.

    Raises:
        CheckpointError: The weights of a run are damaged or do not fit its config.
    """
    weights = Path(find_weights(case.model)).name or "random"
    median = least = rate = peak = None
    with suppress(torch.OutOfMemoryError):
        times = _time_steps(case, device, repeats)
        median, least = statistics.median(times), min(times)
        rate = case.batch / median
    # Release cached GPU memory, because the next process needs it.
    gc.collect()
    torch.cuda.empty_cache()
    if reports_peak_memory(device):
        with suppress(torch.OutOfMemoryError):
            peak = run_in_own_process(_step_peak, case, device)
    measured = {"weights": weights, "median_s": median, "min_s": least, "images_per_s": rate, "peak_mib": peak}
    return asdict(case) | measured


def plan_batch(case: Case, memory_mib: float, device: torch.device) -> dict[str, Any]:
    """Predict the largest batch that fits in memory, by linear extrapolation from one and three images.

    Args:
        case: Model, mode and image size. Its batch is ignored.
        memory_mib: Memory in MiB that the whole process may use.
        device: Device that the process would run on.

    Returns:
        The attributes of the case and these keys.

        - `batch`: The largest batch, 0 if not even one image fits.
        - `fixed_mib`: Memory in MiB that does not grow with the batch: libraries, parameters, gradients and optimizer
          state.
        - `image_mib`: Memory in MiB that each image adds.
        - `total_mib`: Memory in MiB for the largest batch.

    Raises:
        ConfigError: The GPU does not have enough memory for three images, or its peak memory cannot be measured.
    """
    if not reports_peak_memory(device):
        raise ConfigError(
            f"The peak memory of {device} cannot be measured on {platform.system()}. Use --device cuda, or "
            "--device cpu on Linux and macOS."
        )
    try:
        one, three = (run_in_own_process(_process_peak, replace(case, batch=batch), device) for batch in (1, 3))
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{device} does not have enough memory to measure {case.model} in {case.mode} with three images of "
            f"{case.height}x{case.width}. Add --device cpu, or use smaller --sizes."
        ) from error
    image = max((three - one) / 2, 1.0)
    fixed = one - image
    batch = max(0, int((memory_mib - fixed) // image))
    measured = {"batch": batch, "fixed_mib": fixed, "image_mib": image, "total_mib": fixed + batch * image}
    return asdict(case) | measured


def find_config(name: str) -> Path:
    """Return the config file of a detector or segmentor, or the exported file.

    Args:
        name: A config file, a run folder, or an exported file.

    Raises:
        ConfigError: The name is neither.
    """
    path = Path(name)
    is_config = path.suffix in (".yaml", ".yml")
    if not is_config and not path.exists():
        raise ConfigError(
            f"Unknown model {name}.{did_you_mean(name, VARIANTS)} Expected a config file, such as "
            f"configs/retinanet_pvt_small.yaml, a run folder, an exported file, or one of {', '.join(VARIANTS)}."
        )
    return path if is_config else config_file(path)


def find_weights(name: str) -> str:
    """Return the weights file of a trained run, or "" for a variant or a config that was not trained.

    Args:
        name: Name of a PVT variant, a config file or a run folder.

    Raises:
        CheckpointError: The run's weights are damaged.
    """
    if name in VARIANTS:
        return ""
    path = find_config(name)
    return run_weights(path) if has_weights(path) else ""


def build_model(case: Case, device: torch.device) -> Runnable:
    """Build the model of a case with the weights of its run, or with random weights.

    Args:
        case: Model, mode and checkpointing.
        device: Device to move the model to.

    Returns:
        The model in the mode of the case, and the function that runs it on a batch.

    Raises:
        CheckpointError: The weights of a run are damaged or do not fit its config.
    """
    torch.manual_seed(0)
    model: Any
    if case.task == "detector" and is_exported(path := find_config(case.model)):
        cfg = load_model_config(path, ["MODEL.DEVICE", str(device), "TEST.PRECISION", case.dtype], training=False)
        model = load_model(cfg, str(path))
    elif case.task == "detector":
        stages = ["MODEL.PVT.CHECKPOINT_STAGES", _ALL_STAGES] if case.checkpointed else []
        model = build_from_config(load_config(find_config(case.model), ["MODEL.DEVICE", str(device), *stages]))
        if weights := find_weights(case.model):
            load_pretrained(model, weights).require_whole()
    else:
        model = create_model(case.model, num_classes=1000 if case.task == "classifier" else 0)
        model.checkpoint_stages = set(_ALL_STAGES if case.checkpointed else [])
    model.to(device).train(case.mode == "training")
    return model, model.forward_pyramid if case.task == "pyramid" else model


def build_step(runnable: Runnable, case: Case, device: torch.device) -> Callable[[], None]:
    """Return a function that runs one step of a model on a fixed batch of random images.

    A step is the forward pass and, in training, the backward pass, with gradients set to None before. It does not
    include the optimizer.

    Args:
        runnable: The model, on `device` and in the mode of the case, and the function that runs it on a batch.
        case: Mode, dtype and input size.
        device: Device of the images.
    """
    module, forward = runnable
    inputs = _random_inputs(case, device)

    def infer() -> None:
        with torch.inference_mode(), autocast(device, case.dtype):
            forward(inputs)

    def train() -> None:
        module.zero_grad(set_to_none=True)
        # Detectron2 models need an event storage for logging in training.
        with EventStorage(), autocast(device, case.dtype):
            outputs = forward(inputs)
            # Make the loss depend on every output: detector losses, feature maps or logits.
            tensors = outputs.values() if isinstance(outputs, dict) else outputs
            loss = torch.stack([tensor.float().square().mean() for tensor in tensors]).sum()
        loss.backward()

    return infer if case.mode == "inference" else train


def run_in_own_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a new Python process with the same number of PyTorch threads, and return its result.

    Processes that the function starts, such as workers of a data loader, are started as in this process.

    Args:
        function: A function that can be pickled, such as a module-level function.
        *arguments: Its arguments, which must also support pickling.
    """
    settings = (torch.get_num_threads(), get_start_method())
    with ProcessPoolExecutor(1, get_context("spawn"), _start_process, settings) as pool:
        return pool.submit(function, *arguments).result()


def _start_process(threads: int, start_method: str) -> None:
    torch.set_num_threads(threads)
    # The default of a spawned process is to spawn.
    set_start_method(start_method, force=True)


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Measure the time of a call in seconds. A GPU is synchronized before and after it.

    Args:
        call: Function to measure.
        device: Device that the call runs on.
    """
    waits: dict[str, Callable[[], None]] = {
        "cuda": partial(torch.cuda.synchronize, device),
        "mps": torch.mps.synchronize,
    }
    wait = waits.get(device.type, lambda: None)
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def reports_peak_memory(device: torch.device) -> bool:
    """Return whether `peak_memory` can measure a device: CUDA GPUs, and CPUs except on Windows.

    Args:
        device: The device.
    """
    return device.type == "cuda" or (device.type == "cpu" and peak_resident_memory() is not None)


def peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """Measure how much memory a call needs at its peak, in MiB, in addition to the memory already in use.

    On a GPU, this is the memory that PyTorch's allocator hands out. On a CPU, it is the resident memory of the process,
    including all libraries. Measure in a new process there, because a call can reuse memory that was freed before but
    kept by the process, which this measurement does not see.

    Args:
        call: Function to measure. It runs once.
        device: Device that the call runs on.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - allocated) / MIB
    # Return freed memory to the system if the C library can (glibc). Otherwise, the call could reuse it unseen.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    before = resident_memory()
    # Reset the peak if Linux allows it: see clear_refs in proc(5).
    if (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5")
    call()
    return resident_memory(peak=True) - before


def resident_memory(*, peak: bool = False) -> float:
    """Return the resident memory of this process in MiB.

    Args:
        peak: Return the peak instead of the current value. Systems other than Linux always return the peak.
    """
    if platform.system() != "Linux":
        return (peak_resident_memory() or 0) / MIB
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:" if peak else "VmRSS:"))


def _random_inputs(case: Case, device: torch.device) -> Any:
    """Return images `N×3×H×W`, or for a detector one record per image with everything that any head needs in training.

    Each record has ten random boxes with rectangular masks, and a label map. All objects and pixels have class 0, which
    every model has.
    """
    size = case.height, case.width
    if case.task != "detector":
        return torch.randn(case.batch, 3, *size, device=device)
    images = torch.randint(0, 256, (case.batch, 3, *size), dtype=torch.uint8, device=device)
    sem_seg = torch.zeros(size, dtype=torch.long, device=device)
    common = {"height": case.height, "width": case.width, "sem_seg": sem_seg}
    return [{"image": image, "instances": _random_instances(*size).to(device), **common} for image in images]


def _random_instances(height: int, width: int) -> Instances:
    corners = torch.rand(_BOXES, 2) * 0.5
    scale = torch.tensor([width, height, width, height])
    boxes = torch.cat([corners, corners + 0.1 + 0.4 * torch.rand(_BOXES, 2)], dim=1) * scale
    return Instances(
        (height, width),
        gt_boxes=Boxes(boxes),
        gt_classes=torch.zeros(_BOXES, dtype=torch.long),
        gt_masks=PolygonMasks([[box[[0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()] for box in boxes]),
    )


def _time_steps(case: Case, device: torch.device, repeats: int) -> list[float]:
    step = build_step(build_model(case, device), case, device)
    return [time_call(step, device) for _ in range(repeats + 1)][1:]


def _step_peak(case: Case, device: torch.device) -> float:
    """Measure the peak memory of a step, without what libraries allocate once in the first call."""
    small = replace(case, batch=1, height=224, width=224)
    build_step(build_model(small, device), small, device)()
    return peak_memory(build_step(build_model(case, device), case, device), device)


def _process_peak(case: Case, device: torch.device) -> float:
    """Return the peak memory of this process in MiB over two steps, with AdamW steps in training."""
    module, forward = build_model(case, device)
    step = build_step((module, forward), case, device)
    optimizer = torch.optim.AdamW(module.parameters())
    # The optimizer allocates its state in the first step. In inference it has no gradients and does nothing.
    for _ in range(2):
        step()
        optimizer.step()
    return torch.cuda.max_memory_reserved(device) / MIB if device.type == "cuda" else resident_memory(peak=True)
