"""Dense predictions to boxes, for a whole batch at once: what Detectron2's RetinaNet does by image and level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor


def decode(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    transform: Box2BoxTransform,
    *,
    threshold: float,
    limit: int,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Find the candidates for non-maximum suppression: of each image and level the best of the scores that pass.

    Nearly no anchor of a trained detector has a score that passes. So each anchor's largest logit is looked at first,
    and nothing else of the predictions' size is computed or stored. However many images there are, a GPU is waited for
    once a level and twice more.

    Args:
        logits: Each level's, `N×R_l×K`, of any floating type.
        deltas: Each level's, `N×R_l×4`.
        anchors: Each level's, `R_l×4`.
        transform: Moves anchors by deltas.
        threshold: Scores above this pass.
        limit: So many candidates are kept of an image and level.

    Returns:
        Each image's boxes `M×4`, scores `M` and classes `M`; level after level, each from its highest score down.
    """
    num_images = len(logits[0])
    least = _least_logit(threshold)
    levels = [
        _promising(*level, least=least, first_group=number * num_images)
        for number, level in enumerate(zip(logits, deltas, anchors, strict=True))
    ]
    group, logit, delta, anchor = (torch.cat(parts) for parts in zip(*levels, strict=True))
    all_scores = logit.float().sigmoid_()
    row, label = (all_scores > threshold).nonzero(as_tuple=True)
    scores = all_scores[row, label]

    groups = torch.arange(len(levels) * num_images + 1, device=group.device)
    sizes = torch.searchsorted(group[row], groups).diff().tolist()
    starts = [0, *accumulate(sizes[:-1])]
    # How torch orders equal scores, of which logits in bf16 make many, depends on what it is given to sort: each group
    # has its own call, so that the order is Detectron2's.
    parts = zip(starts, scores.split(sizes), strict=True)
    best = [start + part.topk(min(limit, len(part))).indices for start, part in parts]
    of_images = [torch.cat(best[image::num_images]) for image in range(num_images)]

    chosen = torch.cat(of_images)
    boxes = transform.apply_deltas(delta[row[chosen]], anchor[row[chosen]])
    counts = [len(part) for part in of_images]
    return list(zip(boxes.split(counts), scores[chosen].split(counts), label[chosen].split(counts), strict=True))


def _promising(
    logits: Tensor, deltas: Tensor, anchors: Tensor, *, least: float, first_group: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a level's anchors that have a logit above `least`: group `S`, logits `S×K`, deltas `S×4` and anchors `S×4`.

    A group is an image of a level; they are in order.
    """
    row = (logits.amax(dim=2).flatten().float() > least).nonzero()[:, 0]
    image, position = row // len(anchors), row % len(anchors)
    return first_group + image, logits.flatten(0, 1).index_select(0, row), deltas.flatten(0, 1)[row], anchors[position]


def _least_logit(threshold: float) -> float:
    """A logit below those of all scores above `threshold`, however scores are rounded."""
    return torch.tensor(threshold - 1e-6, dtype=torch.float64).clamp(0, 1).logit().item()
