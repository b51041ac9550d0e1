"""Estimate what the runs of a study take: iterations, hours and disk space, each with what the estimate is based on."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from pvt_det.classification.models import build_classifier
from pvt_det.config.given_data import given_data
from pvt_det.data.coco.annotations import read_json
from pvt_det.errors import DataError, PvtDetError
from pvt_det.models.complexity import count_parameters
from pvt_det.results import Run
from pvt_det.studies.jobs import TRAIN, TRAIN_CLS, Job

# A training state has the weights and AdamW's two moments. A run keeps its last one, and its best and final
# weights, all in fp32.
_COPIES, _BYTES = 5, 4
# Classes of a classifier, whose number is not known before its images are read. The head is a small part of it.
_CLASSES = 1000


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        iterations: Number of iterations (classifiers: epochs). None if it is not known before the data is read.
        seconds: Duration in seconds on one device. None without a measurement.
        basis: Where the duration comes from: "this study", "FILE" or the text of the study's file.
        disk: Bytes of the checkpoints that the run keeps.
    """

    iterations: int | None
    seconds: float | None
    basis: str
    disk: int


def read_benchmark(file: Path) -> dict[str, float]:
    """Read the training speed of models from a file that `pvt-det benchmark --json` wrote.

    Args:
        file: The file.

    Returns:
        Seconds per image by the model's name on the command line, of the fastest measurement of each.

    Raises:
        DataError: The file cannot be read, or has no measurements of training.
    """
    found: dict[str, float] = {}
    try:
        for row in json.loads(file.read_text(encoding="utf-8"))["rows"]:
            if row["mode"] == "training" and row["images_per_s"]:
                seconds = 1 / float(row["images_per_s"])
                found[row["model"]] = min(seconds, found.get(row["model"], math.inf))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read ({error}). Expected a file of pvt-det benchmark --json.") from error
    if not found:
        raise DataError(f"{file} has no measurements of training. Run pvt-det benchmark with --modes training.")
    return found


def estimate_jobs(
    jobs: Sequence[Job],
    results: Mapping[str, Run],
    *,
    measured_on: str = "",
    benchmark: Mapping[str, float] | None = None,
    benchmark_file: str = "",
) -> dict[str, Estimate]:
    """Estimate what each run takes.

    A duration is taken from the finished runs of the same config and data in this study, from `benchmark`, or from the
    study's file, in this order. It is unknown otherwise.

    Args:
        jobs: The runs.
        results: Results of the finished runs by the name of the job.
        measured_on: What the study's file says about its durations.
        benchmark: Seconds per image by config, from `read_benchmark`.
        benchmark_file: Name of the file of the benchmark.

    Returns:
        The estimates by the name of the job.
    """
    measured: dict[tuple[str, ...], list[float]] = {}
    for job in jobs:
        if job.name in results and (seconds := results[job.name].training_seconds) is not None:
            measured.setdefault(_cell(job), []).append(seconds)
    estimates: dict[str, Estimate] = {}
    # Parameters by the model's config: runs that differ in their seed have the same model.
    counts: dict[str, int] = {}
    for job in jobs:
        iterations = _iterations(job)
        seconds, basis = iterations and job.step_seconds and iterations * job.step_seconds, measured_on
        if benchmark and iterations and job.config in benchmark and job.cfg is not None:
            batch = job.cfg.SOLVER.IMS_PER_BATCH * job.cfg.SOLVER.ACCUMULATE_STEPS
            seconds, basis = iterations * batch * benchmark[job.config], benchmark_file
        if _cell(job) in measured:
            seconds, basis = statistics.fmean(measured[_cell(job)]), "finished runs of this study"
        estimates[job.name] = Estimate(iterations, seconds, "" if seconds is None else basis, _disk(job, counts))
    return estimates


def _disk(job: Job, counts: dict[str, int]) -> int:
    """Return the bytes of the checkpoints that a run keeps. An evaluation keeps none."""
    if job.cfg is not None and job.command == TRAIN:
        key = job.cfg.MODEL.dump()
        if key not in counts:
            counts[key] = _count(job.cfg)
        return counts[key] * _BYTES * (_COPIES + int(job.cfg.SOLVER.EMA.ENABLED))
    if job.options is not None:
        with torch.device("meta"):
            count = count_parameters(build_classifier(job.options, _CLASSES))
        return count * _BYTES * (_COPIES + int(job.options.ema_decay > 0))
    return 0


def _count(config: CfgNode) -> int:
    cfg = config.clone()
    try:
        # Without memory for its tensors, a model is built in a moment.
        cfg.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            return count_parameters(build_model(cfg))
    except (NotImplementedError, RuntimeError):  # it reads the value of a tensor
        cfg.MODEL.DEVICE = "cpu"
        return count_parameters(build_model(cfg))


def _cell(job: Job) -> tuple[str, ...]:
    return job.grid, job.dataset, job.entry, job.variant


def _iterations(job: Job) -> int | None:
    if job.command == TRAIN_CLS and job.options is not None:
        return job.options.epochs
    if job.command != TRAIN or job.cfg is None:
        return None
    solver = job.cfg.SOLVER
    if not solver.EPOCHS:
        return int(solver.MAX_ITER)
    given = (job.data or {}).get("train_json")
    files = [given] if given else [data.json_file for data in given_data(job.cfg, "TRAIN")]
    counts = [count for file in files if (count := _images(file)) is not None]
    if not counts or len(counts) < len(files):
        return None
    return math.ceil(solver.EPOCHS * sum(counts) / (solver.IMS_PER_BATCH * solver.ACCUMULATE_STEPS))


@cache
def _images(annotations: str) -> int | None:
    try:
        return len(read_json(annotations)["images"])
    except (PvtDetError, OSError, KeyError, TypeError):
        return None
