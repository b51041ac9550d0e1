"""Registration of the data sets of a config, and data loaders, whose batches do not depend on workers or restarts."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from pvt_det.config import get_config
from pvt_det.data.coco.registration import register_coco
from pvt_det.data.loader import build_detection_test_loader, build_detection_train_loader
from pvt_det.data.sets import register_datasets
from pvt_det.errors import ConfigError, DataError

IMAGES = 10


def write_set(folder, names=("cat", "dog"), images=IMAGES, **box):
    """Write alternately wide and tall images, each with one box except the last."""
    folder.mkdir()
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3 + n, "name": name} for n, name in enumerate(names)],
    }
    for number in range(images):
        width, height = ((48, 32), (32, 48))[number % 2]
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        if number < images - 1:
            annotation = {
                "id": number,
                "image_id": number,
                "category_id": 3,
                "bbox": [4, 4, 10, 12],
                "area": 120,
                "iscrowd": 0,
            }
            content["annotations"].append(annotation | box)
    (folder / "set.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def cfg(tmp_path):
    cfg = get_config()
    folder = write_set(tmp_path / "train")
    cfg.DATASETS.TRAIN_JSON, cfg.DATASETS.TRAIN_IMAGES = str(folder / "set.json"), str(folder)
    cfg.DATASETS.VAL_JSON, cfg.DATASETS.VAL_IMAGES = str(folder / "set.json"), str(folder)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = (32, 40, 48)
    cfg.INPUT.MIN_SIZE_TEST = 32
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 7
    return cfg


def batches(cfg, number, start=0):
    return list(islice(build_detection_train_loader(cfg, start_batch=start), number))


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for batch, other in zip(actual, expected, strict=True):
        assert [sample["image_id"] for sample in batch] == [sample["image_id"] for sample in other]
        for sample, wanted in zip(batch, other, strict=True):
            assert torch.equal(sample["image"], wanted["image"])
            assert torch.equal(sample["instances"].gt_boxes.tensor, wanted["instances"].gt_boxes.tensor)


def test_classes_come_from_the_annotation_file(cfg):
    register_datasets(cfg)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    (name,) = cfg.DATASETS.TRAIN
    assert MetadataCatalog.get(name).thing_classes == ["cat", "dog"]
    assert MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id == {3: 0, 4: 1}
    batch = batches(cfg, 1)[0]
    assert all(sample["instances"].gt_classes.tolist() == [0] for sample in batch)


def test_batches_do_not_depend_on_workers_and_restarts(cfg):
    register_datasets(cfg)
    whole = batches(cfg, 7)
    assert_same(batches(cfg, 4, start=3), whole[3:])
    cfg.DATALOADER.NUM_WORKERS = 2
    assert_same(batches(cfg, 7), whole)
    assert_same(batches(cfg, 4, start=3), whole[3:])
    assert len({sample["image"].shape for batch in whole for sample in batch}) > 2


def test_batches_have_one_aspect_ratio_group_and_no_empty_images(cfg):
    register_datasets(cfg)
    found = batches(cfg, 30)
    assert all(len({sample["width"] > sample["height"] for sample in batch}) == 1 for batch in found)
    assert {sample["image_id"] for batch in found for sample in batch} == set(range(IMAGES - 1))
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert {sample["image_id"] for batch in batches(cfg, 30) for sample in batch} == set(range(IMAGES))


@pytest.fixture
def two_sets(cfg, tmp_path):
    """The data of `cfg` and another set of 5 images, of which 4 have an object."""
    other = write_set(tmp_path / "other", images=5)
    cfg.DATASETS.TRAIN_JSON = [cfg.DATASETS.TRAIN_JSON, str(other / "set.json")]
    cfg.DATASETS.TRAIN_IMAGES = [cfg.DATASETS.TRAIN_IMAGES, str(other)]
    return cfg


def from_other(batch):
    return sum("/other/" in sample["file_name"] for sample in batch)


def test_several_data_sets_are_drawn_as_one_or_by_weights(two_sets, caplog):
    cfg = two_sets
    register_datasets(cfg)
    assert len(set(cfg.DATASETS.TRAIN)) == 2
    caplog.set_level("INFO")
    assert {sample["file_name"] for batch in batches(cfg, 20) for sample in batch} == {
        str(Path(folder, f"{number}.png"))
        for folder, images in zip(cfg.DATASETS.TRAIN_IMAGES, (9, 4), strict=True)
        for number in range(images)
    }
    assert (
        f"{cfg.DATASETS.TRAIN_JSON[0]} with 9 images, 69.2% of the samples; {cfg.DATASETS.TRAIN_JSON[1]} with 4"
        in caplog.text
    )
    cfg.DATASETS.TRAIN_WEIGHTS = (1.0, 3.0)
    register_datasets(cfg)
    whole = batches(cfg, 39)  # 12 epochs of 13 samples
    assert sum(map(from_other, whole)) == pytest.approx(0.75 * 39 * 4, abs=3)
    assert "with 9 images, 25.0% of the samples" in caplog.text
    cfg.DATALOADER.NUM_WORKERS = 2
    assert_same(batches(cfg, 5, start=34), whole[34:])


def test_mixed_in_images_follow_the_weights(two_sets):
    two_sets.DATASETS.TRAIN_WEIGHTS = (1.0, 99.0)
    register_datasets(two_sets)
    dataset = build_detection_train_loader(two_sets).dataset
    read = dataset.mapper.read
    dataset.mapper.read = lambda record: read(record) and record["file_name"]
    generator = np.random.default_rng(0)
    drawn = [dataset._draw(generator) for _ in range(40)]
    assert sum("/other/" in name for name in drawn) > 36


def test_repeat_factors_count_classes_within_a_weighted_data_set(two_sets):
    """Every image of a set has the same class, so none is rare in it."""
    cfg = two_sets
    cfg.DATASETS.TRAIN_WEIGHTS = (1.0, 1.0)
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD = "RepeatFactorTrainingSampler", 0.9
    register_datasets(cfg)
    assert build_detection_train_loader(cfg).batch_sampler.repeat_factors.tolist() == [1.0] * 13


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0)])
def test_every_data_set_needs_a_weight(two_sets, weights):
    two_sets.DATASETS.TRAIN_WEIGHTS = weights
    with pytest.raises(ConfigError, match=r"TRAIN_WEIGHTS is \(1\.0.*there are 2 training data sets"):
        register_datasets(two_sets)


def test_weights_need_several_data_sets(cfg):
    cfg.DATASETS.TRAIN_WEIGHTS = (1.0,)
    with pytest.raises(ConfigError, match=r"there is 1 training data set\. .*each of two or more"):
        register_datasets(cfg)


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (("cat", "cow"), "The difference: dog only in the first; cow only in the second"),
        (("dog", "cat"), "The difference: class 0 is cat in the first and dog in the second"),
    ],
)
def test_data_sets_with_different_classes(cfg, tmp_path, names, difference):
    other = write_set(tmp_path / "other", names=names)
    cfg.DATASETS.TRAIN_JSON = [cfg.DATASETS.TRAIN_JSON, str(other / "set.json")]
    cfg.DATASETS.TRAIN_IMAGES = [cfg.DATASETS.TRAIN_IMAGES, str(other)]
    with pytest.raises(DataError, match=difference):
        register_datasets(cfg)


def test_building_a_loader_does_not_change_the_global_generator(cfg):
    register_datasets(cfg)
    before = torch.get_rng_state()
    batches(cfg, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_test_loader_yields_every_image_once(cfg):
    register_datasets(cfg)
    loader = build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])
    assert len(loader) == IMAGES
    found = [batch[0] for batch in loader]
    assert [record["image_id"] for record in found] == list(range(IMAGES))
    assert all("instances" not in record and min(record["image"].shape[1:]) == 32 for record in found)


@pytest.mark.parametrize("workers", [0, 2])
def test_image_that_breaks_after_the_check(cfg, workers):
    """By default, an error names the file. With "skip", the image is replaced in training and marked in evaluation."""
    cfg.DATALOADER.NUM_WORKERS = workers
    register_datasets(cfg)
    broken = Path(cfg.DATASETS.TRAIN_IMAGES, "4.png")
    broken.write_bytes(b"")
    for loader in (build_detection_train_loader(cfg), build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])):
        with pytest.raises(DataError, match=r"4\.png is empty") as caught:
            list(islice(loader, 30))
        assert "Traceback" not in str(caught.value)
    cfg.DATASETS.ON_ERROR = "skip"
    loader = build_detection_train_loader(cfg)
    found = list(islice(loader, 30))
    assert {sample["image_id"] for batch in found for sample in batch} == set(range(IMAGES - 1)) - {4}
    assert loader.dataset.skipped.item() > 0
    assert_same(batches(cfg, 10, start=20), found[20:])
    found = [batch[0] for batch in build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])]
    assert [record["image_id"] for record in found if record.get("unreadable")] == [4]
    assert len(found) == IMAGES


def test_image_broken_before_the_check_is_dropped(cfg):
    Path(cfg.DATASETS.TRAIN_IMAGES, "4.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"4\.png is empty"):
        register_datasets(cfg)
    cfg.DATASETS.ON_ERROR = "skip"
    register_datasets(cfg)
    assert len(build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])) == IMAGES - 1


def test_named_data_set_must_match_num_classes(cfg, tmp_path):
    folder = write_set(tmp_path / "named")
    register_coco(str(tmp_path), folder / "set.json", folder)
    cfg.DATASETS.TRAIN_JSON = cfg.DATASETS.VAL_JSON = cfg.DATASETS.TRAIN_IMAGES = cfg.DATASETS.VAL_IMAGES = ""
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (str(tmp_path),)
    with pytest.raises(ConfigError, match=r"NUM_CLASSES is 80.*Set it to 2"):
        register_datasets(cfg)
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    register_datasets(cfg)


def test_validation_classes_must_match_training_classes(cfg, tmp_path):
    folder = write_set(tmp_path / "val", names=("dog", "cat"))
    cfg.DATASETS.VAL_JSON, cfg.DATASETS.VAL_IMAGES = str(folder / "set.json"), str(folder)
    with pytest.raises(DataError, match="cat, dog and dog, cat"):
        register_datasets(cfg)


def test_training_without_validation(cfg):
    cfg.DATASETS.VAL_JSON = cfg.DATASETS.VAL_IMAGES = ""
    register_datasets(cfg)
    assert cfg.DATASETS.TEST == ()


def test_evaluation_does_not_need_training_data(cfg):
    cfg.DATASETS.TRAIN_JSON = "absent.json"
    register_datasets(cfg, training=False)
    assert cfg.DATASETS.TRAIN == ()
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 2


def test_image_folder_must_be_given(cfg):
    cfg.DATASETS.VAL_IMAGES = ""
    with pytest.raises(ConfigError, match="--val-images"):
        register_datasets(cfg)


def test_missing_coco_files(cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg.DATASETS.TRAIN_JSON = cfg.DATASETS.VAL_JSON = cfg.DATASETS.TRAIN_IMAGES = cfg.DATASETS.VAL_IMAGES = ""
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("coco_2017_train",), ("coco_2017_val",)
    with pytest.raises(DataError, match=r"instances_train2017\.json and .*train2017 missing.*DETECTRON2_DATASETS"):
        register_datasets(cfg)


def test_unknown_name(cfg):
    cfg.DATASETS.TRAIN_JSON = cfg.DATASETS.TRAIN_IMAGES = ""
    cfg.DATASETS.TRAIN = ("coco_2017_trian",)
    with pytest.raises(ConfigError, match="Did you mean coco_2017_train"):
        register_datasets(cfg)


def test_mask_models_require_masks(cfg):
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.MASK_ON = True
    with pytest.raises(DataError, match=r"9 x annotation without a usable mask, which MODEL\.MASK_ON needs"):
        register_datasets(cfg)


@pytest.mark.parametrize(("key", "value"), [("IMS_PER_BATCH", 0), ("SAMPLER_TRAIN", "Other")])
def test_invalid_settings(cfg, key, value):
    register_datasets(cfg)
    (cfg.SOLVER if key == "IMS_PER_BATCH" else cfg.DATALOADER)[key] = value
    with pytest.raises(ConfigError, match=f"{key} is {value!r}"):
        build_detection_train_loader(cfg)


def test_registering_twice(tmp_path):
    first, second = write_set(tmp_path / "a"), write_set(tmp_path / "b")
    name = f"{tmp_path}/set"
    assert register_coco(name, first / "set.json", first) is register_coco(name, first / "set.json", first)
    with pytest.raises(ConfigError, match="already registered"):
        register_coco(name, second / "set.json", second)


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("mps", False), ("cuda", True)])
def test_images_are_pinned_only_for_a_cuda_gpu(cfg, device, pinned):
    cfg.MODEL.DEVICE = device
    register_datasets(cfg)
    assert build_detection_train_loader(cfg).pin_memory is pinned
