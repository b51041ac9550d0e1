"""Loaders of training and test images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from pvt_det.data.coco.cache import forget_annotations
from pvt_det.data.mapper import PVTDatasetMapper, build_augmentations
from pvt_det.data.sampler import ResumableBatchSampler, Sample
from pvt_det.data.segmentation.folders import LabelMaps
from pvt_det.data.targets import Labelled, pack_targets
from pvt_det.data.workers import WorkerLoader, start_worker
from pvt_det.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_Record = dict[str, Any]
_Read = TypeVar("_Read")

# Side in pixels of the blank image that stands for an unreadable one in evaluation.
_BLANK = 64


class MappedDataset(Dataset[dict[str, Any] | DataError]):
    """Records of images, mapped when asked for.

    The records lie in one shared buffer, so that worker processes do not copy them. With `on_error` "skip" a sample
    whose image cannot be read is, in training, replaced by the next readable one in the data set; in evaluation it
    becomes a blank image marked `"unreadable": True`, which the evaluator counts and leaves out.

    Attributes:
        skipped: one-element tensor in shared memory, the number of samples so replaced in all workers.
    """

    def __init__(self, records: list[dict[str, Any]], mapper: PVTDatasetMapper, on_error: str) -> None:
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper
        self.on_error = on_error
        self.skipped = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._reported: set[str] = set()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, sample: Sample | int) -> dict[str, Any] | DataError:
        """Map `(position, index)` of a training stream, or the index of a test image.

        Returns:
            The mapped record; or, for the loader to raise, what is wrong: the image cannot be read, or under "skip", no
            image at all can be. Raised here, in a worker process, it would come out wrapped in
            that worker's traceback.
        """
        position, index = (None, sample) if isinstance(sample, int) else sample
        draw = None if position is None else self._draw
        try:
            return self._first_readable(index, lambda record: self.mapper(record, position, draw), _blank)
        except DataError as error:
            return error

    def _draw(self, generator: np.random.Generator) -> Labelled:
        """Another image for one of the training stream to be mixed with."""
        return self._first_readable(int(generator.integers(len(self))), self.mapper.read)

    def _first_readable(
        self, index: int, read: Callable[[_Record], _Read], stand_in: Callable[[_Record], _Read] | None = None
    ) -> _Read:
        for step in range(len(self)):
            record = self.records[(index + step) % len(self)]
            try:
                return read(record)
            except DataError as error:
                if self.on_error != "skip":
                    raise
                self.skipped += 1
                if record["file_name"] not in self._reported:
                    self._reported.add(record["file_name"])
                    logger.warning("Left out: %s", error)
                if stand_in is not None and not self.mapper.is_train:
                    return stand_in(record)
        raise DataError(f"none of the {len(self)} images can be read; the last was {record['file_name']}")


def _blank(record: dict[str, Any]) -> dict[str, Any]:
    kept = {key: record[key] for key in ("file_name", "height", "width", "image_id") if key in record}
    return kept | {"image": torch.zeros(3, _BLANK, _BLANK, dtype=torch.uint8), "unreadable": True}


def build_detection_train_loader(cfg: CfgNode, *, start_batch: int = 0) -> DataLoader:
    """Endless batches of `SOLVER.IMS_PER_BATCH` images, of which this process gets its part.

    The batches depend on SEED and on nothing else: not on the number of workers or processes, nor on restarts. With
    SEED below 0 a seed is drawn, the same in all processes, and a restart draws another.

    Args:
        cfg: keys of DATASETS, DATALOADER, INPUT and SOLVER.IMS_PER_BATCH are read.
        start_batch: batches to pass over, so that a resumed run goes on where it stopped.

    Raises:
        ConfigError: a key has a value that cannot be used.
        DataError: the data set is empty, or nothing in it can be trained on.
    """
    world_size = comm.get_world_size()
    batch_size = cfg.SOLVER.IMS_PER_BATCH
    if batch_size < 1 or batch_size % world_size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {batch_size}: it counts the images of all {world_size} processes, and must be "
            f"a positive multiple of {world_size}"
        )
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    records = _records(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    repeat_factors = _repeat_factors(cfg, records)
    for record in records:
        record["targets"] = pack_targets(record.pop("annotations", []), masks=cfg.MODEL.MASK_ON)
    for name in set(cfg.DATASETS.TRAIN) - set(cfg.DATASETS.TEST):
        if source := MetadataCatalog.get(name).get("coco_source"):
            forget_annotations(source.json_file)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        usable = np.array([len(record["targets"].classes) > 0 for record in records])
        if not usable.any():
            what = "a mask" if cfg.MODEL.MASK_ON else "a box"
            raise DataError(f"{', '.join(cfg.DATASETS.TRAIN)}: no image has an object with {what} to train on")
        records = [record for record, use in zip(records, usable, strict=True) if use]
        repeat_factors = None if repeat_factors is None else repeat_factors[usable]
    groups = None
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        groups = [int(record["width"] > record["height"]) for record in records]
    stream = ResumableBatchSampler(
        len(records),
        batch_size,
        seed=seed,
        groups=groups,
        repeat_factors=repeat_factors,
        rank=comm.get_rank(),
        world_size=world_size,
        start_batch=start_batch,
    )
    mapper = PVTDatasetMapper(cfg, is_train=True, seed=seed)
    return _loader(cfg, MappedDataset(records, mapper, cfg.DATASETS.ON_ERROR), stream)


def build_detection_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """The images of a data set, one a batch, of which this process gets its part.

    Raises:
        DataError: the data set is empty.
    """
    records = _records([dataset_name], filter_empty=False)
    dataset = MappedDataset(records, PVTDatasetMapper(cfg, is_train=False), cfg.DATASETS.ON_ERROR)
    return _loader(cfg, dataset, BatchSampler(InferenceSampler(len(dataset)), batch_size=1, drop_last=False))


def build_detection_validation_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """As `build_detection_test_loader`, with "instances" and labels: for losses on data that is not trained on.

    Images without any object are left out.

    Raises:
        DataError: the data set is empty.
    """
    records = _records([dataset_name], filter_empty=True)
    mapper = PVTDatasetMapper(
        is_train=True,
        augmentations=build_augmentations(cfg, is_train=False),
        image_format=cfg.INPUT.FORMAT,
        masks=cfg.MODEL.MASK_ON,
        mask_format=cfg.INPUT.MASK_FORMAT,
        labels=LabelMaps.from_config(cfg),
    )
    dataset = MappedDataset(records, mapper, cfg.DATASETS.ON_ERROR)
    return _loader(cfg, dataset, BatchSampler(InferenceSampler(len(dataset)), batch_size=1, drop_last=False))


def _records(names: list[str], *, filter_empty: bool) -> list[dict[str, Any]]:
    try:
        return get_detection_dataset_dicts(names, filter_empty=filter_empty)
    except AssertionError as error:  # Detectron2's way to say that nothing is there
        raise DataError(f"{', '.join(names)}: {error}") from error


def _repeat_factors(cfg: CfgNode, records: list[dict[str, Any]]) -> np.ndarray | None:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return None
    if name == "RepeatFactorTrainingSampler":
        return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        ).numpy()
    raise ConfigError(f"DATALOADER.SAMPLER_TRAIN is {name!r}; expected TrainingSampler or RepeatFactorTrainingSampler")


class _Loader(WorkerLoader):
    """Raises in the main process the error that a sample came out as."""

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:  # type: ignore[override]
        for batch in super().__iter__():
            for sample in batch:
                if isinstance(sample, DataError):
                    raise sample
            yield batch


def _loader(cfg: CfgNode, dataset: MappedDataset, batches: Sampler) -> DataLoader:
    return _Loader(
        dataset,
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        # Images in pinned memory go to a GPU several times as fast.
        pin_memory=torch.device(cfg.MODEL.DEVICE).type == "cuda",
        worker_init_fn=start_worker,
        # Its own generator: making an iterator otherwise draws from torch's, and changes the training run.
        generator=torch.Generator().manual_seed(0),
    )
