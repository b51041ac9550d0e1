"""Data loaders of classification: which image comes where, with which randomness, and what if it is broken.

All randomness of an image hangs on (seed, epoch, place in the epoch) alone. So a batch is the same for any number of
workers and processes, and a run resumes in mid-epoch by skipping places.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from pvt_det.data.imagenet.folders import ImageSource
from pvt_det.data.imagenet.transforms import BrokenImageError, Transform, decode_rgb
from pvt_det.data.workers import WorkerLoader, start_worker
from pvt_det.errors import DataError

# How many neighbours are tried in place of a broken image.
_MAX_SUBSTITUTES = 20
_PREFETCH_BATCHES = 4


class SampleKey(NamedTuple):
    """One sample of an epoch.

    Attributes:
        image: Its number.
        epoch: Which epoch.
        position: Place in the epoch, counted over all processes.
    """

    image: int
    epoch: int
    position: int


class Sample(NamedTuple):
    """One image of a batch.

    Attributes:
        image: 3×H×W, uint8.
        label: Its class.
        broken: Number of the image that could not be read, or -1.
    """

    image: Tensor
    label: int
    broken: int


class Batch(NamedTuple):
    """What the loaders give.

    Attributes:
        images: N×3×H×W, uint8.
        labels: N, int64; -1 for a broken image in evaluation.
        broken: Numbers of images that could not be read.
    """

    images: Tensor
    labels: Tensor
    broken: Tensor


def derive_seed(*key: int) -> int:
    """A number from 0 to 2³² - 1 that hangs on every element of `key` (each at least 0)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def seed_cpu(*key: int) -> None:
    """Seed Python, NumPy and torch's CPU generator with `key`; cheap enough for every image."""
    seed = derive_seed(*key)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


class TrainSampler(Sampler[SampleKey]):
    """The samples of one epoch for one process, in order, from a place on.

    With `repeats` above 1, this is repeated augmentation (timm's sampler): every image comes that often in a row, over
    the processes if there are several, and an epoch has still about as many samples as the set has images.

    Args:
        num_images: Size of the set.
        repeats: Times that an image comes; 1 for once.
        seed: Of the order.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, num_images: int, repeats: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        images = range(num_images)
        self._order: RepeatAugSampler | DistributedSampler = (
            RepeatAugSampler(images, world_size, rank, num_repeats=repeats)
            if repeats > 1
            else DistributedSampler(images, world_size, rank, shuffle=True, drop_last=True)  # type: ignore[arg-type]
        )
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self.set_position(0, 0)

    def set_position(self, epoch: int, start: int) -> None:
        """Let the next iteration give `epoch`'s samples without this process's first `start`."""
        self._epoch, self._start = epoch, start
        # Both samplers take the epoch, and nothing else, as the seed of their order.
        self._order.set_epoch(derive_seed(self._seed, epoch))

    def __len__(self) -> int:
        """Samples of a whole epoch for this process."""
        return len(self._order)

    def __iter__(self) -> Iterator[SampleKey]:
        for place, index in enumerate(self._order):
            if place >= self._start:
                yield SampleKey(index, self._epoch, place * self._world_size + self._rank)


class TrainImages(Dataset[Sample]):
    """Augmented training samples; in place of a broken image comes its neighbour, with a note.

    Args:
        source: The images.
        transform: Decoded image → network's image.
        seed: Of the augmentation.
    """

    def __init__(self, source: ImageSource, transform: Transform, seed: int) -> None:
        self._source, self._transform, self._seed = source, transform, seed

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
            f"{why_broken(self._source, key.image)}. Check the disk and the copy of the data."
        )


class EvalImages(Dataset[Sample]):
    """Evaluation samples in order; a broken image comes black, with label -1 and a note.

    Args:
        source: The images.
        transform: Decoded image → network's image.
        size: Side of the network's image in pixels.
    """

    def __init__(self, source: ImageSource, transform: Transform, size: int) -> None:
        self._source, self._transform, self._size = source, transform, size

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        try:
            pixels = decode_rgb(self._source.read(index))
        except (BrokenImageError, OSError):
            return Sample(torch.zeros(3, self._size, self._size, dtype=torch.uint8), -1, index)
        return Sample(self._transform(pixels), int(self._source.labels[index]), -1)


def why_broken(source: ImageSource, index: int) -> str:
    """Read a broken image once more, to say what is wrong with it."""
    try:
        decode_rgb(source.read(index))
    except (BrokenImageError, OSError) as error:
        return str(error)
    return "it could not be read before, and can be now"


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples to a batch."""
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
    """Whole batches of `batch_size` for this process, in the sampler's order; what is left over is dropped."""
    return WorkerLoader(
        images,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=True,
        collate_fn=collate,
        pin_memory=pin,
        num_workers=workers,
        worker_init_fn=start_worker,
        persistent_workers=workers > 0,
        prefetch_factor=_PREFETCH_BATCHES if workers else None,
        # A generator of its own: starting an epoch leaves the process's random state alone.
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
    """Every `world_size`-th image from the `rank`-th on: together the processes see each image once."""
    return WorkerLoader(
        images,
        batch_size=batch_size,
        sampler=range(rank, len(images), world_size),
        collate_fn=collate,
        pin_memory=pin,
        num_workers=workers,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
    )
