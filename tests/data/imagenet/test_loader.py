"""Decoding, augmentation, evaluation crop, and randomness that depends only on a sample's position."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pvt_det.data.imagenet.folders import FileImages, open_images
from pvt_det.data.imagenet.loader import EvalImages, TrainImages, TrainSampler, build_eval_loader, build_train_loader
from pvt_det.data.imagenet.transforms import (
    Augmentation,
    BrokenImageError,
    DeviceInput,
    EvalTransform,
    TrainTransform,
    decode_rgb,
)
from pvt_det.errors import ConfigError, DataError
from tests.data.imagenet.fakes import class_folders, jpeg


def _encoded(mode: str, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(3))).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(jpeg(1, (251, 187)), id="odd size"),
        pytest.param(_encoded("L", "JPEG"), id="gray"),
        pytest.param(_encoded("CMYK", "JPEG"), id="cmyk"),
        pytest.param(_encoded("P", "PNG"), id="palette"),
        pytest.param(_encoded("RGBA", "PNG"), id="alpha"),
        pytest.param(_encoded("RGB", "JPEG", progressive=True), id="progressive"),
        pytest.param(_encoded("RGB", "JPEG", subsampling=0), id="444"),
    ],
)
def test_decoding_matches_pillow(content):
    assert np.array_equal(decode_rgb(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize("content", [b"", b"text", jpeg(1)[:600], _encoded("RGB", "PNG")[:-40]])
def test_broken_image_is_detected(content):
    with pytest.raises(BrokenImageError):
        decode_rgb(content)


def test_training_crop_matches_pillow_closely():
    """Without other augmentations, the crop differs from timm's by at most a few levels."""
    image = decode_rgb(jpeg(5, (200, 160)))
    plain = Augmentation(crop_scale=(0.3, 0.9), flip=0.0, rand_augment="", color_jitter=0.0)
    transform = TrainTransform(64, plain)
    for seed in range(5):
        random.seed(seed)
        ours = transform(image)
        assert ours.shape == (3, 64, 64)
        assert ours.dtype == torch.uint8
        random.seed(seed)
        top, left, height, width = transform._crop.get_params(torch.empty(3, 160, 200), (0.3, 0.9), (3 / 4, 4 / 3))
        assert 0.3 * 0.9 < height * width / (200 * 160) < 0.9 * 1.1
        box = (left, top, left + width, top + height)
        theirs = np.asarray(Image.fromarray(image).crop(box).resize((64, 64), Image.Resampling.BICUBIC))
        difference = np.abs(ours.permute(1, 2, 0).numpy().astype(int) - theirs)
        assert difference.max() <= 3
        assert difference.mean() < 0.1


def test_published_augmentation_never_fails():
    """timm sometimes posterizes to 0 bits, which Pillow 13 refuses."""
    transform = TrainTransform(32, Augmentation(rand_augment="rand-m10-n4-p1.0-inc1"))
    posterize = next(op for op in transform._rest.transforms[1].ops if op.name == "PosterizeIncreasing")
    image = Image.fromarray(decode_rgb(jpeg(2)))
    assert np.asarray(posterize(image)).max() == 0
    assert np.array_equal(np.asarray(posterize.aug_fn(image, 3)), np.asarray(ImageOps.posterize(image, 3)))
    for seed in range(30):
        random.seed(seed)
        np.random.seed(seed)
        assert transform(decode_rgb(jpeg(seed))).shape == (3, 32, 32)


def test_invalid_rand_augment_is_reported():
    with pytest.raises(ConfigError, match="rand_augment 'rand-q9'"):
        TrainTransform(32, Augmentation(rand_augment="rand-q9"))


def test_evaluation_resizes_to_256_and_crops_224():
    image = decode_rgb(jpeg(4, (400, 300)))
    # 400 × 300 becomes int(400 · 256 / 300) = 341 × 256; the center crop starts at round((341 - 224) / 2) = 58, 16.
    expected = Image.fromarray(image).resize((341, 256), Image.Resampling.BICUBIC).crop((58, 16, 58 + 224, 16 + 224))
    result = EvalTransform(224, 0.875, "bicubic")(image)
    assert np.array_equal(result.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_device_input_normalizes_and_erases():
    images = torch.randint(0, 256, (64, 3, 20, 20), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    plain = DeviceInput(torch.device("cpu"), channels_last=True)(images)
    assert torch.allclose(plain, expected, atol=1e-5)
    assert plain.is_contiguous(memory_format=torch.channels_last)
    random.seed(0)
    erased = DeviceInput(torch.device("cpu"), erase_prob=0.25)(images) != plain
    share = erased.flatten(1).any(1).float().mean()
    assert 0.1 < share < 0.4
    area = erased.any(1).float().mean((1, 2))
    assert area[area > 0].min() > 0.01
    assert area.max() < 0.35


@pytest.fixture
def images(tmp_path) -> FileImages:
    return open_images(class_folders(tmp_path / "set", train=9, val=5), "train")


def _batches(images, workers, epoch=0, start=0, rank=0, world=1, size=4, repeats=3):
    sampler = TrainSampler(len(images), repeats, seed=5, rank=rank, world_size=world)
    sampler.set_position(epoch, start)
    dataset = TrainImages(images, TrainTransform(32, Augmentation()), seed=5)
    return list(build_train_loader(dataset, sampler, size, workers, pin=False))


def _same(left, right) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in zip(left, right, strict=True)
    )


def test_batches_do_not_depend_on_workers_or_history(images):
    batches = _batches(images, workers=0)
    assert len(batches) == 27 // 4
    assert _same(batches, _batches(images, workers=2))
    assert _same(batches[3:], _batches(images, workers=1, start=12))
    assert not _same(batches, _batches(images, workers=0, epoch=1))


def test_two_processes_share_the_batches_of_one(images):
    whole = _batches(images, 0, size=6)
    halves = [_batches(images, 0, rank=rank, world=2, size=3) for rank in (0, 1)]
    for number, batch in enumerate(whole):
        assert torch.equal(batch.images[0::2], halves[0][number].images)
        assert torch.equal(batch.images[1::2], halves[1][number].images)


def test_repeated_augmentation(images):
    sampler = TrainSampler(300, repeats=3, seed=0)
    keys = list(sampler)
    assert len(keys) == 256  # a multiple of 256, as in the published sampler
    assert all(keys[i].image == keys[i + 1].image == keys[i + 2].image for i in range(0, 255, 3))
    assert len({key.image for key in keys}) == 86
    assert [key.position for key in keys] == list(range(256))
    once = list(TrainSampler(300, repeats=1, seed=0))
    assert sorted(key.image for key in once) == list(range(300))
    assert [key.image for key in TrainSampler(300, repeats=1, seed=1)] != [key.image for key in once]


def test_broken_training_image_is_reported_and_replaced(images):
    Path(images.name(4)).write_bytes(jpeg(4)[:500])
    Path(images.name(11)).unlink()
    batches = _batches(images, workers=2, size=9, repeats=1)
    assert sorted(torch.cat([batch.broken for batch in batches]).tolist()) == [4, 11]
    # The next image replaces the broken one, here with the same class.
    labels = torch.cat([batch.labels for batch in batches])
    assert torch.bincount(labels).tolist() == [9, 9, 9]


def test_unreadable_data_set_is_an_error(images):
    for index in range(len(images)):
        Path(images.name(index)).unlink()
    with pytest.raises(DataError, match="and the 19 images after it cannot be read"):
        _batches(images, workers=0)


def test_processes_share_the_evaluation_without_duplicates(tmp_path):
    images = open_images(class_folders(tmp_path / "set", val=5), "val")
    dataset = EvalImages(images, EvalTransform(32, 0.875, "bicubic"), 32)
    shares = [torch.cat([b.labels for b in build_eval_loader(dataset, 4, 0, False, rank, 2)]) for rank in (0, 1)]
    assert [len(share) for share in shares] == [8, 7]
    assert sorted(torch.cat(shares).tolist()) == sorted(images.labels.tolist())
