"""The detector suite: whole detectors on real photos, from the file to what an evaluator keeps, or to new weights.

This package by its own mapper, training step and packing of detections, with autocast where bf16 is asked for.
Detectron2 by its classes throughout: its mapper, its trainer's step, its way to keep detections, and the textbook form
of the trunk with the same weights (`pvt_det.engine.benchmark.stock`).
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
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
from pvt_det.config import load_config
from pvt_det.engine.benchmark.contestants import OURS, Case
from pvt_det.engine.benchmark.measure import in_own_process, median_ratio, peak_memory, take_turns
from pvt_det.engine.benchmark.photos import DETECTRON2, read_records, readers
from pvt_det.engine.benchmark.stock import AS_DETECTRON2, spread_scores, stock_detector
from pvt_det.engine.benchmark.suites import Row
from pvt_det.engine.precision import inference_autocast
from pvt_det.engine.step import TrainStep
from pvt_det.evaluation.detections import pack_detections

CONFIGS = ("configs/retinanet_pvt_small.yaml", "configs/mask_rcnn_pvt_small.yaml")
CONTESTANTS = (OURS, DETECTRON2)


def run_detectors(
    cases: Iterable[Case], folder: Path, limit: int, device: torch.device, repeats: int, *, memory: bool = True
) -> Iterator[Row]:
    """Compare both on the photos of a folder in COCO's layout, in time, and in training in memory.

    Args:
        cases: `model` is a config file; height and width bound the short and the long side of the resized photos. The
            number format is this package's; Detectron2's is fp32, but fp16 in training on a GPU.
        folder: Has `val2017` for inference and `train2017` for training.
        limit: The first so many photos that have objects take turns.
        device: To run on.
        repeats: Rounds that count.
        memory: Measure memory, for which each contestant takes two more steps in a process of its own.

    Raises:
        DataError: The folder has another layout.
    """
    for case in cases:
        steps = {name: build_step(name, case, folder, limit, device) for name in CONTESTANTS}
        seconds = take_turns(steps, device, repeats)
        del steps
        peaks = {}
        if memory and case.mode == "training":
            threads = torch.get_num_threads()
            peaks = {
                name: in_own_process(_step_memory, name, case, folder, limit, device, threads) for name in CONTESTANTS
            }
        for name in CONTESTANTS:
            yield Row(
                case if name == OURS else replace(case, dtype=_their_dtype(case, device)),
                name,
                statistics.median(seconds[name]),
                median_ratio(seconds[name], seconds[OURS]),
                peaks.get(name),
                peaks[OURS] / peaks[name] if peaks else None,
            )


def build_step(
    contestant: str, case: Case, folder: Path, limit: int, device: torch.device
) -> Callable[[], list[Any] | None]:
    """Make a function that takes the next photos through one step; in inference it returns what is kept of them."""
    is_train = case.mode == "training"
    cfg = _config(case, device)
    records = read_records(folder, "train2017" if is_train else "val2017", limit)
    reading = readers(cfg, records, is_train=is_train)
    torch.manual_seed(0)
    model = build_model(cfg)
    if not is_train:
        spread_scores(model, [reading[OURS](0)])
    if contestant == DETECTRON2:
        model = stock_detector(cfg, model).to(device)
    numbers = itertools.cycle(range(len(records)))
    batches = iter(lambda: [reading[contestant](next(numbers)) for _ in range(case.batch)], None)
    if not is_train:
        autocast = inference_autocast(cfg) if contestant == OURS else nullcontext()
        return _inference(contestant, model.eval(), batches, autocast)
    model.train()
    return (_our_training if contestant == OURS else _their_training)(cfg, model, batches, device)


def _config(case: Case, device: torch.device) -> CfgNode:
    sides: list[Any] = ["INPUT.MIN_SIZE_TRAIN", f"[{case.height}]", "INPUT.MAX_SIZE_TRAIN", str(case.width)]
    sides += ["INPUT.MIN_SIZE_TEST", str(case.height), "INPUT.MAX_SIZE_TEST", str(case.width)]
    amp = ["SOLVER.AMP.ENABLED", str(case.dtype != "fp32"), "TEST.PRECISION", case.dtype]
    return load_config(case.model, ["MODEL.DEVICE", str(device), *AS_DETECTRON2, *amp, *sides])


def _their_dtype(case: Case, device: torch.device) -> str:
    return "fp16" if device.type == "cuda" and case.mode == "training" else "fp32"


def _inference(
    contestant: str, model: nn.Module, batches: Iterator[list[dict[str, Any]]], autocast: AbstractContextManager[Any]
) -> Callable[[], list[Any]]:
    keep: Callable[..., Any] = pack_detections if contestant == OURS else instances_to_coco_json

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
    trainer = (AMPTrainer if device.type == "cuda" else SimpleTrainer)(model, batches, optimizer)
    trainer.iter = 0

    def train() -> None:
        with EventStorage():
            trainer.run_step()

    return train


def _step_memory(contestant: str, case: Case, folder: Path, limit: int, device: torch.device, threads: int) -> float:
    torch.set_num_threads(threads)
    step = build_step(contestant, case, folder, limit, device)
    # The first step makes the optimizer's state, which stays.
    step()
    return peak_memory(step, device)
