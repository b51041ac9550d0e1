"""Batch sampler for training whose order does not depend on the number of processes and workers or on restarts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

# (position in the stream of samples of all processes, index of the image)
Sample = tuple[int, int]


class Mixture:
    """Shares in which samples are drawn from several data sets, whose images are numbered one after another.

    Attributes:
        images: Indices of the images of each data set.
        shares: Share of the samples from each data set, with the sum 1.

    Args:
        sizes: Number of images of each data set, 1 or more.
        weights: Weight of each data set, above 0. The shares are the weights, divided by their sum.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float]) -> None:
        assert len(sizes) == len(weights), (sizes, weights)
        assert min(*sizes, *weights) > 0, (sizes, weights)
        bounds = np.cumsum([0, *sizes])
        self.images = [range(first, stop) for first, stop in itertools.pairwise(bounds.tolist())]
        self.shares = np.array(weights, np.float64) / sum(weights)
        self._limits = np.cumsum([0.0, *weights]) / np.cumsum(weights)[-1]

    def counts(self, samples: int, generator: np.random.Generator) -> list[int]:
        """Split a number of samples by the shares. The fractions are rounded at random, without bias.

        Args:
            samples: Number of samples.
            generator: Source of the random numbers.

        Returns:
            The number of samples from each data set.
        """
        return np.diff(np.floor(self._limits * samples + generator.random())).astype(int).tolist()

    def draw(self, generator: np.random.Generator) -> int:
        """Draw one image: a data set by the shares, and one of its images with equal probability.

        Args:
            generator: Source of the random numbers.

        Returns:
            Index of the image.
        """
        images = self.images[int(np.searchsorted(self._limits[1:-1], generator.random(), side="right"))]
        return images[int(generator.integers(len(images)))]


class ResumableBatchSampler(Sampler[list[Sample]]):
    """Yield an endless stream of shuffled batches, of which each process gets its share.

    Epoch e is a random permutation of the images, seeded with (seed, e). With groups, such as wide and tall images, an
    image waits until its group fills a batch, so all images of a batch come from one group in all processes.

    With a mixture, an epoch has as many samples as there are images, in the shares of the data sets. Those of a data
    set continue its own sequence of permutations, so that each of its images is drawn equally often, whatever its
    share.

    The order depends only on the seed. Rank r of W processes therefore gets the r-th share of the batch that a single
    process would get, and a stream that starts at batch k is identical to the rest of an uninterrupted one.

    Each sample has a position, which counts the samples of all processes and seeds its augmentation.

    Args:
        size: Number of images.
        batch_size: Total number of images in a batch over all processes; a multiple of `world_size`.
        seed: Seed of the permutations, 0 or greater.
        groups: Group of each image. None puts all images into one group.
        repeat_factors: Average number of times that each image appears in an epoch (LVIS, arXiv 1908.03195,
            appendix B.2), or with a mixture in a permutation of its data set. None uses each image once.
        mixture: Shares of the data sets that the images belong to. None draws each image equally often.
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
        mixture: Mixture | None = None,
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
        self.mixture = mixture
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
        for index in self._indices():
            batch = waiting.setdefault(0 if self.groups is None else self.groups[index], [])
            batch.append(index)
            if len(batch) == self.batch_size:
                yield batch.copy()
                batch.clear()

    def _indices(self) -> Iterator[int]:
        """Yield the image indices of one epoch after another."""
        if self.mixture is None:
            yield from self._permutations(range(self.size))
            return
        # Zeros at the end of a seed have no effect, so the numbers of the data sets start at 1.
        sources = [self._permutations(images, number) for number, images in enumerate(self.mixture.images, 1)]
        for epoch in itertools.count():
            generator = np.random.default_rng((self.seed, epoch))
            counts = self.mixture.counts(self.size, generator)
            drawn = [index for source, count in zip(sources, counts, strict=True) for index in islice(source, count)]
            yield from generator.permutation(drawn).tolist()

    def _permutations(self, images: range, *key: int) -> Iterator[int]:
        """Yield the indices of some images in random order, again and again. `key` makes the orders unique."""
        for number in itertools.count():
            generator = np.random.default_rng((self.seed, number, *key))
            if self.repeat_factors is None:
                yield from (images.start + generator.permutation(len(images))).tolist()
                continue
            factors = self.repeat_factors[images.start : images.stop]
            whole = np.floor(factors)
            times = whole + (generator.random(len(images)) < factors - whole)
            yield from generator.permutation(np.repeat(images, times.astype(np.int64))).tolist()
