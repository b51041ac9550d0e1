"""Data set mapper: matches Detectron2's mapper, and its randomness depends only on seed and position."""

import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, PolygonMasks
from PIL import Image
from pycocotools import mask as mask_util

from pvt_det.config import get_config
from pvt_det.data.augmentation.transforms import (
    ResizeShortSide,
    ResizeTransform,
    build_detection_augmentations,
)
from pvt_det.data.coco.registration import CocoSource
from pvt_det.data.mapper import PVTDatasetMapper
from pvt_det.data.targets import pack_targets
from pvt_det.errors import ConfigError, DataError
from pvt_det.utils.rng import random_state, sample_random_state, set_random_state


@pytest.fixture
def cfg():
    cfg = get_config()
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (320,)
    cfg.INPUT.MAX_SIZE_TRAIN = 500
    cfg.INPUT.RANDOM_FLIP = "none"
    return cfg


@pytest.fixture(scope="module")
def records(shared_dir):
    """Return the first 30 images of coco_mini with objects."""
    root = shared_dir / "data/coco_mini"
    found = CocoSource(str(root / "annotations/instances_train2017.json"), str(root / "train2017")).records()
    return [record for record in found if any(not a["iscrowd"] for a in record["annotations"])][:30]


@pytest.fixture
def record(tmp_path):
    """Return the record of a 40×30 image with a square polygon and a crowd region."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    square = [4.0, 6.0, 14.0, 6.0, 14.0, 16.0, 4.0, 16.0]
    common = {"bbox": [4, 6, 10, 10], "bbox_mode": 1, "category_id": 2, "segmentation": [square]}
    return {
        "file_name": str(tmp_path / "x.png"),
        "height": 30,
        "width": 40,
        "image_id": 1,
        "annotations": [{**common, "iscrowd": 0}, {**common, "iscrowd": 1}],
    }


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_matches_detectron2_mapper(cfg, records, mask_format):
    cfg.INPUT.MASK_FORMAT = mask_format
    ours, theirs = PVTDatasetMapper(cfg, is_train=True), DatasetMapper(cfg, is_train=True)
    for record in records:
        mine, other = ours(record), theirs(record)
        assert mine["image"].shape == other["image"].shape
        assert (mine["image"].int() - other["image"].int()).abs().max() <= 1
        mine, other = mine["instances"], other["instances"]
        torch.testing.assert_close(mine.gt_boxes.tensor, other.gt_boxes.tensor, atol=1e-3, rtol=0)
        assert mine.gt_classes.tolist() == other.gt_classes.tolist()
        if mask_format == "polygon":
            for polygons, expected in zip(mine.gt_masks.polygons, other.gt_masks.polygons, strict=True):
                for polygon, wanted in zip(polygons, expected, strict=True):
                    np.testing.assert_allclose(polygon, wanted, atol=1e-3)
        else:
            changed = (mine.gt_masks.tensor ^ other.gt_masks.tensor).sum()
            assert changed <= 0.001 * other.gt_masks.tensor.sum()


def test_packed_targets_match_annotations(cfg, records):
    mapper = PVTDatasetMapper(cfg, is_train=True)
    for record in records[:5]:
        packed = {**record, "targets": pack_targets(record["annotations"], masks=True)}
        del packed["annotations"]
        assert str(mapper(packed)["instances"]) == str(mapper(record)["instances"])


def test_crowd_regions_are_not_used_in_training(cfg, record):
    assert len(PVTDatasetMapper(cfg, is_train=True)(record)["instances"]) == 1
    assert len(record["annotations"]) == 2  # the record is not modified


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_run_length_and_polygon_masks_match(cfg, record, mask_format):
    cfg.INPUT.MASK_FORMAT = mask_format
    mapper = PVTDatasetMapper(cfg, is_train=True)
    from_polygon = mapper(record)["instances"].gt_masks
    if mask_format == "polygon":
        assert isinstance(from_polygon, PolygonMasks)
        from_polygon = BitMasks.from_polygon_masks(from_polygon, 320, 427)
    record["annotations"][0]["segmentation"] = mask_util.frPyObjects(record["annotations"][0]["segmentation"], 30, 40)[
        0
    ]
    from_runs = mapper(record)["instances"].gt_masks
    assert isinstance(from_runs, BitMasks)
    both = (from_runs.tensor & from_polygon.tensor).sum() / (from_runs.tensor | from_polygon.tensor).sum()
    assert both > 0.98


def test_flips_transform_boxes_and_masks_consistently(cfg, record):
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.MASK_FORMAT = "bitmask"
    mapper = PVTDatasetMapper(cfg, is_train=True, seed=0)
    lefts = set()
    for position in range(8):
        instances = mapper(record, position)["instances"]
        box = instances.gt_boxes.tensor[0]
        lefts.add(round(float(box[0])))
        torch.testing.assert_close(instances.gt_masks.get_bounding_boxes().tensor[0], box, atol=1.01, rtol=0)
    assert lefts == {43, 278}  # 4 · 427 / 40, and its mirror image at a width of 427


def test_sample_depends_only_on_seed_and_position(cfg, record):
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.MIN_SIZE_TRAIN = tuple(range(32, 64))
    first = PVTDatasetMapper(cfg, is_train=True, seed=5)
    images = [first(record, position)["image"] for position in range(6)]
    np.random.seed(123)
    again = PVTDatasetMapper(cfg, is_train=True, seed=5)
    for position in reversed(range(6)):
        assert torch.equal(again(record, position)["image"], images[position])
    assert len({image.shape for image in images}) > 1
    other = PVTDatasetMapper(cfg, is_train=True, seed=6)
    assert any(other(record, position)["image"].shape != images[position].shape for position in range(6))


def draw():
    """Draw a number from every generator that an augmentation may use."""
    return np.random.random(), torch.rand(1).item(), random.random()


def test_random_state_of_a_sample_depends_only_on_seed_and_position():
    samples = []
    for position in (3, 3, 4):
        draw()
        with sample_random_state(7, position):
            samples.append(draw())
    assert samples[0] == samples[1]
    assert all(one != other for one, other in zip(samples[0], samples[2], strict=True))


def test_random_state_of_a_sample_leaves_the_generators_alone():
    state = random_state()
    expected = draw()
    set_random_state(state)
    with sample_random_state(0, 0):
        draw()
    assert draw() == expected


def test_crop_branch(cfg, records):
    """Both branches are taken, sizes match, and boxes are tight around their masks."""
    cfg.INPUT.CROP_BRANCH.ENABLED = True
    mapper = PVTDatasetMapper(cfg, is_train=True, seed=1)
    plain = cropped = 0
    for position, record in enumerate(records * 2):
        mapped = mapper(record, position)
        height, width = mapped["image"].shape[1:]
        assert min(height, width) <= 320
        assert max(height, width) <= 500
        instances = mapped["instances"]
        assert instances.image_size == (height, width)
        if len(instances):
            assert instances.gt_masks.tensor.shape[1:] == (height, width)
            tight = instances.gt_masks.get_bounding_boxes().tensor
            torch.testing.assert_close(instances.gt_boxes.tensor, tight)
        same = abs(width / height - record["width"] / record["height"]) < 0.01
        plain, cropped = plain + same, cropped + (not same)
    assert plain > 10
    assert cropped > 10


def test_test_records_have_no_annotations(cfg, record):
    mapped = PVTDatasetMapper(cfg, is_train=False)(record)
    assert "instances" not in mapped
    assert "annotations" not in mapped
    assert mapped["image"].shape == (3, 800, 1067)


def test_size_differs_from_annotation(cfg, record):
    record["width"] = 41
    with pytest.raises(DataError, match=r"x\.png is 40x30 .* says 41x30"):
        PVTDatasetMapper(cfg, is_train=True)(record)


@pytest.mark.parametrize("backend", ["pil", "cv2"])
@pytest.mark.parametrize(
    ("height", "width", "new_height", "new_width"),
    [(480, 640, 800, 1067), (427, 640, 800, 1199), (300, 1000, 400, 1333), (1, 5000, 1, 1333), (1, 1, 800, 800)],
)
def test_resize_rule(backend, height, width, new_height, new_width):
    image = np.zeros((height, width, 3), np.uint8)
    resize = ResizeShortSide((800,), 1333, "choice", backend).get_transform(image)
    assert resize.apply_image(image).shape == (new_height, new_width, 3)


def test_resize_backends():
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    theirs = T.ResizeTransform(90, 120, 45, 60, Image.BILINEAR).apply_image(image)
    smooth = ResizeTransform(90, 120, 45, 60, "pil").apply_image(image)
    assert np.abs(theirs.astype(int) - smooth).max() <= 1
    plain = ResizeTransform(90, 120, 45, 60, "cv2").apply_image(image)
    # Without antialiasing, bilinear at exactly half the size is the mean of 2×2 pixels.
    mean = image.reshape(45, 2, 60, 2, 3).mean(axis=(1, 3))
    assert np.abs(plain - mean).max() <= 1
    assert np.abs(smooth - mean).max() > 5


@pytest.mark.parametrize(
    ("key", "value"), [("RESIZE_BACKEND", "tf"), ("RANDOM_FLIP", "both"), ("MIN_SIZE_TRAIN_SAMPLING", "all")]
)
def test_unknown_input_values(cfg, key, value):
    cfg.INPUT[key] = value
    with pytest.raises(ConfigError, match=rf"INPUT\.{key} = '{value}': expected one of"):
        build_detection_augmentations(cfg, is_train=True)


def test_unsupported_inputs(cfg):
    cfg.MODEL.KEYPOINT_ON = True
    with pytest.raises(ConfigError, match="KEYPOINT_ON"):
        PVTDatasetMapper(cfg, is_train=True)
