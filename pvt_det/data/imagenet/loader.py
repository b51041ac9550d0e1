"""Data loaders for classification, with reproducible randomness and tolerance of broken images.

The randomness of a sample depends only on (seed, epoch, position in the epoch). Batches are therefore identical for any
number of workers and processes, and a run resumes in the middle of an epoch by skipping positions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, Sampler

from pvt_det.data.ahead import LookAhead
from pvt_det.data.imagenet.folders import ImageSource
from pvt_det.data.imagenet.transforms import BrokenImageError, Transform, decode_rgb
from pvt_det.data.workers import WorkerLoader, start_worker
from pvt_det.errors import DataError

# Number of consecutive images to try, starting with the requested one, before giving up.
_MAX_SUBSTITUTES = 20
_PREFETCH_BATCHES = 4


class SampleKey(NamedTuple):
    """Identifies one sample of an epoch.

    Attributes:
        image: Index of the image.
        epoch: Index of the epoch.
        position: Position in the epoch, counted over all processes.
    """

    image: int
    epoch: int
    position: int


class Sample(NamedTuple):
    """One image of a batch.

    Attributes:
        image: Pixels `3×H×W`, uint8.
        label: Label of the image.
        broken: Index of the image that could not be read, or -1.
    """

    image: Tensor
    label: int
    broken: int


class Batch(NamedTuple):
    """A batch of images.

    Attributes:
        images: Pixels `N×3×H×W`, uint8.
        labels: Labels `N`, int64. Broken images have -1 in evaluation.
        broken: Indices of images that could not be read, int64.
    """

    images: Tensor
    labels: Tensor
    broken: Tensor


def derive_seed(*key: int) -> int:
    """Derive a seed from several numbers.

    Args:
        key: Integers of at least 0.

    Returns:
        A number from 0 to 2³² - 1 that depends on every element of `key`.
    """
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def seed_cpu(*key: int) -> None:
    """Seed Python's, NumPy's and PyTorch's CPU generators. This is fast enough to do for every image.

    Args:
        key: Integers of at least 0, from which the seed is derived.
    """
    seed = derive_seed(*key)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


class TrainSampler(Sampler[SampleKey]):
    """Yields the samples of one epoch for one process, optionally from a given position.

    With `repeats` above 1, this is repeated augmentation (timm's sampler). Each image appears that many times in a row,
    distributed over the processes. An epoch still has about as many samples as the data set has images.

    Args:
        num_images: Number of images of the data set.
        repeats: Number of times that each image appears.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, num_images: int, repeats: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        images = range(num_images)
        self._order: RepeatAugSampler | DistributedSampler = (
            RepeatAugSampler(images, world_size, rank, num_repeats=repeats, selected_round=_selected_round(num_images))
            if repeats > 1
            else DistributedSampler(images, world_size, rank, shuffle=True, drop_last=True)  # type: ignore[arg-type]
        )
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self.set_position(0, 0)

    def set_position(self, epoch: int, start: int) -> None:
        """Set where the next iteration starts.

        Args:
            epoch: Index of the epoch.
            start: Number of samples of this process to skip.
        """
        self._epoch, self._start = epoch, start
        # Both samplers use only the epoch as the seed of their order.
        self._order.set_epoch(derive_seed(self._seed, epoch))

    def __len__(self) -> int:
        """Return the number of samples of a whole epoch for this process."""
        return len(self._order)

    def __iter__(self) -> Iterator[SampleKey]:
        for place, index in enumerate(self._order):
            if place >= self._start:
                yield SampleKey(index, self._epoch, place * self._world_size + self._rank)


def _selected_round(num_images: int) -> int:
    """Return the number of which an epoch is a multiple. Before version 1.0.31, timm took 256 for few images too."""
    return 256 if num_images >= 256 else 0


class TrainImages(Dataset[Sample]):
    """Augmented training samples, with broken images replaced by the next one and reported.

    Args:
        source: The images.
        transform: Augments a decoded image.
        seed: Seed of the augmentation.
    """

    def __init__(self, source: ImageSource, transform: Transform, seed: int) -> None:
        self._source, self._transform, self._seed = source, transform, seed

    def __getitems__(self, keys: Sequence[SampleKey]) -> list[Sample]:
        """Return the samples of a batch, and begin to fetch those of later batches.

        Args:
            keys: The samples. Those that come later are known if it is a `Batch`.
        """
        _prefetch(self._source, [key.image for key in (*keys, *getattr(keys, "later", ()))])
        return [self[key] for key in keys]

    def __getitem__(self, key: SampleKey) -> Sample:
        broken = -1
        for attempt in range(_MAX_SUBSTITUTES):
            index = (key.image + attempt) % len(self._source)
            try:
                pixels = decode_rgb(self._source.read(index))
            except (BrokenImageError, OSError):
                broken = key.image
                continue
            seed_cpu(self._seed, key.epoch, key.position)
            return Sample(self._transform(pixels), int(self._source.labels[index]), broken)
        raise DataError(
            f"{self._source.name(key.image)} and the {_MAX_SUBSTITUTES - 1} images after it cannot be read: "
            f"{why_broken(self._source, key.image)}. Check the disk and the copy of the data set."
        )


class EvalImages(Dataset[Sample]):
    """Evaluation samples in order, with broken images replaced by black with label -1 and reported.

    Args:
        source: The images.
        transform: Preprocesses a decoded image.
        size: Side of the preprocessed image in pixels.
    """

    def __init__(self, source: ImageSource, transform: Transform, size: int) -> None:
        self._source, self._transform, self._size = source, transform, size

    def __len__(self) -> int:
        return len(self._source)

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Return the samples of a batch, and begin to fetch those of later batches.

        Args:
            indices: Indices of the images. Those that come later are known if it is a `Batch`.
        """
        _prefetch(self._source, [*indices, *getattr(indices, "later", ())])
        return [self[index] for index in indices]

    def __getitem__(self, index: int) -> Sample:
        try:
            pixels = decode_rgb(self._source.read(index))
        except (BrokenImageError, OSError):
            return Sample(torch.zeros(3, self._size, self._size, dtype=torch.uint8), -1, index)
        return Sample(self._transform(pixels), int(self._source.labels[index]), -1)


def _prefetch(source: ImageSource, indices: Sequence[int]) -> None:
    prefetch = getattr(source, "prefetch", None)
    if prefetch is not None:
        prefetch(indices)


def why_broken(source: ImageSource, index: int) -> str:
    """Read a broken image again and return what is wrong with it.

    Args:
        source: The images.
        index: Index of the broken image.
    """
    try:
        decode_rgb(source.read(index))
    except (BrokenImageError, OSError) as error:
        return str(error)
    return "it could not be read the first time, but can be read now"


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples to a batch.

    Args:
        samples: Samples with the same image size.
    """
    broken = [sample.broken for sample in samples if sample.broken >= 0]
    return Batch(
        torch.stack([sample.image for sample in samples]),
        torch.tensor([sample.label for sample in samples]),
        torch.tensor(broken, dtype=torch.int64),
    )


def build_train_loader(
    images: TrainImages,
    sampler: TrainSampler,
    batch_size: int,
    workers: int,
    pin: bool,
) -> DataLoader:
    """Build the loader of training batches, in the sampler's order. An incomplete last batch is dropped.

    Args:
        images: The training samples.
        sampler: Order of the samples of this process.
        batch_size: Number of images per batch of this process.
        workers: Number of worker processes. 0 reads in this process.
        pin: Put the batches into pinned memory.
    """
    batches = BatchSampler(sampler, batch_size, drop_last=True)  # type: ignore[arg-type]
    return WorkerLoader(
        images,
        batch_sampler=LookAhead(batches, batch_size, workers),
        collate_fn=collate,
        pin_memory=pin,
        num_workers=workers,
        worker_init_fn=start_worker,
        persistent_workers=workers > 0,
        prefetch_factor=_PREFETCH_BATCHES if workers else None,
        # A separate generator keeps the start of an epoch from changing the global random state.
        generator=torch.Generator(),
    )


def build_eval_loader(
    images: EvalImages,
    batch_size: int,
    workers: int,
    pin: bool,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Build the loader of evaluation batches.

    All processes together read each image exactly once.

    Args:
        images: The evaluation samples.
        batch_size: Number of images per batch of this process.
        workers: Number of worker processes. 0 reads in this process.
        pin: Put the batches into pinned memory.
        rank: Rank of this process, which reads every `world_size`-th image starting with this index.
        world_size: Number of processes.
    """
    mine = range(rank, len(images), world_size)
    return WorkerLoader(
        images,
        batch_sampler=LookAhead(BatchSampler(mine, batch_size, drop_last=False), batch_size, workers),
        collate_fn=collate,
        pin_memory=pin,
        num_workers=workers,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
    )
