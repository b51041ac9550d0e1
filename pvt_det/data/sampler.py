"""The order of training samples: endless, shuffled, the same for any number of processes, workers and restarts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

# (position in the stream of all samples of all processes, index of the image)
Sample = tuple[int, int]


class ResumableBatchSampler(Sampler[list[Sample]]):
    """Endless batches of samples, of which every process takes its own part.

    Epoch e is a permutation drawn from (seed, e). With groups (wide and tall images), an image waits until its
    group fills a batch, and all processes' parts of a batch come from one group. Every choice is made on indices,
    from the seed alone; so process r of W sees the r-th part of the very batch that a single process would see, and
    a stream that starts at batch k goes on exactly as an uninterrupted one. A sample's position counts the samples
    of all processes and is the key of its augmentation's randomness.
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
        """Describe the stream.

        Args:
            size: number of images.
            batch_size: images of a batch, all processes together; divisible by `world_size`.
            seed: 0 or greater.
            groups: group of each image; None puts all in one.
            repeat_factors: how often each image comes in an epoch, on average (LVIS, arXiv 1908.03195, appendix B.2).
            rank: number of this process.
            world_size: number of processes.
            start_batch: batches to pass over.
        """
        assert batch_size % world_size == 0, (batch_size, world_size)
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.groups = groups
        self.repeat_factors = repeat_factors
        self.part = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.start_batch = start_batch

    def __iter__(self) -> Iterator[list[Sample]]:
        for number, batch in enumerate(self._global_batches()):
            if number >= self.start_batch:
                first = number * self.batch_size
                yield [(first + place, batch[place]) for place in range(self.batch_size)[self.part]]

    def _global_batches(self) -> Iterator[list[int]]:
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
        generator = np.random.default_rng((self.seed, epoch))
        if self.repeat_factors is None:
            return generator.permutation(self.size).tolist()
        whole = np.floor(self.repeat_factors)
        times = whole + (generator.random(self.size) < self.repeat_factors - whole)
        return generator.permutation(np.repeat(np.arange(self.size), times.astype(np.int64))).tolist()
