"""Annotated photos, and the readers that turn them into a detector's input: this package's and Detectron2's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, DatasetMapper, MapDataset
from torch.utils.data import Dataset

from benchmarks.implementations import OURS
from pvt_det.data.coco.registration import CocoSource
from pvt_det.data.loader import MappedDataset
from pvt_det.data.mapper import PVTDatasetMapper
from pvt_det.data.targets import pack_targets
from pvt_det.data.workers import WorkerLoader, start_worker
from pvt_det.errors import DataError

DETECTRON2 = "Detectron2"

Records = list[dict[str, Any]]


def read_records(folder: Path, part: str, limit: int) -> Records:
    """Read the first records that have an object with a mask.

    Args:
        folder: A folder in COCO's layout.
        part: "train2017" or "val2017".
        limit: Number of records to read at most.

    Raises:
        DataError: The folder has another layout, or no image has such an object.
    """
    json_file, images = folder / "annotations" / f"instances_{part}.json", folder / part
    if not json_file.is_file() or not images.is_dir():
        raise DataError(f"{folder}: expected COCO's layout, with {json_file.relative_to(folder)} and {part}/ in it")
    records = CocoSource(str(json_file), str(images)).records()
    found = [record for record in records if any(_has_mask(a) for a in record["annotations"])][:limit]
    if not found:
        raise DataError(f"{json_file}: no image has an object with a mask")
    return found


def build_readers(cfg: CfgNode, records: Records, *, is_train: bool) -> dict[str, Callable[[int], Any]]:
    """Build each implementation's data set, as its data loader does: a function from an index to a mapped record."""
    ours = MappedDataset(
        pack_records(cfg, records) if is_train else records, PVTDatasetMapper(cfg, is_train=is_train), "stop"
    )
    theirs = MapDataset(DatasetFromList(records), DatasetMapper(cfg, is_train=is_train))
    return {OURS: ours.__getitem__, DETECTRON2: theirs.__getitem__}


class _Read(Dataset[Any]):
    def __init__(self, read: Callable[[int], Any]) -> None:
        self.read = read

    def __getitem__(self, number: int) -> Any:
        return self.read(number)


def endless_batches(
    read: Callable[[int], Any], count: int, batch: int, workers: int, *, pin: bool
) -> Iterator[list[Any]]:
    """Return batches of the first `count` photos, over and over.

    Args:
        read: Returns the mapped record of an index.
        count: Number of photos.
        batch: Photos per batch.
        workers: Processes that read ahead; 0 reads each batch on demand.
        pin: Whether the images of workers are in pinned memory, as this package's loader has them for a GPU.
    """
    numbers = itertools.cycle(range(count))
    batches = iter(lambda: [next(numbers) for _ in range(batch)], None)
    if workers == 0:
        return ([read(number) for number in batch] for batch in batches)
    loader = WorkerLoader(
        _Read(read),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=list,
        pin_memory=pin,
        worker_init_fn=start_worker,
    )
    return iter(loader)


def pack_records(cfg: CfgNode, records: Records) -> Records:
    """Pack the annotations of records as the training loader keeps them."""
    return [
        {
            **{key: value for key, value in record.items() if key != "annotations"},
            "targets": pack_targets(record["annotations"], masks=cfg.MODEL.MASK_ON),
        }
        for record in records
    ]


def _has_mask(annotation: dict[str, Any]) -> bool:
    return not annotation["iscrowd"] and bool(annotation.get("segmentation"))
