"""Mosaic and copy-paste: objects match their pixels, and samples depend only on seed and position."""

from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_util

from pvt_det.config import get_config
from pvt_det.data.augmentation.mixing import Mixer
from pvt_det.data.loader import build_detection_train_loader
from pvt_det.data.mapper import PVTDatasetMapper
from pvt_det.data.sets import register_datasets
from pvt_det.data.targets import Labelled, Targets
from pvt_det.errors import DataError
from tests.scripts import dataset_script

write_shapes = dataset_script("make_shapes").write_shapes

BACKGROUND = (1, 2, 3)
# All objects of a class have its color, on a black background.
COLORS = np.array([(240, 20, 20), (20, 240, 20), (20, 20, 240), (240, 240, 20)])


def labelled(seed: int, form: str, size: tuple[int, int] | None = None) -> Labelled:
    """Return a black image with one to four separate rectangles in the colors of their classes."""
    generator = np.random.default_rng(seed)
    height, width = size or generator.integers(60, 120, 2)
    image = np.zeros((height, width, 3), np.uint8)
    boxes, classes, masks = [], [], []
    # At most one rectangle per quadrant, with a gap around it.
    for quadrant in generator.permutation(4)[: generator.integers(1, 5)]:
        x, y = (quadrant % 2) * (width // 2), (quadrant // 2) * (height // 2)
        x1, y1 = x + generator.integers(2, 8), y + generator.integers(2, 8)
        x2, y2 = x1 + generator.integers(12, width // 2 - 10), y1 + generator.integers(12, height // 2 - 10)
        label = int(generator.integers(len(COLORS)))
        image[y1:y2, x1:x2] = COLORS[label]
        boxes.append((x1, y1, x2, y2))
        classes.append(label)
        if form == "polygon":
            masks.append([np.array([x1, y1, x2, y1, x2, y2, x1, y2], np.float32)])
        elif form == "rle":
            bitmap = np.zeros((height, width), np.uint8, order="F")
            bitmap[y1:y2, x1:x2] = 1
            masks.append(mask_util.encode(bitmap))
    return Labelled(image, Targets(np.array(boxes, float), np.array(classes), masks if form != "none" else None))


def mix(form: str, seed: int, *, mosaic: float = 0, copy_paste: float = 0, scale=(0.5, 1.5), size=None) -> Labelled:
    mixer = Mixer(mosaic, scale, copy_paste, scale, BACKGROUND)
    first = labelled(seed, form, size)
    return mixer(
        first,
        np.random.default_rng(seed),
        lambda generator: labelled(1000 + int(generator.integers(1000)), form, size),
    )


def check(sample: Labelled) -> None:
    """Check that boxes and masks cover pixels of their class, and that boxes are as tight as the masks."""
    height, width = sample.image.shape[:2]
    targets = sample.targets
    assert len(targets.boxes) == len(targets.classes)
    assert (targets.boxes >= 0).all()
    assert (targets.boxes <= (width, height) * 2).all()
    assert (targets.boxes[:, 2:] > targets.boxes[:, :2]).all()
    for index, (box, label) in enumerate(zip(targets.boxes, targets.classes, strict=True)):
        # Two pixels along each edge may be blended with their neighbors.
        x1, y1 = (np.ceil(box[:2]) + 2).astype(int)
        x2, y2 = np.maximum(np.floor(box[2:]) - 2, 0).astype(int)
        if targets.masks is None:
            inner = sample.image[y1:y2, x1:x2].reshape(-1, 3)
        else:
            bitmap = mask_util.decode(targets.masks[index])
            assert bitmap.shape == (height, width)
            rows, columns = np.nonzero(bitmap)
            assert tuple(box) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            eroded = bitmap[2:-2, 2:-2].copy()
            for down in range(-2, 3):
                for right in range(-2, 3):
                    eroded &= bitmap[2 + down : height - 2 + down, 2 + right : width - 2 + right]
            inner = sample.image[2:-2, 2:-2][eroded > 0]
        assert (np.abs(inner.astype(int) - COLORS[label]) <= 2).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["polygon", "rle", "none"]))
def test_mosaic(seed, form):
    first = labelled(seed, form)
    sample = mix(form, seed, mosaic=1)
    assert sample.image.shape == first.image.shape
    check(sample)
    # All colored pixels belong to an object, except slivers of dropped objects.
    covered = np.zeros(sample.image.shape[:2], bool)
    for x1, y1, x2, y2 in sample.targets.boxes:
        covered[int(max(0, y1 - 2)) : int(y2 + 3), int(max(0, x1 - 2)) : int(x2 + 3)] = True
    colored = sample.image.max(axis=2) > 100
    assert (colored & ~covered).mean() <= 0.1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["polygon", "rle"]))
def test_copy_paste(seed, form):
    sample = mix(form, seed, copy_paste=1)
    if isinstance(sample.targets.masks[0], dict):  # masks remain polygons if nothing was pasted
        check(sample)


def test_copy_paste_hides_objects_below():
    """At scale 1 nothing is interpolated, so the pixels show exactly which object is in front."""
    pasted = 0
    for seed in range(30):
        before = labelled(seed, "rle", (80, 100))
        after = mix("rle", seed, copy_paste=1, scale=(1, 1), size=(80, 100))
        total = np.zeros((80, 100), int)
        for mask, label in zip(after.targets.masks, after.targets.classes, strict=True):
            bitmap = mask_util.decode(mask)
            total += bitmap
            assert (after.image[bitmap > 0] == COLORS[label]).all()
        assert total.max() <= 1  # no pixel belongs to two objects
        changed = (before.image != after.image).any(axis=2)
        pasted += changed.any()
        for x1, y1, x2, y2 in before.targets.boxes.astype(int):
            part = np.s_[y1:y2, x1:x2]
            hidden = changed[part].mean()
            kept = (total[part] > 0) & ~changed[part]
            assert (kept.sum() > 0) == (hidden <= 0.9)
    assert pasted > 15


def test_probabilities():
    same = mix("rle", 3)
    assert (same.image == labelled(3, "rle").image).all()
    mixed = [(mix("rle", seed, mosaic=0.3).image != labelled(seed, "rle").image).any() for seed in range(200)]
    assert 0.2 < np.mean(mixed) < 0.4


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixing")
    write_shapes(folder, train=12, val=2)
    return folder


@pytest.fixture
def cfg(shapes):
    cfg = get_config()
    cfg.DATASETS.TRAIN_JSON = str(shapes / "annotations/instances_train.json")
    cfg.DATASETS.TRAIN_IMAGES = str(shapes / "train")
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = (96, 128)
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 7
    cfg.INPUT.MOSAIC.PROBABILITY = 0.5
    cfg.INPUT.COPY_PASTE.PROBABILITY = 0.5
    cfg.INPUT.COLOR_AUG_SSD = True
    return cfg


def batches(cfg, count, start=0):
    return list(islice(build_detection_train_loader(cfg, start_batch=start), count))


def assert_same(ours, theirs):
    for batch, other in zip(ours, theirs, strict=True):
        for sample, expected in zip(batch, other, strict=True):
            assert torch.equal(sample["image"], expected["image"])
            assert torch.equal(sample["instances"].gt_boxes.tensor, expected["instances"].gt_boxes.tensor)
            masks, expected_masks = sample["instances"].gt_masks, expected["instances"].gt_masks
            assert type(masks) is type(expected_masks)
            if isinstance(masks, BitMasks):
                assert torch.equal(masks.tensor, expected_masks.tensor)


def test_batches_do_not_depend_on_workers_or_restarts(cfg):
    register_datasets(cfg)
    whole = batches(cfg, 4)
    assert_same(batches(cfg, 2, start=2), whole[2:])
    cfg.DATALOADER.NUM_WORKERS = 2
    assert_same(batches(cfg, 4), whole)
    assert_same(batches(cfg, 2, start=2), whole[2:])
    for sample in (sample for batch in whole for sample in batch):
        masks = sample["instances"].gt_masks
        if isinstance(masks, BitMasks):  # mixed
            tight = masks.get_bounding_boxes().tensor
            torch.testing.assert_close(sample["instances"].gt_boxes.tensor, tight, atol=2.0, rtol=0)
    assert 4 < sum(isinstance(s["instances"].gt_masks, BitMasks) for batch in whole for s in batch) < 16


def test_unreadable_partner_image(cfg, tmp_path):
    """With "stop", an error names the file. With "skip", it is replaced and counted."""
    write_shapes(tmp_path, train=3, val=1)
    cfg.DATASETS.TRAIN_JSON = str(tmp_path / "annotations/instances_train.json")
    cfg.DATASETS.TRAIN_IMAGES = str(tmp_path / "train")
    cfg.INPUT.MOSAIC.PROBABILITY = 1.0
    register_datasets(cfg)
    broken = sorted((tmp_path / "train").iterdir())[1]
    broken.write_bytes(b"")
    with pytest.raises(DataError, match=f"{broken.name} is empty"):
        batches(cfg, 1)
    cfg.DATASETS.ON_ERROR = "skip"
    loader = build_detection_train_loader(cfg)
    found = list(islice(loader, 4))
    assert loader.dataset.skipped.item() > 0
    assert_same(batches(cfg, 2, start=2), found[2:])


def test_large_scale_jitter_gives_fixed_size_images(cfg, tmp_path):
    cfg.INPUT.LARGE_SCALE_JITTER.ENABLED = True
    cfg.INPUT.LARGE_SCALE_JITTER.SIZE = (80, 96)
    register_datasets(cfg)
    shares = []
    for sample in (sample for batch in batches(cfg, 6) for sample in batch):
        assert sample["image"].shape == (3, 80, 96)
        instances = sample["instances"]
        if len(instances):
            assert instances.gt_masks.tensor.shape[1:] == (80, 96)
            torch.testing.assert_close(instances.gt_boxes.tensor, instances.gt_masks.get_bounding_boxes().tensor)
        shares.append((sample["image"] != 128).float().mean().item())
    assert min(shares) < 0.5 < max(shares)  # some images are shrunk and padded, others are enlarged and cropped


def test_color_augmentation_changes_pixels_but_not_boxes(cfg, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    box = {"bbox": [4, 6, 10, 10], "bbox_mode": 1, "category_id": 0, "iscrowd": 0}
    record = {"file_name": str(tmp_path / "x.png"), "height": 40, "width": 50, "image_id": 1, "annotations": [box]}
    cfg.MODEL.MASK_ON = False
    cfg.INPUT.MOSAIC.PROBABILITY = cfg.INPUT.COPY_PASTE.PROBABILITY = 0.0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (40,), "none"
    mapped = [PVTDatasetMapper(cfg, is_train=True)(record, position) for position in range(8)]
    assert len({sample["image"].float().mean().item() for sample in mapped}) > 4
    assert all(sample["instances"].gt_boxes.tensor.tolist() == [[4, 6, 14, 16]] for sample in mapped)
