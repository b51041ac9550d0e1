"""The detector suite: whole detectors on photos, from image files to detections or updated weights.

pvt_det uses its own mapper, training step and packed detections, with autocast for bf16. Detectron2 uses only its own
classes: its mapper, its trainer's step and its detection format. Its detector contains the textbook form of the trunk
with the same weights (`benchmarks.stock`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

import pvt_det.modeling  # noqa: F401  (registers the builders)
from benchmarks.implementations import COMPILED, OURS
from benchmarks.measure import measure_peaks, release_memory, time_interleaved
from benchmarks.photos import DETECTRON2, build_readers, endless_batches, read_records
from benchmarks.rows import Row, build_row, measures_memory
from benchmarks.stock import AS_DETECTRON2, build_stock_detector, spread_scores
from pvt_det.config import load_config
from pvt_det.engine.step import TrainStep
from pvt_det.evaluation.detections import pack_detections
from pvt_det.profiling import Case, peak_memory, run_in_own_process
from pvt_det.utils.precision import inference_autocast

CONFIGS = ("configs/retinanet_pvt_small.yaml", "configs/mask_rcnn_pvt_small.yaml")


@dataclass(frozen=True)
class Setup:
    """Settings that all cases share.

    Attributes:
        folder: Folder in COCO's layout, with `val2017` for inference and `train2017` for training.
        limit: Number of photos with objects to use repeatedly.
        device: Device to measure on.
        workers: Worker processes of each implementation's data loader. 0 reads the photos during the step.
    """

    folder: Path
    limit: int
    device: torch.device
    workers: int = 0


def run_detectors(
    cases: Iterable[Case], setup: Setup, repeats: int, *, compiled: bool = False, memory: bool = True
) -> Iterator[Row]:
    """Compare the time and memory of this package's detectors and Detectron2's on photos.

    Args:
        cases: What to measure. `model` is a config file. Height and width are the upper bounds of the short and the
            long side of the resized photos. The dtype applies to this package. Detectron2 runs in fp32, except that
            training on a GPU uses fp16 if the dtype is not fp32.
        setup: Photos and device.
        repeats: Number of timed rounds.
        compiled: Also measure this package's detectors with a compiled trunk. Requires a GPU.
        memory: Also measure memory where it is meaningful, with two more steps of each implementation in a separate
            process.

    Yields:
        One row per case and implementation.

    Raises:
        DataError: The folder does not have COCO's layout.
    """
    names = (OURS, *([COMPILED] if compiled else []), DETECTRON2)
    for case in cases:
        steps = {name: build_step(name, case, setup) for name in names}
        if compiled and case.mode == "inference":
            record_graphs(steps[COMPILED], case, setup)
        seconds = time_interleaved(steps, setup.device, repeats)
        del steps
        release_memory(setup.device, compiled=compiled)
        measured = names if memory and measures_memory(case, setup.device) else ()
        peaks = measure_peaks(measured, partial(run_in_own_process, _step_peak, case, setup))
        for name in names:
            measured_case = replace(case, dtype=_detectron2_dtype(case, setup.device)) if name == DETECTRON2 else case
            yield build_row(measured_case, name, seconds, peaks)


def record_graphs(step: Callable[[], object], case: Case, setup: Setup) -> None:
    """Run a compiled detector on all photos, so that no CUDA graphs are recorded during timing.

    For each image size, the first batch warms up and the second one is recorded. All photos are used twice, so that
    timing starts at the same photo as for the other implementations.

    Args:
        step: Runs the detector on the next batch.
        case: What to measure.
        setup: Photos and device.
    """
    count = len(read_records(setup.folder, "val2017", setup.limit))
    # Timing runs out of memory again and reports it.
    with suppress(torch.OutOfMemoryError):
        for _ in range(2 * math.lcm(count, case.batch) // case.batch):
            step()


def build_step(implementation: str, case: Case, setup: Setup) -> Callable[[], list[Any] | None]:
    """Build one step of an implementation.

    Args:
        implementation: `OURS`, `COMPILED` or `DETECTRON2`.
        case: What to measure.
        setup: Photos and device.

    Returns:
        A function that runs a step on the next photos. In inference it returns their detections.
    """
    is_train, device = case.mode == "training", setup.device
    cfg = _load_config(case, device, "reduce-overhead" if implementation == COMPILED else "")
    records = read_records(setup.folder, "train2017" if is_train else "val2017", setup.limit)
    readers = build_readers(cfg, records, is_train=is_train)
    torch.manual_seed(0)
    model = build_model(cfg)
    if not is_train:
        spread_scores(model, [readers[OURS](0)])
    is_ours = implementation != DETECTRON2
    if not is_ours:
        model = build_stock_detector(cfg, model).to(device)
    batches = endless_batches(
        readers[OURS if is_ours else DETECTRON2],
        len(records),
        case.batch,
        setup.workers,
        pin=is_ours and device.type == "cuda",
    )
    if not is_train:
        return _build_inference(model.eval(), batches, *_postprocessing(implementation, cfg))
    model.train()
    return (_build_training if is_ours else _build_detectron2_training)(cfg, model, batches, device)


def _load_config(case: Case, device: torch.device, compile_mode: str) -> CfgNode:
    sides: list[Any] = ["INPUT.MIN_SIZE_TRAIN", f"[{case.height}]", "INPUT.MAX_SIZE_TRAIN", str(case.width)]
    sides += ["INPUT.MIN_SIZE_TEST", str(case.height), "INPUT.MAX_SIZE_TEST", str(case.width)]
    amp = ["SOLVER.AMP.ENABLED", str(case.dtype != "fp32"), "TEST.PRECISION", case.dtype]
    model = ["MODEL.DEVICE", str(device), "MODEL.PVT.COMPILE", compile_mode]
    return load_config(case.model, [*model, *AS_DETECTRON2, *amp, *sides])


def _detectron2_dtype(case: Case, device: torch.device) -> str:
    is_mixed = device.type == "cuda" and case.mode == "training" and case.dtype != "fp32"
    return "fp16" if is_mixed else "fp32"


def _postprocessing(implementation: str, cfg: CfgNode) -> tuple[Callable[..., Any], AbstractContextManager[Any]]:
    """Return the function that converts an image's detections for storage, and the autocast context."""
    if implementation == DETECTRON2:
        return instances_to_coco_json, nullcontext()
    return pack_detections, inference_autocast(cfg)


def _build_inference(
    model: nn.Module,
    batches: Iterator[list[dict[str, Any]]],
    convert: Callable[..., Any],
    autocast: AbstractContextManager[Any],
) -> Callable[[], list[Any]]:
    def infer() -> list[Any]:
        batch = next(batches)
        with torch.no_grad(), autocast:
            outputs = model(batch)
        return [
            convert(output["instances"].to("cpu"), record["image_id"])
            for record, output in zip(batch, outputs, strict=True)
        ]

    return infer


def _build_training(
    cfg: CfgNode, model: nn.Module, batches: Iterator[list[dict[str, Any]]], device: torch.device
) -> Callable[[], None]:
    step = TrainStep.from_config(cfg, model)

    def train() -> None:
        with EventStorage():
            step(batches)

    return train


def _build_detectron2_training(
    cfg: CfgNode, model: nn.Module, batches: Iterator[list[dict[str, Any]]], device: torch.device
) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
    # AMPTrainer refuses to run on a CPU.
    is_mixed = device.type == "cuda" and cfg.SOLVER.AMP.ENABLED
    trainer = (AMPTrainer if is_mixed else SimpleTrainer)(model, batches, optimizer)
    trainer.iter = 0

    def train() -> None:
        with EventStorage():
            trainer.run_step()

    return train


def _step_peak(case: Case, setup: Setup, implementation: str) -> float:
    step = build_step(implementation, case, replace(setup, workers=0))
    # The first step allocates the optimizer's state.
    step()
    return peak_memory(step, setup.device)
