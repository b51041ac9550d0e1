"""Build data loaders for training, validation and test images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, compress
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.data.build import print_instances_class_histogram, trivial_batch_collator
from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from pvt_det.data.ahead import Batch, LookAhead
from pvt_det.data.coco.cache import forget_annotations
from pvt_det.data.coco.findings import SKIP_OPTION
from pvt_det.data.coco.records import CocoRecords
from pvt_det.data.coco.registration import CocoSource, plain_source
from pvt_det.data.mapper import PVTDatasetMapper, build_augmentations
from pvt_det.data.sampler import Mixture, ResumableBatchSampler, Sample
from pvt_det.data.segmentation.folders import LabelMaps
from pvt_det.data.storage.places import prefetch
from pvt_det.data.storage.references import is_url
from pvt_det.data.targets import Labelled, pack_targets
from pvt_det.data.workers import WorkerLoader, start_worker
from pvt_det.errors import ConfigError, DataError, PvtDetError, StorageError
from pvt_det.utils.text import counted

logger = logging.getLogger(__name__)

_Record = dict[str, Any]
_Records = list[_Record] | CocoRecords
_Read = TypeVar("_Read")

# Side length in pixels of the blank image that replaces an unreadable image in evaluation.
_BLANK_SIDE = 64


class MappedDataset(Dataset[dict[str, Any] | PvtDetError]):
    """Data set of records that are mapped on access.

    Worker processes share the records without copying: a list is serialized into one buffer.

    With `on_error` "skip", an unreadable image is replaced. In training, the next readable image of the data set takes
    its place. In evaluation, a blank image with `"unreadable": True` takes its place, which the evaluator counts and
    leaves out.

    Attributes:
        skipped: Number of samples that were replaced in all workers, a one-element int64 tensor in shared memory.

    Args:
        records: Detectron2 records, one per image: a list, or a data set that makes a record when it is read.
        mapper: Mapper that reads and augments one image.
        on_error: How to handle unreadable images. "skip" replaces them; "stop" and "strict" raise an error.
        mixture: Shares of the data sets, from which images to mix into a sample are drawn. None draws all alike.
    """

    def __init__(
        self, records: _Records, mapper: PVTDatasetMapper, on_error: str, mixture: Mixture | None = None
    ) -> None:
        self.records: Any = DatasetFromList(records, copy=False) if isinstance(records, list) else records
        self.mapper = mapper
        self.on_error = on_error
        self.mixture = mixture
        self.skipped = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._reported: set[str] = set()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, sample: Sample | int) -> dict[str, Any] | PvtDetError:
        """Map one sample.

        Args:
            sample: `(position, index)` of a sample in the training stream, or the index of a test image.

        Returns:
            The mapped record. If the image cannot be read, or with "skip" none of the images, or if an augmentation
            does not accept it, the error is returned for the loader to raise. If it were raised here, in a worker
            process, its message would contain that worker's traceback.
        """
        position, index = (None, sample) if isinstance(sample, int) else sample
        draw = None if position is None else self._draw
        try:
            return self._first_readable(index, lambda record: self.mapper(record, position, draw), _blank)
        except PvtDetError as error:
            return error

    def __getitems__(self, samples: list[Sample] | list[int]) -> list[dict[str, Any] | PvtDetError]:
        """Map the samples of a batch, and begin to fetch those of later batches if they are in an object store.

        Args:
            samples: Samples as for `__getitem__`. Those that come later are known if it is a `Batch`.
        """
        if isinstance(samples, Batch):
            wanted = (sample if isinstance(sample, int) else sample[1] for sample in (*samples, *samples.later))
            prefetch(file for index in wanted for file in _files(self.records[index]))
        return [self[sample] for sample in samples]

    def _draw(self, generator: np.random.Generator) -> Labelled:
        """Draw another image to mix into a training sample."""
        index = self.mixture.draw(generator) if self.mixture else int(generator.integers(len(self)))
        return self._first_readable(index, self.mapper.read)

    def _first_readable(
        self, index: int, read: Callable[[_Record], _Read], placeholder: Callable[[_Record], _Read] | None = None
    ) -> _Read:
        """Read the record at `index`; with "skip", fall back to a placeholder or to the next readable record."""
        for step in range(len(self)):
            record = self.records[(index + step) % len(self)]
            try:
                return read(record)
            except StorageError:
                raise
            except DataError as error:
                if self.on_error != "skip":
                    raise DataError(f"{error}. To leave it out, use {SKIP_OPTION}.") from error
                self.skipped += 1
                if record["file_name"] not in self._reported:
                    self._reported.add(record["file_name"])
                    logger.warning("Skipped: %s", error)
                if placeholder is not None and not self.mapper.is_train:
                    return placeholder(record)
        raise DataError(
            f"no image can be read, of {counted(len(self), 'image')}; the last one tried is {record['file_name']}"
        )


def _files(record: dict[str, Any]) -> list[str]:
    return [record[key] for key in ("file_name", "sem_seg_file_name") if key in record]


def _blank(record: dict[str, Any]) -> dict[str, Any]:
    """Return a mapped record with a blank image, marked as unreadable."""
    kept = {key: record[key] for key in ("file_name", "height", "width", "image_id") if key in record}
    return kept | {"image": torch.zeros(3, _BLANK_SIDE, _BLANK_SIDE, dtype=torch.uint8), "unreadable": True}


def build_detection_train_loader(
    cfg: CfgNode, *, start_batch: int = 0, augmentations: Sequence[T.Augmentation] = ()
) -> DataLoader:
    """Build the training data loader, an endless stream of batches.

    Each process gets its share of every batch of `SOLVER.IMS_PER_BATCH` images. The batches depend only on SEED, not on
    the number of workers or processes, nor on restarts. If SEED is negative, a random seed is drawn that is the same in
    all processes and different after a restart.

    Args:
        cfg: Config, of which DATASETS, DATALOADER, INPUT, MODEL, SEED and SOLVER.IMS_PER_BATCH are read. The data sets
            must be registered.
        start_batch: Number of batches to skip, so that a resumed run continues where it stopped.
        augmentations: Augmentations to apply before those of the config.

    Returns:
        The data loader, which yields lists of mapped records.

    Raises:
        ConfigError: A key has an invalid value.
        DataError: The data set is empty, or no image has an object to train on.
    """
    world_size = comm.get_world_size()
    batch_size = cfg.SOLVER.IMS_PER_BATCH
    if batch_size < 1 or batch_size % world_size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {batch_size}. It is the number of images in a batch over all {world_size} "
            f"processes; expected a positive multiple of {world_size}."
        )
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    data = _training_data(cfg)
    _log_sources(cfg, data)
    for name in set(cfg.DATASETS.TRAIN) - set(cfg.DATASETS.TEST):
        if source := MetadataCatalog.get(name).get("coco_source"):
            forget_annotations(source.json_file)
    mapper = PVTDatasetMapper(cfg, is_train=True, seed=seed, before=augmentations)
    dataset = MappedDataset(data.records, mapper, cfg.DATASETS.ON_ERROR, data.mixture)
    stream = ResumableBatchSampler(
        len(dataset),
        batch_size,
        seed=seed,
        groups=_aspect_ratio_groups(data.records) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
        repeat_factors=data.repeat_factors,
        mixture=data.mixture,
        rank=comm.get_rank(),
        world_size=world_size,
        start_batch=start_batch,
    )
    return _loader(cfg, dataset, stream, sizes=data.sizes)


def count_training_images(cfg: CfgNode) -> int:
    """Return the number of images that training draws from: those of DATASETS.TRAIN with something to train on.

    Args:
        cfg: Config, of which DATASETS, DATALOADER and MODEL.MASK_ON are read. The data sets must be registered.

    Raises:
        DataError: The data set is empty, or no image has an object to train on.
    """
    return len(_training_data(cfg).records)


def build_detection_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Build a test data loader with batches of one image; each process gets its share of the images.

    Args:
        cfg: Config, of which DATALOADER, DATASETS.ON_ERROR, INPUT and MODEL are read.
        dataset_name: Name of a registered data set.

    Returns:
        The data loader, which yields lists of one mapped record.

    Raises:
        ConfigError: A key has an invalid value.
        DataError: The data set is empty.
    """
    source = plain_source(dataset_name)
    records = CocoRecords([source.images()]) if source else _records([dataset_name], filter_empty=False)
    dataset = MappedDataset(records, PVTDatasetMapper(cfg, is_train=False), cfg.DATASETS.ON_ERROR)
    return _loader(cfg, dataset, BatchSampler(InferenceSampler(len(dataset)), batch_size=1, drop_last=False))


def build_detection_validation_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Build a loader for validation losses: a test loader whose records include "instances" and label maps.

    Images without objects are left out.

    Args:
        cfg: Config, of which DATALOADER, DATASETS.ON_ERROR, INPUT and MODEL are read.
        dataset_name: Name of a registered data set.

    Returns:
        The data loader, which yields lists of one mapped record.

    Raises:
        ConfigError: A key has an invalid value.
        DataError: The data set is empty.
    """
    records = _all_records([dataset_name], filter_empty=True, masks=cfg.MODEL.MASK_ON)[0]
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
    """Return the records of the data sets."""
    try:
        return get_detection_dataset_dicts(names, filter_empty=filter_empty)
    except AssertionError as error:  # raised by Detectron2 for an empty data set
        raise DataError(f"{', '.join(names)}: {error}") from error


def _all_records(names: Sequence[str], *, filter_empty: bool, masks: bool) -> Sequence[_Records]:
    """Return the records of each data set, packed if each is just an annotation file."""
    sources = [source for name in names if (source := plain_source(name))]
    if len(sources) < len(names):
        return [_records([name], filter_empty=filter_empty) for name in names]
    return [
        _packed_records(name, source, filter_empty=filter_empty, masks=masks)
        for name, source in zip(names, sources, strict=True)
    ]


def _packed_records(name: str, source: CocoSource, *, filter_empty: bool, masks: bool) -> CocoRecords:
    """Return the records that `_records` returns for a data set, but made when they are read, and with packed targets.

    Raises:
        DataError: No image has an object.
    """
    records = CocoRecords([source.images()], masks)
    if filter_empty:
        total, records = len(records), records.select(records.has_objects())
        logger.info("Removed %d images with no usable annotations. %d images left.", total - len(records), len(records))
    if not len(records):
        raise DataError(f"{name}: No valid data found in {name}.")
    # Detectron2's table of the numbers of objects.
    counts = enumerate(records.class_counts())
    objects = list(chain.from_iterable([{"category_id": number}] * count for number, count in counts))
    print_instances_class_histogram([{"annotations": objects}], MetadataCatalog.get(name).thing_classes)
    return records


@dataclass(frozen=True)
class _TrainingData:
    """What training draws from.

    Attributes:
        records: Records with packed targets, those of the first data set first.
        sizes: Number of records of each data set.
        repeat_factors: Repeat factor of each record, or None if all images are drawn alike.
        mixture: The share of each data set, or None if all images are drawn alike.
    """

    records: _Records
    sizes: list[int]
    repeat_factors: np.ndarray | None
    mixture: Mixture | None


def _training_data(cfg: CfgNode) -> _TrainingData:
    """Return what training draws from: the images of DATASETS.TRAIN with something to train on."""
    names, filter_empty, masks = cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, cfg.MODEL.MASK_ON
    parts = _all_records(names, filter_empty=filter_empty, masks=masks)
    weights = cfg.DATASETS.TRAIN_WEIGHTS
    factors = _repeat_factors(cfg, parts if weights else [_joined(parts)])
    usable = [_pack(part, masks=masks) | (not filter_empty) for part in parts]
    for name, part in zip(names, usable, strict=True):
        if not part.any():
            required = "a mask" if masks else "a box"
            raise DataError(f"{name}: no image has an object with {required} to train on")
    kept, records = np.concatenate(usable), _joined(parts)
    sizes = [int(part.sum()) for part in usable]
    return _TrainingData(
        records.select(kept) if isinstance(records, CocoRecords) else list(compress(records, kept)),
        sizes,
        None if factors is None else factors[kept],
        Mixture(sizes, weights) if weights else None,
    )


def _joined(parts: Sequence[_Records]) -> _Records:
    """Return the records of several data sets, one after another. They are all packed, or all lists."""
    if packed := [part for part in parts if isinstance(part, CocoRecords)]:
        return CocoRecords([images for part in packed for images in part.parts], packed[0].masks)
    return [record for part in parts if isinstance(part, list) for record in part]


def _pack(records: _Records, *, masks: bool) -> npt.NDArray[np.bool_]:
    """Replace the annotations of records by packed targets, and return which records have any."""
    if isinstance(records, CocoRecords):
        return records.has_objects(masks=masks)
    for record in records:
        record["targets"] = pack_targets(record.pop("annotations", []), masks=masks)
    return np.array([len(record["targets"].classes) > 0 for record in records])


def _aspect_ratio_groups(records: _Records) -> list[int]:
    if isinstance(records, CocoRecords):
        return records.is_wide.astype(int).tolist()
    return [int(record["width"] > record["height"]) for record in records]


def _repeat_factors(cfg: CfgNode, parts: Sequence[_Records]) -> npt.NDArray[np.float64] | None:
    """Return the repeat factor of each record, by the frequency of the classes in its part, or None without them."""
    loader = cfg.DATALOADER
    if loader.SAMPLER_TRAIN == "TrainingSampler":
        return None
    if loader.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        raise ConfigError(
            f"DATALOADER.SAMPLER_TRAIN is {loader.SAMPLER_TRAIN!r}; expected TrainingSampler or "
            "RepeatFactorTrainingSampler"
        )
    count = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    factors = [count(_classes(part), loader.REPEAT_THRESHOLD, sqrt=loader.REPEAT_SQRT).numpy() for part in parts]
    return np.concatenate(factors)


def _classes(records: _Records) -> list[_Record]:
    """Return records with the classes of their objects."""
    if isinstance(records, CocoRecords):
        return [{"annotations": [{"category_id": c} for c in classes]} for classes in records.classes()]
    return records


def _log_sources(cfg: CfgNode, data: _TrainingData) -> None:
    """Log how many images each of several data sets has, and how often they are drawn."""
    if len(data.sizes) < 2:
        return
    drawn = np.ones(len(data.records)) if data.repeat_factors is None else data.repeat_factors
    ends = np.cumsum(data.sizes)[:-1]
    shares = data.mixture.shares if data.mixture else [part.sum() / drawn.sum() for part in np.split(drawn, ends)]
    logger.info(
        "Training data: %s.",
        "; ".join(
            f"{_path(name)} with {counted(size, 'image')}, {share:.1%} of the samples"
            for name, size, share in zip(cfg.DATASETS.TRAIN, data.sizes, shares, strict=True)
        ),
    )


def _path(name: str) -> str:
    """Return the annotation file or the label maps of a data set, or its name. Names do not show which is which."""
    metadata = MetadataCatalog.get(name)
    return str(metadata.get("json_file") or metadata.get("sem_seg_root") or name)


class _Loader(WorkerLoader):
    """Data loader that raises, in the main process, an error returned as a sample."""

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:  # type: ignore[override]
        for batch in super().__iter__():
            for sample in batch:
                if isinstance(sample, PvtDetError):
                    raise sample
            yield batch


def _loader(
    cfg: CfgNode, dataset: MappedDataset, batches: ResumableBatchSampler | BatchSampler, sizes: Sequence[int] = ()
) -> DataLoader:
    """Build a data loader from a data set, the sizes of its parts that come from different places, and its batches."""
    ordered: Sampler = batches
    firsts = [0, *accumulate(sizes[:-1])] if len(dataset) else []
    if any(is_url(file) for index in firsts for file in _files(dataset.records[index])):
        ordered = LookAhead(batches, batches.batch_size, cfg.DATALOADER.NUM_WORKERS)
    return _Loader(
        dataset,
        batch_sampler=ordered,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        # Copying to a GPU is several times as fast from pinned memory.
        pin_memory=torch.device(cfg.MODEL.DEVICE).type == "cuda",
        worker_init_fn=start_worker,
        # Without this generator, creating an iterator would draw from torch's global one and change the training run.
        generator=torch.Generator().manual_seed(0),
    )
