"""The config of a run stores its class names, and evaluation compares them with those of its data."""

from __future__ import annotations

import pytest

from pvt_det.config import load_config
from pvt_det.data.sets import register_datasets
from pvt_det.errors import DataError
from tests.scripts import dataset_script

write_shapes = dataset_script("make_shapes").write_shapes

NAMES = ["circle", "square", "triangle", "star"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("sets"), train=2, val=2, image_size=64)


@pytest.fixture
def cfg(shapes, repo_root):
    def build(*words):
        data = [("TRAIN", "train"), ("VAL", "val")]
        keys = [(f"DATASETS.{key}_JSON", shapes / f"annotations/instances_{name}.json") for key, name in data]
        keys += [(f"DATASETS.{key}_IMAGES", shapes / name) for key, name in data]
        given = [str(word) for pair in keys for word in pair]
        return load_config(repo_root / "configs/retinanet_pvt_tiny.yaml", [*given, *words])

    return build


def test_training_stores_its_class_names(cfg):
    # Names from an earlier run on different data are overwritten.
    config = cfg("DATASETS.CLASS_NAMES", "['a', 'b', 'c', 'd']")
    register_datasets(config)
    assert config.DATASETS.CLASS_NAMES == NAMES
    assert config.MODEL.RETINANET.NUM_CLASSES == 4


def test_missing_paths_are_named_with_their_options(cfg, tmp_path):
    gone = str(tmp_path / "gone")
    words = ["DATASETS.TRAIN_IMAGES", gone, "DATASETS.VAL_JSON", gone, "DATASETS.VAL_PANOPTIC_JSON", gone]
    keys = [f"DATASETS.{key} {gone}" for key in ("TRAIN_IMAGES", "VAL_JSON", "VAL_PANOPTIC_JSON")]
    options = "--train-images and --val-json and DATASETS.VAL_PANOPTIC_JSON FILE."
    with pytest.raises(DataError) as error:
        register_datasets(cfg(*words))
    assert str(error.value) == f"{', '.join(keys)} do not exist. If they have moved, give the new path with {options}"
    with pytest.raises(
        DataError, match=r"^DATASETS\.VAL_JSON .* If it has moved, give the new path with --val-json\.$"
    ):
        register_datasets(cfg(*words[:4]), training=False)


def test_evaluation_refuses_data_with_different_classes(cfg):
    classes = ["MODEL.RETINANET.NUM_CLASSES", "4"]
    swapped = cfg(*classes, "DATASETS.CLASS_NAMES", "['square', 'circle', 'triangle', 'star']")
    with pytest.raises(DataError, match=r"trained on square, circle, .* are circle, square, .*The order differs\."):
        register_datasets(swapped, training=False)
    others = cfg(*classes, "DATASETS.CLASS_NAMES", "['ring', 'square', 'triangle', 'star']")
    with pytest.raises(DataError, match=r"trained on ring, .*mean the same in this order, add .*CLASS_NAMES \[\]"):
        register_datasets(others, training=False)
    for same in (str(NAMES), "[]"):
        config = cfg(*classes, "DATASETS.CLASS_NAMES", same)
        register_datasets(config, training=False)
        assert config.DATASETS.CLASS_NAMES == NAMES
