"""Readers of annotated photos for detectors, by this package and by Detectron2."""

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
        folder: Folder in COCO's layout.
        part: "train2017" or "val2017".
        limit: Maximum number of records to return.

    Raises:
        DataError: The folder does not have COCO's layout, or no image has such an object.
    """
    json_file, images = folder / "annotations" / f"instances_{part}.json", folder / part
    if not json_file.is_file() or not images.is_dir():
        raise DataError(f"{folder}: expected COCO's layout, with {json_file.relative_to(folder)} and {part}/")
    records = CocoSource(str(json_file), str(images)).records()
    found = [record for record in records if any(_has_mask(a) for a in record["annotations"])][:limit]
    if not found:
        raise DataError(f"{json_file}: no image has an object with a mask")
    return found


def build_readers(cfg: CfgNode, records: Records, *, is_train: bool) -> dict[str, Callable[[int], Any]]:
    """Build each implementation's data set in the same way as its data loader.

    Args:
        cfg: Config of the detector.
        records: Records of the photos.
        is_train: Read training input instead of test input.

    Returns:
        By the name of the implementation, a function that returns the mapped record of an index.
    """
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
    """Return an infinite iterator over batches of the first `count` photos.

    Args:
        read: Returns the mapped record of an index.
        count: Number of photos.
        batch: Number of photos per batch.
        workers: Worker processes that read ahead. 0 reads each batch on demand.
        pin: Put the images of workers into pinned memory, as this package's loader does for a GPU.
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
    """Pack the annotations of records in the format of the training loader.

    Args:
        cfg: Config of the detector.
        records: Records of the photos.
    """
    return [
        {
            **{key: value for key, value in record.items() if key != "annotations"},
            "targets": pack_targets(record["annotations"], masks=cfg.MODEL.MASK_ON),
        }
        for record in records
    ]


def _has_mask(annotation: dict[str, Any]) -> bool:
    return not annotation["iscrowd"] and bool(annotation.get("segmentation"))
