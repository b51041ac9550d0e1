"""Measure what the time of a prediction is spent on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from pvt_det.utils.text import counted


class Times:
    """Adds up the time that the main process spends on reading, on the model, and on writing.

    With worker processes, reading and writing are only the times in which the model waits for them.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(("model", "reading", "writing"), 0.0)

    @contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """Context manager whose time is added to a part.

        Args:
            part: "model", "reading" or "writing".
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - start

    @property
    def total(self) -> float:
        """Seconds in all parts."""
        return sum(self._seconds.values())

    def share(self, part: str) -> float:
        """Return the fraction of the time that was spent on a part, 0 to 1.

        Args:
            part: "model", "reading" or "writing".
        """
        return self._seconds[part] / max(self.total, 1e-9)

    def describe(self, images: int) -> str:
        """Return the speed and the shares, such as "500 images in 203 s, 2.5 per second: the model was busy 97% …".

        Args:
            images: Number of images.
        """
        shares = [f"{self.share(part):.0%} {part}" for part in ("reading", "writing")]
        speed = f"{counted(images, 'image')} in {self.total:.0f} s, {images / max(self.total, 1e-9):.1f} per second"
        return f"{speed}: the model was busy {self.share('model'):.0%} of the time ({', '.join(shares)})"
