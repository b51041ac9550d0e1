"""Descriptions of augmentations tell apart what differs, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import transforms as T
from torchvision.transforms import v2

from pvt_det.data.augmentation.describe import describe_augmentation
from pvt_det.data.augmentation.torchvision import TorchvisionAugmentation


class Own(T.Augmentation):
    """An augmentation with a private attribute, of which Detectron2's own description is its address in memory."""

    def __init__(self, amount):
        self._amount = amount


def make(value):
    """Augmentations of all kinds with a parameter, by kind."""
    return {
        "detectron2": T.RandomFlip(prob=value),
        "transform": T.BlendTransform(np.full(3, value), 0.5, 0.5),
        "nested": T.RandomApply(T.AugmentationList([T.RandomBrightness(value, 2)])),
        "own": Own(value),
        "torchvision": TorchvisionAugmentation(v2.Compose([v2.RandomApply([v2.ColorJitter(value)])])),
        "function": TorchvisionAugmentation(v2.Lambda((lambda x: x) if value < 0.5 else (lambda x: x + 1))),
    }


@pytest.mark.parametrize("kind", list(make(0.1)))
def test_description_depends_on_the_parameters_only(kind):
    one, same, other = (describe_augmentation(make(value)[kind]) for value in (0.1, 0.1, 0.9))
    assert one == same
    assert one != other
    assert " at 0x" not in one


def test_description_is_readable():
    assert describe_augmentation(T.RandomFlip(prob=0.5)) == "RandomFlip(horizontal=True, prob=0.5, vertical=False)"


def test_long_description_is_cut_but_differs():
    one, other = (describe_augmentation(Own([*range(1000), last])) for last in (1, 2))
    assert len(one) < 450
    assert one != other
