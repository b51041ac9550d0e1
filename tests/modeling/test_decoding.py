"""Batched decoding gives the same detections as Detectron2's RetinaNet, which decodes per image and level."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import ImageList

# Name: (classes, size of the finest map, candidates per level, standard deviation of the logits, mean logit per image)
CASES = {
    "more than the limit at one level": (80, (7, 9), 1000, 1.0, [-4.0]),
    "more than the limit at all levels": (3, (16, 11), 5, 2.0, [-1.0, -3.0, 0.0]),
    "fewer than the limit": (80, (13, 4), 1000, 0.3, [-4.0, -3.8]),
    "an image without detections": (7, (6, 5), 50, 1.0, [-3.0, -30.0, -4.0]),
    "no detections": (80, (5, 9), 1000, 1.0, [-30.0, -30.0]),
    "one class, one place": (1, (1, 1), 1000, 2.0, [0.0, -1.0]),
    "no thresholds": (2, (3, 14), 1000, 1.0, [-8.0, 8.0]),
}


@pytest.fixture(scope="module")
def logit_pool():
    """Return logits whose scores do not depend on their position in a tensor, which PyTorch on a CPU can violate."""
    logits = torch.arange(-(2**12), 2**12) / 2**8
    alone = torch.stack([logit.sigmoid() for logit in logits])
    return logits[alone == logits.repeat_interleave(64).sigmoid()[::64]]


def predict(model, case, pool, dtype, channels_last):
    """Return features and outputs of the head, with logits from the pool."""
    classes, side, _, spread, means = CASES[case]
    generator = torch.Generator().manual_seed(len(case))
    pool = pool[pool == pool.to(dtype)]
    features, logits, deltas = [], [], []
    memory = torch.channels_last if channels_last else torch.contiguous_format
    for _ in model.head_in_features:
        drawn = torch.randn(len(means), 9 * classes, *side, generator=generator) * spread
        drawn += torch.tensor(means)[:, None, None, None]
        nearest = pool[torch.searchsorted(pool, drawn).clamp(max=len(pool) - 1)]
        logits.append(nearest.to(dtype, memory_format=memory))
        level_deltas = 0.3 * torch.randn(len(means), 36, *side, generator=generator)
        deltas.append(level_deltas.to(dtype, memory_format=memory))
        features.append(torch.empty(len(means), 1, *side))
        side = tuple((length + 1) // 2 for length in side)
    return features, [logits, deltas]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_detections_match_detectron2(build, logit_pool, dtype):
    """Detections have the same order too, although many scores are equal in both dtypes."""
    model = build("retinanet_pvt_v2_b0").eval()
    numbers = {}
    for case, (classes, _, limit, _, means) in CASES.items():
        model.num_classes, model.test_topk_candidates = classes, limit
        model.test_score_thresh = 0.0 if case == "no thresholds" else 0.05
        features, predictions = predict(model, case, logit_pool, dtype, channels_last=len(case) % 2 == 0)
        images = ImageList(torch.empty(0), [(40 + n, 50) for n in range(len(means))])
        ours = model.forward_inference(images, features, predictions)
        # Detectron2 applies the sigmoid in place.
        in_fp32 = [[level.float().clone() for level in levels] for levels in predictions]
        theirs = RetinaNet.forward_inference(model, images, features, in_fp32)
        for got, expected in zip(ours, theirs, strict=True):
            assert got.image_size == expected.image_size
            assert list(got.get_fields()) == list(expected.get_fields())
            assert torch.equal(got.scores, expected.scores), case
            assert torch.equal(got.pred_classes, expected.pred_classes), case
            assert torch.equal(got.pred_boxes.tensor, expected.pred_boxes.tensor), case
        numbers[case] = [len(instances) for instances in ours]
    assert numbers["more than the limit at one level"] == [100]
    assert numbers["no detections"] == [0, 0]
    assert 0 < min(numbers["one class, one place"]) < 100
    assert numbers["an image without detections"][1] == 0 < numbers["an image without detections"][2]
