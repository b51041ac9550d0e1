"""Decode the predictions of a dense detector for a whole batch at once instead of per image and level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor


class BoxTransform(Protocol):
    """Computes boxes from anchors and the outputs of a head, such as Detectron2's `Box2BoxTransform`."""

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Compute boxes.

        Args:
            deltas: Outputs of the head, `P×B`.
            boxes: Anchors `P×4`.

        Returns:
            Boxes `P×4`.
        """


def decode(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    transform: BoxTransform,
    *,
    centerness: Sequence[Tensor] | None = None,
    threshold: float,
    limit: int,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Select the candidates for non-maximum suppression: the highest scores of each image and level.

    Only few anchors of a trained detector have a score above the threshold. So we first compute the largest logit of
    each anchor, and neither compute nor store anything else of the size of the predictions. This synchronizes with the
    GPU once per level, plus twice, regardless of the number of images.

    Args:
        logits: Classification logits of each level, `N×R_l×K`, with any floating-point dtype.
        deltas: Box deltas of each level, `N×R_l×B`.
        anchors: Anchors of each level, `R_l×4`, as (x1, y1, x2, y2) in pixels of the input.
        transform: Transform that applies deltas to anchors.
        centerness: Logits of the centerness of each level, `N×R_l×1`. Its sigmoid is multiplied with the scores of
            the candidates. None leaves the scores unchanged.
        threshold: Candidates must have a class score above this threshold, in [0, 1].
        limit: Maximum number of candidates per image and level.

    Returns:
        Boxes `M×4`, scores `M` and classes `M` of each image, ordered by level and by descending score within a level.
    """
    num_images = len(logits[0])
    min_logit = _min_logit(threshold)
    outputs = (logits, deltas) if centerness is None else (logits, deltas, centerness)
    levels = [
        _select_anchors(level, level_anchors, min_logit=min_logit, first_group=index * num_images)
        for index, (*level, level_anchors) in enumerate(zip(*outputs, anchors, strict=True))
    ]
    group, anchor, logit, delta, *factor = (torch.cat(parts) for parts in zip(*levels, strict=True))
    all_scores = logit.float().sigmoid_()
    row, label = (all_scores > threshold).nonzero(as_tuple=True)
    scores = all_scores[row, label]
    if factor:
        scores *= factor[0][row, 0].float().sigmoid_()

    groups = torch.arange(len(levels) * num_images + 1, device=group.device)
    sizes = torch.searchsorted(group[row], groups).diff().tolist()
    starts = [0, *accumulate(sizes[:-1])]
    # The order of equal scores, which are frequent in bf16, depends on all scores that are sorted together. A separate
    # call for each group gives the same order as Detectron2.
    grouped = zip(starts, scores.split(sizes), strict=True)
    best = [start + group_scores.topk(min(limit, len(group_scores))).indices for start, group_scores in grouped]
    per_image = [torch.cat(best[image::num_images]) for image in range(num_images)]

    selected = torch.cat(per_image)
    boxes = transform.apply_deltas(delta[row[selected]], anchor[row[selected]])
    counts = [len(indices) for indices in per_image]
    return list(zip(boxes.split(counts), scores[selected].split(counts), label[selected].split(counts), strict=True))


def _select_anchors(
    outputs: Sequence[Tensor], anchors: Tensor, *, min_logit: float, first_group: int
) -> tuple[Tensor, ...]:
    """Select the S anchors of a level that have a logit above `min_logit`.

    Returns their groups `S`, anchors `S×4`, and outputs of the head: logits `S×K`, deltas `S×B` and further ones. A
    group is one image of one level. Groups are in ascending order.
    """
    row = (outputs[0].amax(dim=2).flatten().float() > min_logit).nonzero()[:, 0]
    image, position = row // len(anchors), row % len(anchors)
    return first_group + image, anchors[position], *(output.flatten(0, 1).index_select(0, row) for output in outputs)


def _min_logit(threshold: float) -> float:
    """Return a lower bound of the logits of all scores above `threshold`, with a margin for rounding."""
    return torch.tensor(threshold - 1e-6, dtype=torch.float64).clamp(0, 1).logit().item()
