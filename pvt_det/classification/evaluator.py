"""Measure the top-1 and top-5 accuracy of a classifier on the validation images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pvt_det.data.imagenet.folders import ImageSource
from pvt_det.data.imagenet.loader import why_broken
from pvt_det.data.imagenet.transforms import DeviceInput
from pvt_det.errors import DataError
from pvt_det.utils.distributed import Process
from pvt_det.utils.progress import track
from pvt_det.utils.text import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accuracy:
    """The result of an evaluation.

    Attributes:
        top1: Percentage of images whose class has the largest logit, 0 to 100.
        top5: Percentage of images whose class has one of the five largest logits, 0 to 100.
        loss: Mean cross-entropy.
        images: Number of evaluated images, without broken ones.
    """

    top1: float
    top5: float
    loss: float
    images: int

    def __str__(self) -> str:
        return (
            f"top-1 {self.top1:.3f} %, top-5 {self.top5:.3f} %, loss {self.loss:.4f} on {counted(self.images, 'image')}"
        )


def accuracy_metrics(top1: float, top5: float) -> dict[str, dict[str, float | None]]:
    """Return accuracies as the metrics of a checkpoint.

    Args:
        top1: Top-1 accuracy in percent, negative if it was not measured.
        top5: Top-5 accuracy in percent.
    """
    return {"classification": {"top1": top1, "top5": top5}} if top1 >= 0 else {}


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a classifier on the images of all processes.

    Attributes:
        source: All validation images, used to name the broken ones.
        loader: The batches of this process.
        prepare: Moves a batch to the device and normalizes it.
        autocast: Returns the mixed precision context of the forward pass.
        process: This process and its device.
        max_broken: Maximum number of broken images, which are skipped.
    """

    source: ImageSource
    loader: DataLoader
    prepare: DeviceInput
    autocast: Callable[[], torch.autocast]
    process: Process
    max_broken: int

    @torch.inference_mode()
    def __call__(self, model: nn.Module, check_stop: Callable[[], None] | None = None) -> Accuracy:
        """Evaluate a model.

        Args:
            model: Maps `N×3×H×W` images to `N×K` logits. Its training or evaluation mode is restored afterwards.
            check_stop: Called before every batch. It may raise an exception to end the evaluation.

        Raises:
            DataError: More than `max_broken` images are broken, or all of them are.
        """
        was_training = model.training
        model.eval()
        # Apple GPUs have no float64.
        dtype = torch.float32 if self.process.device.type == "mps" else torch.float64
        sums = torch.zeros(4, dtype=dtype, device=self.process.device)
        broken: list[int] = []
        with self._tracked() as advance:
            for batch in self.loader:
                if check_stop:
                    check_stop()
                broken += batch.broken.tolist()
                with self.autocast():
                    logits = model(self.prepare(batch.images))
                sums += _batch_sums(logits, batch.labels.to(self.process.device))
                advance()
        model.train(was_training)
        broken = sorted(chain.from_iterable(self.process.gather(broken)))
        report_broken(broken, self.source, self.max_broken, self.process.is_main_process)
        top1, top5, loss, images = self.process.sum(sums).tolist()
        if not images:
            raise DataError("None of the validation images can be read. Check the folder given with --data.")
        return Accuracy(100 * top1 / images, 100 * top5 / images, loss / images, int(images))

    def _tracked(self) -> AbstractContextManager[Callable[[], None]]:
        """Show the progress of the main process, whose batches are its share. Yields a function to call after each."""
        is_shown = self.process.is_main_process
        return track("evaluating", len(self.loader)) if is_shown else nullcontext(lambda: None)


def _batch_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the top-1 hits, top-5 hits, summed loss and number of images. Broken images have negative labels."""
    logits, labels = logits[labels >= 0].float(), labels[labels >= 0]
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([hits[:, 0].sum(), hits.sum(), loss, torch.tensor(len(labels), device=loss.device)])


def report_broken(broken: list[int], source: ImageSource, limit: int, is_main_process: bool) -> None:
    """Log a warning that names the broken images, or raise an error if there are too many.

    Args:
        broken: Indices of the broken images in `source`.
        source: All images.
        limit: Maximum number of broken images.
        is_main_process: Whether this process logs the warning.

    Raises:
        DataError: More than `limit` images are broken.
    """
    reasons = [f"{source.name(index)} ({why_broken(source, index)})" for index in broken[:10]]
    if len(broken) > limit:
        raise DataError(
            f"{counted(len(broken), 'image is', 'images are')} broken, and max_broken allows {limit}: "
            f"{'; '.join(reasons)}. Fix or remove them, or raise --max-broken."
        )
    if is_main_process and broken:
        logger.warning("Skipped %s (%d allowed): %s", counted(len(broken), "broken image"), limit, "; ".join(reasons))
