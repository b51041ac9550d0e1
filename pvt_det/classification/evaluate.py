"""Top-1 and top-5 accuracy."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from pvt_det.data.imagenet.folders import ImageSource
from pvt_det.data.imagenet.loader import why_broken
from pvt_det.data.imagenet.transforms import DeviceInput
from pvt_det.errors import DataError
from pvt_det.utils.distributed import Process

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accuracy:
    """The outcome of an evaluation.

    Attributes:
        top1: Percent of the images whose class has the largest logit.
        top5: Percent whose class is among the five largest.
        loss: Mean cross-entropy.
        images: Number of images, without broken ones.
    """

    top1: float
    top5: float
    loss: float
    images: int

    def __str__(self) -> str:
        return f"top-1 {self.top1:.3f} %, top-5 {self.top5:.3f} %, loss {self.loss:.4f} on {self.images:,} images"


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    source: ImageSource,
    prepare: DeviceInput,
    autocast: Callable[[], torch.autocast],
    process: Process,
    *,
    max_broken: int,
    check_stop: Callable[[int], None] = lambda batch: None,
) -> Accuracy:
    """Evaluate `model` over the images of all processes.

    Args:
        model: Returns logits; left in the mode in which it came.
        loader: This process's share of the images.
        source: All images, to name broken ones.
        prepare: Brings a batch to the device and normalises it.
        autocast: The number format of the forward pass.
        process: This process.
        max_broken: Broken images that are tolerated, and left out.
        check_stop: Called with the number of every batch, before it; may raise to end the evaluation.

    Raises:
        DataError: More images are broken.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=process.device)
    broken: list[int] = []
    for number, batch in enumerate(loader):
        check_stop(number)
        broken += batch.broken.tolist()
        with autocast():
            logits = model(prepare(batch.images))
        labels = batch.labels.to(process.device)
        logits, labels = logits[labels >= 0].float(), labels[labels >= 0]
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([hits[:, 0].sum(), hits.sum(), loss, torch.tensor(len(labels), device=loss.device)])
    model.train(was_training)
    report_broken(sorted(chain.from_iterable(process.gather(broken))), source, max_broken, process.is_main_process)
    top1, top5, total_loss, images = process.sum(sums).tolist()
    if not images:
        raise DataError("none of the validation images can be read.")
    return Accuracy(100 * top1 / images, 100 * top5 / images, total_loss / images, int(images))


def report_broken(broken: list[int], source: ImageSource, limit: int, is_main: bool) -> None:
    """Name broken images, and stop if they are too many.

    Raises:
        DataError: There are more than `limit`.
    """
    named = [f"{source.name(index)} ({why_broken(source, index)})" for index in broken[:10]]
    if len(broken) > limit:
        raise DataError(
            f"{len(broken)} images are broken, and max_broken allows {limit}: {'; '.join(named)}. Mend or remove them, "
            "or raise --max-broken."
        )
    if is_main and broken:
        _log.warning("Left out %d broken images (%d allowed): %s", len(broken), limit, "; ".join(named))
