"""Batch sampler for training whose order does not depend on the number of processes and workers or on restarts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

# (position in the stream of samples of all processes, index of the image)
Sample = tuple[int, int]


class ResumableBatchSampler(Sampler[list[Sample]]):
    """Yield an endless stream of shuffled batches, of which each process gets its share.

    Epoch e is a random permutation of the images, seeded with (seed, e). With groups, such as wide and tall images, an
    image waits until its group fills a batch, so all images of a batch come from one group in all processes.

    The order depends only on the seed. Rank r of W processes therefore gets the r-th share of the batch that a single
    process would get, and a stream that starts at batch k is identical to the rest of an uninterrupted one.

    Each sample has a position, which counts the samples of all processes and seeds its augmentation.

    Args:
        size: Number of images.
        batch_size: Total number of images in a batch over all processes; a multiple of `world_size`.
        seed: Seed of the permutations, 0 or greater.
        groups: Group of each image. None puts all images into one group.
        repeat_factors: Average number of times that each image appears in an epoch (LVIS, arXiv 1908.03195,
            appendix B.2). None uses each image once.
        rank: Rank of this process, from 0 to `world_size` - 1.
        world_size: Number of processes.
        start_batch: Number of batches to skip.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        groups: Sequence[int] | None = None,
        repeat_factors: npt.NDArray[np.float64] | None = None,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
    ) -> None:
        assert batch_size % world_size == 0, (batch_size, world_size)
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.groups = groups
        self.repeat_factors = repeat_factors
        self.part = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.start_batch = start_batch

    def __iter__(self) -> Iterator[list[Sample]]:
        """Yield this process's share of each batch."""
        for number, batch in enumerate(self._global_batches()):
            if number >= self.start_batch:
                first = number * self.batch_size
                yield [(first + offset, batch[offset]) for offset in range(self.batch_size)[self.part]]

    def _global_batches(self) -> Iterator[list[int]]:
        """Yield the image indices of each batch over all processes."""
        waiting: dict[int, list[int]] = {}
        epoch = 0
        while True:
            for index in self._epoch(epoch):
                batch = waiting.setdefault(0 if self.groups is None else self.groups[index], [])
                batch.append(index)
                if len(batch) == self.batch_size:
                    yield batch.copy()
                    batch.clear()
            epoch += 1

    def _epoch(self, epoch: int) -> list[int]:
        """Return the shuffled image indices of an epoch."""
        generator = np.random.default_rng((self.seed, epoch))
        if self.repeat_factors is None:
            return generator.permutation(self.size).tolist()
        whole = np.floor(self.repeat_factors)
        times = whole + (generator.random(self.size) < self.repeat_factors - whole)
        return generator.permutation(np.repeat(np.arange(self.size), times.astype(np.int64))).tolist()
