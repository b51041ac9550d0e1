"""The startup suite: from a large annotation file to the first training step."""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.datasets.coco import load_coco_json
from detectron2.engine import HookBase
from rich.table import Table

from benchmarks.coco_set import CocoSet, generate
from benchmarks.measure import median_ratio, private_memory, worker_growth
from benchmarks.photos import DETECTRON2
from pvt_det import api
from pvt_det.config import load_config
from pvt_det.data.coco.cache import open_annotations
from pvt_det.data.loader import build_detection_train_loader
from pvt_det.data.sets import register_datasets
from pvt_det.profiling import MIB, run_in_own_process
from pvt_det.utils.memory import peak_resident_memory

FIRST, LATER = "pvt_det, first start", "pvt_det, later start"
_CONFIG = "configs/mask_rcnn_pvt_small.yaml"
# A small model, because the suite measures the time before the first step.
_WORDS = {
    "MODEL.PVT.VARIANT": "pvt_v2_b0",
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "INPUT.MIN_SIZE_TRAIN": [64],
    "SOLVER.IMS_PER_BATCH": 2,
    "DATALOADER.NUM_WORKERS": 2,
}
# Records that a worker or a further process reads.
_READ = 10_000


@dataclass(frozen=True)
class StartupRow:
    """The result of one implementation.

    Attributes:
        implementation: `DETECTRON2`, `FIRST` or `LATER`.
        images: Number of images.
        objects: Number of objects with a polygon each.
        seconds: Median time. For `DETECTRON2`, from the annotation file to serialized records; otherwise from the
            config to the end of the first training step, with the check of annotations and image files.
        ratio: This time divided by Detectron2's, as the median of the rounds' ratios.
        processor_s: Median processor time of the process in the same interval, which other programs hardly affect.
        peak_mib: Largest peak memory of the process in MiB, or None if the system does not report it.
        rank_mib: Private memory in MiB that the data takes in a further process of the same machine; None for `FIRST`,
            and if the system is not Linux.
        worker_mib: Memory in MiB that a worker of the data loader no longer shares after reading 10,000 records; None
            in the same cases.
    """

    implementation: str
    images: int
    objects: int
    seconds: float
    ratio: float
    processor_s: float
    peak_mib: float | None
    rank_mib: float | None = None
    worker_mib: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the attributes by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Start:
    seconds: float
    processor_s: float
    peak_mib: float | None

    @classmethod
    def since(cls, start: tuple[float, float]) -> _Start:
        now, peak = _now(), peak_resident_memory()
        return cls(now[0] - start[0], now[1] - start[1], None if peak is None else peak / MIB)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


@dataclass(frozen=True)
class _Memory:
    rank_mib: float | None
    worker_mib: float | None


def run_startup(images: int, folder: Path, repeats: int) -> Iterator[StartupRow]:
    """Measure both implementations in processes of their own, one after the other in each round.

    Args:
        images: Number of images to generate.
        folder: Folder for the data set, which is generated if the folder does not have it.
        repeats: Number of rounds.

    Yields:
        One row per implementation.
    """
    data = generate(folder, images)
    data.json_file.read_bytes()  # from the disk, in no one's time
    starts: dict[str, list[_Start]] = {DETECTRON2: [], FIRST: [], LATER: []}
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place) / "cache"
        for number in range(repeats):
            shutil.rmtree(cache, ignore_errors=True)
            starts[DETECTRON2].append(run_in_own_process(_start_detectron2, data))
            for name in (FIRST, LATER):
                output = Path(place) / f"{number} {name}"
                starts[name].append(run_in_own_process(_start, data, cache, output))
        memory = {
            DETECTRON2: run_in_own_process(_memory_of_detectron2, data),
            LATER: _memory_beside(data, cache),
        }
    seconds = {name: [each.seconds for each in found] for name, found in starts.items()}
    for name, found in starts.items():
        peaks = [each.peak_mib for each in found if each.peak_mib is not None]
        yield StartupRow(
            name,
            data.images,
            data.objects,
            statistics.median(seconds[name]),
            median_ratio(seconds[name], seconds[DETECTRON2]),
            statistics.median(each.processor_s for each in found),
            max(peaks, default=None),
            **asdict(memory.get(name, _Memory(None, None))),
        )


def startup_table(rows: Sequence[StartupRow]) -> Table:
    """Build the table of time and memory.

    Args:
        rows: Results of all implementations.
    """
    table = Table(
        caption="Detectron2: load_coco_json and DatasetFromList; pvt_det: from the config to the end of the first "
        "training step, with the check of all files; processor: its time in the main process; further process: private "
        "memory of the data in another process of the machine; worker: what it no longer shares after reading "
        f"{_READ:,} records"
    )
    for heading in ("implementation", "images", "objects"):
        table.add_column(heading)
    for heading in ("median", "ratio", "processor", "peak", "further process", "worker"):
        table.add_column(heading, justify="right")
    for row in rows:
        memory = ("" if m is None else f"{m:.0f} MiB" for m in (row.peak_mib, row.rank_mib, row.worker_mib))
        numbers = (f"{row.seconds:.1f} s", f"{row.ratio:.2f}", f"{row.processor_s:.1f} s")
        table.add_row(row.implementation, f"{row.images:,}", f"{row.objects:,}", *numbers, *memory)
    return table


def _start_detectron2(data: CocoSet) -> _Start:
    start = _now()
    _detectron2_records(data)
    return _Start.since(start)


def _detectron2_records(data: CocoSet) -> DatasetFromList:
    return DatasetFromList(load_coco_json(str(data.json_file), str(data.image_root), "generated"))


class _FirstStepDone(Exception):
    pass


class _StopAfterFirstStep(HookBase):
    def after_step(self) -> None:
        raise _FirstStepDone


def _start(data: CocoSet, cache: Path, output: Path) -> _Start:
    start = _now()
    try:
        api.train(_config(data, cache, output), hooks=[_StopAfterFirstStep()])
    except _FirstStepDone:
        return _Start.since(start)
    raise AssertionError("no training step was made")


def _config(data: CocoSet, cache: Path, output: Path) -> CfgNode:
    os.environ["PVT_DET_CACHE"] = str(cache)
    given = {"DATASETS.TRAIN_JSON": data.json_file, "DATASETS.TRAIN_IMAGES": data.image_root, "OUTPUT_DIR": output}
    return load_config(_CONFIG, [str(word) for pair in (_WORDS | given).items() for word in pair])


def _memory_of_detectron2(data: CocoSet) -> _Memory:
    return _measure_memory(lambda: _detectron2_records(data))


def _memory_beside(data: CocoSet, cache: Path) -> _Memory:
    """Measure a further process, while this one maps the annotations, too."""
    os.environ["PVT_DET_CACHE"] = str(cache)
    opened = open_annotations(data.json_file)
    found = run_in_own_process(_memory, data, cache)
    assert opened.objects == data.objects
    return found


def _memory(data: CocoSet, cache: Path) -> _Memory:
    def records() -> Any:
        cfg = _config(data, cache, cache)
        register_datasets(cfg)
        return build_detection_train_loader(cfg).dataset.records  # type: ignore[attr-defined]

    return _measure_memory(records)


def _measure_memory(build: Any) -> _Memory:
    before = private_memory()
    records = build()
    count = min(_READ, len(records))
    for number in range(count):
        records[number]
    gc.collect()
    after = private_memory()
    growth = None if before is None or after is None else (after - before) / MIB
    return _Memory(growth, worker_growth(records, count))
