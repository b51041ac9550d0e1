"""`--image-size` sets the keys that the training of a config reads."""

from __future__ import annotations

import pytest

from pvt_det.config import load_config
from pvt_det.config.image_size import image_size_keys


def keys(repo_root, name, sides, *overrides, training=True):
    cfg = load_config(repo_root / "configs" / name, overrides)
    found = image_size_keys(cfg, sides, training=training)
    return {key.removeprefix("INPUT."): value for key, value in found.items()}


def test_detector(repo_root):
    one, two = (keys(repo_root, "mask_rcnn_pvt_tiny.yaml", sides) for sides in [(640,), (480, 640)])
    test = {"MIN_SIZE_TEST": 640, "MAX_SIZE_TEST": 640}
    assert one == {"MIN_SIZE_TRAIN": (640,), "MAX_SIZE_TRAIN": 640} | test
    assert two == {"MIN_SIZE_TRAIN": (480,), "MAX_SIZE_TRAIN": 640, "MIN_SIZE_TEST": 480, "MAX_SIZE_TEST": 640}


def test_evaluation_sets_the_test_size_only(repo_root):
    found = keys(repo_root, "mask_rcnn_pvt_tiny.yaml", (640,), training=False)
    assert found == {"MIN_SIZE_TEST": 640, "MAX_SIZE_TEST": 640}


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["INPUT.MIN_SIZE_TRAIN", "[640,800]", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], "MIN_SIZE_TRAIN", (480, 480)),
        (["INPUT.LARGE_SCALE_JITTER.ENABLED", "True"], "LARGE_SCALE_JITTER.SIZE", (480, 640)),
    ],
)
def test_keys_that_replace_the_resizing(repo_root, overrides, key, value):
    assert keys(repo_root, "mask_rcnn_pvt_tiny.yaml", (480, 640), *overrides)[key] == value


def test_segmentor_is_cropped_to_the_size(repo_root):
    found = keys(repo_root, "semantic_fpn_pvt_tiny.yaml", (256,))
    # 512 × 2048 in the config
    assert (found["MIN_SIZE_TRAIN"], found["MAX_SIZE_TRAIN"], found["CROP.SIZE"]) == ((256,), 1024, [256, 256])
    assert (found["MIN_SIZE_TEST"], found["MAX_SIZE_TEST"]) == (256, 1024)
