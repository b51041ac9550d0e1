"""The detector suite: whole detectors on real photos, from the file to what an evaluator keeps, or to new weights.

This package by its own mapper, training step and packing of detections, with autocast where bf16 is asked for.
Detectron2 by its classes throughout: its mapper, its trainer's step, its way to keep detections, and the textbook form
of the trunk with the same weights (`benchmarks.stock`).
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
from benchmarks.implementations import COMPILED, OURS, Case
from benchmarks.measure import give_back, in_own_process, peak_memory, take_turns
from benchmarks.photos import DETECTRON2, endless_batches, read_records, readers
from benchmarks.stock import AS_DETECTRON2, spread_scores, stock_detector
from benchmarks.suites import Row, make_row, measures_memory, peaks
from pvt_det.config import load_config
from pvt_det.engine.step import TrainStep
from pvt_det.evaluation.detections import pack_detections
from pvt_det.utils.precision import inference_autocast

CONFIGS = ("configs/retinanet_pvt_small.yaml", "configs/mask_rcnn_pvt_small.yaml")


@dataclass(frozen=True)
class Setup:
    """What all cases have in common.

    Attributes:
        folder: In COCO's layout, with `val2017` for inference and `train2017` for training.
        limit: The first so many photos that have objects take turns.
        device: To run on.
        workers: Processes of each contestant's loader; 0 reads the photos within the step.
    """

    folder: Path
    limit: int
    device: torch.device
    workers: int = 0


def run_detectors(
    cases: Iterable[Case], setup: Setup, repeats: int, *, compiled: bool = False, memory: bool = True
) -> Iterator[Row]:
    """Compare both on photos, in time and in memory.

    Args:
        cases: `model` is a config file; height and width bound the short and the long side of the resized photos. The
            number format is this package's; Detectron2's is fp32, but fp16 in training on a GPU where ours is not fp32.
        setup: Photos and device.
        repeats: Rounds that count.
        compiled: Let this package's detector with a compiled trunk take part, on a GPU.
        memory: Measure memory, on a CPU in training only, where each contestant takes two more steps in a process of
            its own.

    Raises:
        DataError: The folder has another layout.
    """
    names = (OURS, *([COMPILED] if compiled else []), DETECTRON2)
    for case in cases:
        steps = {name: build_step(name, case, setup) for name in names}
        if compiled and case.mode == "inference":
            _record_graphs(steps[COMPILED], case, setup)
        seconds = take_turns(steps, setup.device, repeats)
        del steps
        give_back(setup.device, compiled=compiled)
        measured = names if memory and measures_memory(case, setup.device) else ()
        threads = torch.get_num_threads()
        found = peaks(measured, partial(_memory_of, case=case, setup=setup, threads=threads))
        for name in names:
            own = replace(case, dtype=_their_dtype(case, setup.device)) if name == DETECTRON2 else case
            yield make_row(own, name, seconds, found)


def _record_graphs(step: Callable[[], object], case: Case, setup: Setup) -> None:
    """Take all photos through a compiled detector, so that no graph is recorded while it is timed.

    Of each size of images the first batch warms the programs up and the second is recorded. It ends where it began, at
    the photo that the other contestants begin with.
    """
    count = len(read_records(setup.folder, "val2017", setup.limit))
    # Where memory is not enough, the timing tells.
    with suppress(torch.OutOfMemoryError):
        for _ in range(2 * math.lcm(count, case.batch) // case.batch):
            step()


def build_step(contestant: str, case: Case, setup: Setup) -> Callable[[], list[Any] | None]:
    """Make a function that takes the next photos through one step; in inference it returns what is kept of them."""
    is_train, device = case.mode == "training", setup.device
    cfg = _config(case, device, "reduce-overhead" if contestant == COMPILED else "")
    records = read_records(setup.folder, "train2017" if is_train else "val2017", setup.limit)
    reading = readers(cfg, records, is_train=is_train)
    torch.manual_seed(0)
    model = build_model(cfg)
    if not is_train:
        spread_scores(model, [reading[OURS](0)])
    is_ours = contestant != DETECTRON2
    if not is_ours:
        model = stock_detector(cfg, model).to(device)
    batches = endless_batches(
        reading[OURS if is_ours else DETECTRON2],
        len(records),
        case.batch,
        setup.workers,
        pin=is_ours and device.type == "cuda",
    )
    if not is_train:
        return _inference(model.eval(), batches, *_kept_by(contestant, cfg))
    model.train()
    return (_our_training if is_ours else _their_training)(cfg, model, batches, device)


def _config(case: Case, device: torch.device, compile_mode: str) -> CfgNode:
    sides: list[Any] = ["INPUT.MIN_SIZE_TRAIN", f"[{case.height}]", "INPUT.MAX_SIZE_TRAIN", str(case.width)]
    sides += ["INPUT.MIN_SIZE_TEST", str(case.height), "INPUT.MAX_SIZE_TEST", str(case.width)]
    amp = ["SOLVER.AMP.ENABLED", str(case.dtype != "fp32"), "TEST.PRECISION", case.dtype]
    how = ["MODEL.DEVICE", str(device), "MODEL.PVT.COMPILE", compile_mode]
    return load_config(case.model, [*how, *AS_DETECTRON2, *amp, *sides])


def _their_dtype(case: Case, device: torch.device) -> str:
    is_mixed = device.type == "cuda" and case.mode == "training" and case.dtype != "fp32"
    return "fp16" if is_mixed else "fp32"


def _kept_by(contestant: str, cfg: CfgNode) -> tuple[Callable[..., Any], AbstractContextManager[Any]]:
    """How a contestant keeps an image's detections, and its number format."""
    if contestant == DETECTRON2:
        return instances_to_coco_json, nullcontext()
    return pack_detections, inference_autocast(cfg)


def _inference(
    model: nn.Module,
    batches: Iterator[list[dict[str, Any]]],
    keep: Callable[..., Any],
    autocast: AbstractContextManager[Any],
) -> Callable[[], list[Any]]:
    def infer() -> list[Any]:
        batch = next(batches)
        with torch.no_grad(), autocast:
            outputs = model(batch)
        return [
            keep(output["instances"].to("cpu"), record["image_id"])
            for record, output in zip(batch, outputs, strict=True)
        ]

    return infer


def _our_training(
    cfg: CfgNode, model: nn.Module, batches: Iterator[list[dict[str, Any]]], device: torch.device
) -> Callable[[], None]:
    step = TrainStep.from_config(cfg, model)

    def train() -> None:
        with EventStorage():
            step(batches)

    return train


def _their_training(
    cfg: CfgNode, model: nn.Module, batches: Iterator[list[dict[str, Any]]], device: torch.device
) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
    # Its trainer for mixed precision refuses to run on a CPU.
    is_mixed = device.type == "cuda" and cfg.SOLVER.AMP.ENABLED
    trainer = (AMPTrainer if is_mixed else SimpleTrainer)(model, batches, optimizer)
    trainer.iter = 0

    def train() -> None:
        with EventStorage():
            trainer.run_step()

    return train


def _memory_of(contestant: str, case: Case, setup: Setup, threads: int) -> float:
    return in_own_process(_step_memory, contestant, case, setup, threads)


def _step_memory(contestant: str, case: Case, setup: Setup, threads: int) -> float:
    torch.set_num_threads(threads)
    step = build_step(contestant, case, replace(setup, workers=0))
    # The first step makes the optimizer's state, which stays.
    step()
    return peak_memory(step, setup.device)
