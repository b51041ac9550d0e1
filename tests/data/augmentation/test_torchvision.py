"""Tests of torchvision's transforms as augmentations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from torchvision import tv_tensors
from torchvision.transforms import v2

from pvt_det.data.augmentation.torchvision import TorchvisionAugmentation, as_augmentations
from pvt_det.errors import ConfigError


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_flip_equals_that_of_detectron2(image):
    boxes = np.array([[5.0, 10, 20, 30], [0, 0, 60, 40]])
    mask = image[..., 0] > 128
    ours = TorchvisionAugmentation(v2.RandomHorizontalFlip(p=1)).get_transform(image)
    theirs = T.HFlipTransform(60)
    assert np.array_equal(ours.apply_image(image), theirs.apply_image(image))
    assert np.allclose(ours.apply_box(boxes), theirs.apply_box(boxes))
    assert np.array_equal(ours.apply_segmentation(mask), theirs.apply_segmentation(mask))


def test_boxes_and_masks_follow_the_image():
    # A bright rectangle: its box and mask must stay on it.
    image = np.zeros((64, 80, 3), dtype=np.uint8)
    image[20:40, 30:60] = 255
    crop = v2.Compose([v2.RandomCrop((48, 64)), v2.RandomVerticalFlip()])
    augmentation = TorchvisionAugmentation(crop)
    for seed in range(8):
        torch.manual_seed(seed)
        drawn = augmentation.get_transform(image)
        bright = drawn.apply_image(image)[..., 0] > 0
        rows, columns = np.nonzero(bright)
        ((left, top, right, bottom),) = drawn.apply_box(np.array([[30.0, 20, 60, 40]])).clip(0, [64, 48, 64, 48])
        assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.array_equal(drawn.apply_segmentation((image[..., 0] > 0).astype(np.uint8)) > 0, bright)


def test_colors_leave_objects_alone(image):
    drawn = TorchvisionAugmentation(v2.ColorJitter(brightness=(0.5, 0.6))).get_transform(image)
    boxes = np.array([[5.0, 10, 20, 30]])
    assert drawn.apply_image(image).mean() < 0.7 * image.mean()
    assert drawn.apply_box(boxes) is not None
    assert np.array_equal(drawn.apply_box(boxes), boxes)


def test_randomness_is_that_of_torch(image):
    augmentation = TorchvisionAugmentation(v2.ColorJitter(brightness=0.5, hue=0.2))
    pixels = []
    for seed in (3, 3, 4):
        np.random.seed(len(pixels))
        torch.manual_seed(seed)
        pixels.append(augmentation.get_transform(image).apply_image(image))
    assert np.array_equal(pixels[0], pixels[1])
    assert not np.array_equal(pixels[0], pixels[2])


class Counted(v2.RandomRotation):
    """A rotation that counts the images that it rotates."""

    images = 0

    def transform(self, inpt, params):
        self.images += isinstance(inpt, tv_tensors.Image)
        return super().transform(inpt, params)


def test_transform_runs_once_however_many_objects_there_are(image):
    rotation = Counted(30)
    drawn = TorchvisionAugmentation(v2.Compose([v2.RandomChoice([rotation]), v2.ColorJitter(0.5)])).get_transform(image)
    polygon = np.array([[10.0, 10], [40, 10], [40, 30]])
    assert np.array_equal(drawn.apply_coords(polygon), drawn.apply_coords(polygon))
    assert not np.allclose(drawn.apply_coords(polygon), polygon)
    for _ in range(3):
        drawn.apply_segmentation(image[..., 0])
    assert rotation.images == 1
    assert "transform" not in vars(rotation)


def test_image_of_a_bgr_model_is_given_as_rgb(image):
    gray = v2.Grayscale(num_output_channels=3)
    rgb = TorchvisionAugmentation(gray).get_transform(image).apply_image(image)
    bgr = TorchvisionAugmentation(gray, "BGR").get_transform(image[:, :, ::-1]).apply_image(image)
    assert np.array_equal(rgb, bgr[:, :, ::-1])


class OwnForward(v2.Transform):
    """A flip of everything that bypasses torchvision's `transform`."""

    def forward(self, *inputs):
        return v2.RandomHorizontalFlip(1)(*inputs)


@pytest.mark.parametrize(
    ("transform", "problem"),
    [
        (v2.ToDtype(torch.float32, scale=True), r"turns the uint8 image into torch\.float32"),
        (v2.ToPILImage(), "turns the uint8 image into Image"),
        (v2.RandomIoUCrop(), "depends on the boxes"),
        (v2.Compose([v2.SanitizeBoundingBoxes()]), "^SanitizeBoundingBoxes.* depends on the boxes"),
        (v2.RandAugment(), "Expected a transform that maps an image to an image"),
        (v2.RandomCrop(1000), "cannot be used as an augmentation: Required crop size"),
        (OwnForward(), "overrides `forward`"),
        (v2.Compose([v2.ColorJitter(), len]), r"len.* is not a transform .*v2\.Lambda"),
    ],
)
def test_unsuitable_transforms_are_refused(image, transform, problem):
    with pytest.raises(ConfigError, match=problem):
        TorchvisionAugmentation(transform).get_transform(image)


def test_augmentations_of_both_libraries_are_accepted():
    flip, jitter = T.RandomFlip(), v2.ColorJitter()
    first, second, third = as_augmentations([flip, jitter, T.HFlipTransform(10)])
    assert first is flip
    assert isinstance(second, TorchvisionAugmentation)
    assert isinstance(third, T.Augmentation)
    with pytest.raises(ConfigError, match=r"is a str\. Expected an Augmentation"):
        as_augmentations(["flip"])
