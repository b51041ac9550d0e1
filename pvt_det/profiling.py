"""Time and peak memory of a model's steps on random images, and the largest batch that fits into a given memory."""

from __future__ import annotations

import ctypes
import gc
import platform
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
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
from pvt_det.run_folder import BEST_NAME, FINAL_NAME, config_file, run_weights
from pvt_det.utils.precision import autocast
from pvt_det.utils.text import did_you_mean
from pvt_det.weights import load_pretrained

MODES = ("inference", "training")
DTYPES = ("fp32", "bf16")
MIB = 1 << 20
# A model and the function that runs it on a batch.
Runnable = tuple[nn.Module, Callable[[Any], Any]]
Result = TypeVar("Result")
_ALL_STAGES = [1, 2, 3, 4]
_BOXES = 10


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        model: A variant of the trunk; for a detector or segmentor, a config file or a run's output folder.
        task: "pyramid" (four maps), "classifier" (logits) or "detector" (whatever a config describes).
        mode: "inference", or "training": the forward and the backward pass.
        dtype: "fp32", or "bf16" by autocast.
        batch: Number of images.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        checkpointed: Recompute the activations of all stages of the trunk in the backward pass.
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
    """Measure time and peak memory of a case.

    Args:
        case: What to measure.
        device: Where to measure it.
        repeats: Number of steps that are timed, after one that is not.

    Returns:
        The attributes of the case, and under `weights` the run's weights file, or "random"; under `median_s` and
        `min_s` the median and the shortest time of a step in seconds; under `images_per_s` images per second at the
        median time; under `peak_mib` the memory in MiB by which a step exceeds the model and its images. Numbers are
        None where a step ran out of GPU memory.

    Raises:
        CheckpointError: The weights of a run are damaged or do not fit its config.
    """
    weights = Path(find_weights(case.model)).name or "random"
    median = least = rate = peak = None
    with suppress(torch.OutOfMemoryError):
        times = _time_steps(case, device, repeats)
        median, least = statistics.median(times), min(times)
        rate = case.batch / median
    # PyTorch would keep unused GPU memory, which the next process needs.
    gc.collect()
    torch.cuda.empty_cache()
    with suppress(torch.OutOfMemoryError):
        peak = run_in_own_process(_step_peak, case, device)
    measured = {"weights": weights, "median_s": median, "min_s": least, "images_per_s": rate, "peak_mib": peak}
    return asdict(case) | measured


def plan_batch(case: Case, memory_mib: float, device: torch.device) -> dict[str, Any]:
    """Predict the largest batch of a case that fits, by a line through the measured memory of one image and of three.

    Args:
        case: The case; its own batch is not used.
        memory_mib: Memory in MiB that the whole process may take.
        device: Where the process would run.

    Returns:
        The attributes of the case with its largest batch, 0 where not even one image fits; under `fixed_mib` the memory
        in MiB that does not grow with the batch: libraries, parameters, gradients and the state of the optimizer; under
        `image_mib` what each image adds; under `total_mib` what the largest batch takes.

    Raises:
        ConfigError: A GPU has not enough memory for three images.
    """
    try:
        one, three = (run_in_own_process(_process_peak, replace(case, batch=batch), device) for batch in (1, 3))
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{device} has too little memory to measure {case.model} in {case.mode} on up to three images of "
            f"{case.height}x{case.width}: add --device cpu, or give smaller --sizes."
        ) from error
    image = max((three - one) / 2, 1.0)
    fixed = one - image
    batch = max(0, int((memory_mib - fixed) // image))
    measured = {"batch": batch, "fixed_mib": fixed, "image_mib": image, "total_mib": fixed + batch * image}
    return asdict(case) | measured


def find_config(name: str) -> Path:
    """Return the config of a detector or segmentor.

    Args:
        name: A config file or a run's output folder.

    Raises:
        ConfigError: It is neither.
    """
    path = Path(name)
    is_config = path.suffix in (".yaml", ".yml")
    if not is_config and not path.exists():
        raise ConfigError(
            f"Unknown model {name}.{did_you_mean(name, VARIANTS)} Expected a config file, such as "
            f"configs/retinanet_pvt_small.yaml, a run's output folder, or one of {', '.join(VARIANTS)}."
        )
    return path if is_config else config_file(path)


def find_weights(name: str) -> str:
    """Return the weights file of a trained run, or "" for a variant or a config that was not trained.

    Args:
        name: A variant, a config file or a run's output folder.

    Raises:
        CheckpointError: The run's weights are damaged.
    """
    if name in VARIANTS:
        return ""
    path = find_config(name)
    is_trained = any((path.parent / weights).is_file() for weights in (BEST_NAME, FINAL_NAME))
    return run_weights(path) if is_trained else ""


def build_model(case: Case, device: torch.device) -> Runnable:
    """Build the model of a case in its mode on `device`, with the weights of its run or random ones.

    Raises:
        CheckpointError: The weights of a run are damaged or do not fit its config.
    """
    torch.manual_seed(0)
    model: Any
    if case.task == "detector":
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

    A step is the forward pass and, in training, the backward pass into gradients that were set to None. The optimizer
    is not part of it.

    Args:
        runnable: The model, on `device` and in the mode of the case, and the function that runs it.
        case: Mode, number format and size of the images.
        device: Where the images go.
    """
    module, forward = runnable
    inputs = _random_inputs(case, device)

    def infer() -> None:
        with torch.inference_mode(), autocast(device, case.dtype):
            forward(inputs)

    def train() -> None:
        module.zero_grad(set_to_none=True)
        # Detectron2's models log to a storage in training.
        with EventStorage(), autocast(device, case.dtype):
            outputs = forward(inputs)
            # The loss depends on every output: a detector's losses, a trunk's maps or a classifier's logits.
            tensors = outputs.values() if isinstance(outputs, dict) else outputs
            loss = torch.stack([tensor.float().square().mean() for tensor in tensors]).sum()
        loss.backward()

    return infer if case.mode == "inference" else train


def run_in_own_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a new Python process, with as many threads of PyTorch, and return its result.

    Args:
        function: A function that can be pickled, such as one of a module.
        *arguments: Its arguments, which can be pickled too.
    """
    threads = (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, threads) as pool:
        return pool.submit(function, *arguments).result()


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes; a GPU is synchronized before and after it."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """Return the MiB by which a call raises the memory in use at its peak.

    On a GPU this is the memory that PyTorch's allocator hands out. On a CPU it is the resident memory of the process
    with all its libraries. Call it in a new process there: memory that was freed before, and that the process kept, is
    used again without being seen.

    Args:
        call: What to measure; it runs once.
        device: The device that it runs on.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - allocated) / MIB
    # Return freed memory to the system where the C library can (glibc): a call would use it again unseen.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    before = resident_memory()
    # Reset the peak where Linux allows it: clear_refs in proc(5).
    if (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5")
    call()
    return resident_memory(peak=True) - before


def resident_memory(*, peak: bool = False) -> float:
    """Return the resident memory of this process in MiB, now or at its peak; the peak where only that is known."""
    if platform.system() != "Linux":
        # macOS counts bytes here.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:" if peak else "VmRSS:"))


def _random_inputs(case: Case, device: torch.device) -> Any:
    """Return images `N×3×H×W`; for a detector one record per image, with what any head needs in training.

    Each image of a detector gets ten random boxes with rectangular masks, and a label map. All objects and pixels are
    of class 0, which every model has.
    """
    size = case.height, case.width
    images = torch.randn(case.batch, 3, *size, device=device)
    if case.task != "detector":
        return images
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
    """Measure the peak of a step without what libraries allocate once in their first call."""
    small = replace(case, batch=1, height=224, width=224)
    build_step(build_model(small, device), small, device)()
    return peak_memory(build_step(build_model(case, device), case, device), device)


def _process_peak(case: Case, device: torch.device) -> float:
    """Return the peak memory of this process in MiB over two steps, in training with those of AdamW."""
    module, forward = build_model(case, device)
    step = build_step((module, forward), case, device)
    optimizer = torch.optim.AdamW(module.parameters())
    # The optimizer allocates its state in the first step; in inference, without gradients, it does nothing.
    for _ in range(2):
        step()
        optimizer.step()
    return torch.cuda.max_memory_reserved(device) / MIB if device.type == "cuda" else resident_memory(peak=True)
