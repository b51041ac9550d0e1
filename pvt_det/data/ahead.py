"""Tell a data set which samples come later, so that it can fetch them from an object store in the meantime."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import Sampler

# Samples to look ahead at least. At 20 ms per request, this many at a time are 3000 images per second.
_SAMPLES = 64


class Batch(list):
    """The samples of a batch.

    A data set gets it in `__getitems__`.

    Attributes:
        later: Samples of later batches that no batch before this one has named.
    """

    later: list[Any]


class LookAhead(Sampler[list[Any]]):
    """Yields the batches of another sampler as `Batch`.

    Attributes:
        batch_size: Number of samples per batch.

    Args:
        batches: Sampler of batches, which may be endless.
        batch_size: Number of samples per batch.
        workers: Number of worker processes, which work on as many batches at a time.
    """

    def __init__(self, batches: Iterable[list[Any]], batch_size: int, workers: int) -> None:
        self._batches, self.batch_size = batches, batch_size
        self._distance = max(2 * workers, math.ceil(_SAMPLES / batch_size))

    def __len__(self) -> int:
        """Return the number of batches, if the other sampler is not endless."""
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[Any]]:
        source = iter(self._batches)
        waiting = deque(islice(source, self._distance))
        later = [sample for batch in islice(waiting, 1, None) for sample in batch]
        while waiting:
            following = next(source, None)
            if following is not None:
                waiting.append(following)
                later.extend(following)
            batch = Batch(waiting.popleft())
            batch.later, later = later, []
            yield batch
