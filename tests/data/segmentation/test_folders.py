"""Label maps: preparation, pairing with images, checks, augmentation and the mapper's output."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES
from PIL import Image

from pvt_det.config import load_config
from pvt_det.data.augmentation.color import PhotometricDistortion, PhotometricTransform
from pvt_det.data.augmentation.semantic import build_semantic_augmentations
from pvt_det.data.loader import build_detection_test_loader, build_detection_train_loader
from pvt_det.data.mapper import PVTDatasetMapper
from pvt_det.data.segmentation.folders import LabelMaps, panoptic_folder
from pvt_det.data.sets import register_datasets
from pvt_det.errors import ConfigError, DataError
from tests.scripts import dataset_script

prepare_ade20k = dataset_script("prepare_ade20k").prepare_ade20k
prepare_stuff = dataset_script("prepare_coco_panoptic").prepare_stuff
write_shapes = dataset_script("make_shapes").write_shapes

CONFIGS = Path(__file__).parents[3] / "configs"


# --- ADE20K ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def ade20k(shared_dir: Path, tmp_path: Path) -> Path:
    """Both splits in the challenge's layout, each with the three sample images."""
    root = tmp_path / "ADEChallengeData2016"
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            shutil.copytree(shared_dir / "data/ade20k_sample" / kind, root / kind / split)
    return root


def ade_record(root: Path, number: int = 1) -> dict:
    name = f"ADE_val_0000000{number}"
    return {
        "file_name": str(root / f"images/validation/{name}.jpg"),
        "sem_seg_file_name": str(root / f"annotations_detectron2/validation/{name}.png"),
    }


def test_ade20k_labels_are_shifted_by_one_and_other_is_ignored(ade20k):
    assert prepare_ade20k(ade20k) == {"training": 3, "validation": 3}
    for path in sorted((ade20k / "annotations/validation").iterdir()):
        before = np.array(Image.open(path)).astype(int)
        after = np.array(Image.open(ade20k / "annotations_detectron2/validation" / path.name)).astype(int)
        assert (before == 0).any()
        np.testing.assert_array_equal(after, np.where(before == 0, 255, before - 1))


def test_ade20k_class_names_follow_the_order_of_the_challenge(shared_dir):
    lines = (shared_dir / "data/ade20k_sample/objectInfo150.txt").read_text().splitlines()[1:]
    names = [{name.strip() for name in line.split("\t")[-1].split(",")} for line in lines]
    ours = [{name.strip() for name in names.split(",")} for names in ADE20K_SEM_SEG_CATEGORIES]
    different = [i for i, (a, b) in enumerate(zip(ours, names, strict=True)) if not a & b]
    assert [(ADE20K_SEM_SEG_CATEGORIES[i], "swimming pool" in names[i]) for i in different] == [("pool", True)]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda root: next((root / "images/training").iterdir()).unlink(), "ADE_val_00000001.jpg does not exist"),
        (lambda root: shutil.rmtree(root / "annotations/validation"), "contains no PNG files"),
        (lambda root: paint(root / "annotations/training/ADE_val_00000002.png", 151), "value 151.*0 to 150"),
    ],
)
def test_broken_ade20k_is_refused(ade20k, fault, message):
    fault(ade20k)
    with pytest.raises(DataError, match=message):
        prepare_ade20k(ade20k)


def paint(path: Path, value: int) -> None:
    labels = np.array(Image.open(path))
    labels[0, 0] = value
    Image.fromarray(labels).save(path)


def test_ade20k_training_crops(ade20k):
    prepare_ade20k(ade20k)
    cfg = load_config(CONFIGS / "semantic_fpn_pvt_tiny.yaml")
    mapper = PVTDatasetMapper(cfg, is_train=True, seed=1)
    samples = [mapper(ade_record(ade20k, 1 + position % 3), position) for position in range(12)]
    padded = 0
    for sample in samples:
        assert sample["image"].shape == (3, 512, 512)
        assert sample["image"].dtype == torch.uint8
        assert sample["sem_seg"].shape == (512, 512)
        assert sample["sem_seg"].dtype == torch.int64
        assert set(sample["sem_seg"].unique().tolist()) <= {*range(150), 255}
        if (sample["sem_seg"][-1] == 255).all() and (sample["image"][0, -1] == 124).all():
            padded += 1
            assert sample["image"][:, -1, -1].tolist() == [124, 116, 104]
    assert 0 < padded < 12
    again = mapper(ade_record(ade20k, 1), 0)
    torch.testing.assert_close(again["image"], samples[0]["image"], rtol=0, atol=0)
    torch.testing.assert_close(again["sem_seg"], samples[0]["sem_seg"], rtol=0, atol=0)
    assert not torch.equal(samples[0]["image"], samples[3]["image"])


def test_ade20k_test_images_are_uncropped_with_sides_divisible_by_32(ade20k):
    prepare_ade20k(ade20k)
    mapper = PVTDatasetMapper(load_config(CONFIGS / "semantic_fpn_pvt_tiny.yaml"), is_train=False)
    # 683×512, 500×364 and 400×300: the short side becomes 512, then both are rounded up to multiples of 32.
    sizes = [(512, 704), (512, 704), (512, 704)]
    for number, size in enumerate(sizes, start=1):
        sample = mapper(ade_record(ade20k, number))
        assert sample["image"].shape[1:] == size
        assert sample["true_labels"].shape == (sample["height"], sample["width"])
        assert "sem_seg" not in sample


# --- augmentations ---------------------------------------------------------------------------------------------------
def naive_distortion(pixels, brightness, contrast, contrast_first, saturation, hue):
    def clip(x):
        return x.clip(0, 255).astype(np.uint8)

    pixels = clip(pixels + np.float64(brightness))
    if contrast_first:
        pixels = clip(pixels * contrast)
    if saturation != 1 or hue:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = clip(hsv[..., 1] * saturation)
        hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return pixels if contrast_first else clip(pixels * contrast)


@pytest.mark.parametrize("contrast_first", [True, False])
def test_photometric_distortion_follows_the_recipe(contrast_first):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for brightness, contrast, saturation, hue in [(0.0, 1.0, 1.0, 0), (-20.5, 1.3, 0.7, 17), (31.0, 0.5, 1.5, -18)]:
        draw = (brightness, contrast, contrast_first, saturation, hue)
        found = PhotometricTransform(*draw, image_format="RGB").apply_image(pixels)
        np.testing.assert_array_equal(found, naive_distortion(pixels, *draw))
        flipped = PhotometricTransform(*draw, image_format="BGR").apply_image(pixels[..., ::-1])
        np.testing.assert_array_equal(flipped[..., ::-1], found)


def test_photometric_distortion_draws_from_the_ranges_of_the_recipe():
    np.random.seed(0)
    pixels = np.zeros((2, 2, 3), np.uint8)
    draws = [PhotometricDistortion("RGB").get_transform(pixels) for _ in range(400)]
    for name, low, high, neutral in [
        ("brightness", -32, 32, 0),
        ("contrast", 0.5, 1.5, 1),
        ("saturation", 0.5, 1.5, 1),
        ("hue", -18, 17, 0),
    ]:
        values = np.array([getattr(draw, name) for draw in draws])
        assert low <= values.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < values.max() <= high
        assert 0.4 < (values == neutral).mean() < 0.6
    assert 0.4 < np.mean([draw.contrast_first for draw in draws]) < 0.6


def semantic_cfg(**changes):
    words = [word for key, value in changes.items() for word in (key.replace("__", "."), value)]
    return load_config(CONFIGS / "semantic_fpn_pvt_tiny.yaml", words)


def test_scales_are_drawn_and_keep_the_aspect_ratio():
    cfg = semantic_cfg(INPUT__CROP__ENABLED=False, INPUT__COLOR_AUG_SSD=False)
    resize = T.AugmentationList(build_semantic_augmentations(cfg, is_train=True))
    np.random.seed(0)
    heights, ratios = [], []
    for _ in range(200):
        sample = T.AugInput(np.zeros((100, 150, 3), np.uint8), sem_seg=np.zeros((100, 150), np.uint8))
        resize(sample)
        assert sample.image.shape[:2] == sample.sem_seg.shape
        heights.append(sample.image.shape[0])
        ratios.append(sample.image.shape[1] / sample.image.shape[0])
    assert 256 <= min(heights) < 300
    assert 980 < max(heights) <= 1024
    assert np.allclose(ratios, 1.5, atol=0.01)


def test_long_images_are_bounded_by_the_long_side():
    cfg = semantic_cfg()
    (resize,) = build_semantic_augmentations(cfg, is_train=False)
    sample = T.AugInput(np.zeros((100, 1000, 3), np.uint8))
    resize(sample)
    assert sample.image.shape[:2] == (224, 2048)  # 205 rounded up


def test_crop_dominated_by_one_class_is_drawn_again():
    cfg = semantic_cfg(INPUT__SCALE_RANGE="(1.0, 1.0)", INPUT__COLOR_AUG_SSD=False)
    crop = T.AugmentationList(build_semantic_augmentations(cfg, is_train=True))
    labels = np.zeros((512, 2048), np.uint8)
    labels[:, 1024:] = 1
    np.random.seed(0)
    shares = []
    for _ in range(60):
        sample = T.AugInput(np.zeros((512, 2048, 3), np.uint8), sem_seg=labels)
        crop(sample)
        shares.append((sample.sem_seg == 1).mean())
    balanced = np.mean([0.25 < share < 0.75 for share in shares])
    # A single draw is balanced in 1 of 6 cases, the best of ten draws in 5 of 6.
    assert balanced > 0.65


# --- folders ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=6, val=4, image_size=64)


@pytest.fixture
def shapes(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "shapes")


def shapes_cfg(root: Path, task: str, **changes):
    labels = {"semantic": "semantic", "panoptic": "panoptic_stuff"}[task]
    keys = {
        "DATASETS.TRAIN_IMAGES": root / "train",
        "DATASETS.VAL_IMAGES": root / "val",
        "DATASETS.TRAIN_LABELS": root / f"{labels}_train",
        "DATASETS.VAL_LABELS": root / f"{labels}_val",
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 2,
    }
    if task == "panoptic":
        keys["DATASETS.TRAIN_JSON"] = root / "annotations/instances_train.json"
        keys["DATASETS.VAL_JSON"] = root / "annotations/instances_val.json"
        keys["DATASETS.VAL_PANOPTIC_JSON"] = root / "annotations/panoptic_val.json"
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    words = [str(word) for pair in keys.items() for word in pair]
    return load_config(CONFIGS / f"shapes/{task}_fpn_pvt_tiny.yaml", words)


@pytest.mark.parametrize("split", ["train", "val"])
def test_generated_label_maps_and_panoptic_files_match_the_annotations(shapes, split):
    instances = json.loads((shapes / f"annotations/instances_{split}.json").read_text())
    panoptic = json.loads((shapes / f"annotations/panoptic_{split}.json").read_text())
    assert [c["isthing"] for c in panoptic["categories"]] == [1, 1, 1, 1, 0]
    areas = 0
    for image, annotation in zip(instances["images"], panoptic["annotations"], strict=True):
        assert (annotation["image_id"], annotation["file_name"]) == (image["id"], image["file_name"])
        semantic, stuff = (
            np.array(Image.open(shapes / f"{kind}_{split}" / image["file_name"]))
            for kind in ("semantic", "panoptic_stuff")
        )
        segments = np.array(Image.open(shapes / f"panoptic_{split}" / image["file_name"])).astype(int) @ [1, 256, 65536]
        np.testing.assert_array_equal(stuff, semantic == 0)
        for info in annotation["segments_info"]:
            inside = segments == info["id"]
            assert inside.sum() == info["area"]
            assert (semantic[inside] == info["category_id"] % 5).all()
            areas += info["area"]
        assert {i["id"] for i in annotation["segments_info"]} == set(np.unique(segments)) | {1}
    assert areas == len(instances["images"]) * 64 * 64
    things = [i for a in panoptic["annotations"] for i in a["segments_info"] if i["category_id"] != 5]
    assert [(i["area"], i["bbox"]) for i in things] == [(a["area"], a["bbox"]) for a in instances["annotations"]]


def test_stuff_labels_are_derived_from_panoptic_files(shapes, tmp_path):
    assert prepare_stuff(shapes / "annotations/panoptic_val.json", tmp_path / "stuff") == 4
    for path in sorted((tmp_path / "stuff").iterdir()):
        theirs = np.array(Image.open(shapes / "panoptic_stuff_val" / path.name))
        np.testing.assert_array_equal(np.array(Image.open(path)), theirs)


def test_semantic_folders_need_no_code(shapes):
    cfg = shapes_cfg(shapes, "semantic", MODEL__SEM_SEG_HEAD__NUM_CLASSES=54)
    register_datasets(cfg)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 5
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    assert metadata.stuff_classes == ["background", "circle", "square", "triangle", "star"]
    batch = next(iter(build_detection_train_loader(cfg)))
    for sample in batch:
        assert sample["sem_seg"].shape == sample["image"].shape[1:] == (128, 128)
        assert set(sample["sem_seg"].unique().tolist()) <= set(range(5))
    tested = [sample for (sample,) in build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])]
    assert len(tested) == 4
    for sample in tested:
        truth = np.array(Image.open(shapes / "semantic_val" / Path(sample["file_name"]).name))
        np.testing.assert_array_equal(sample["true_labels"], truth)


def test_panoptic_folders_provide_objects_and_labels(shapes):
    cfg = shapes_cfg(shapes, "panoptic")
    register_datasets(cfg)
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    assert metadata.thing_classes == ["circle", "square", "triangle", "star"]
    assert metadata.stuff_dataset_id_to_contiguous_id == {5: 1}
    assert Path(metadata.panoptic_root) == shapes / "panoptic_val"
    seen = 0
    for sample in (s for _, batch in zip(range(3), build_detection_train_loader(cfg), strict=False) for s in batch):
        masks = sample["instances"].gt_masks if len(sample["instances"]) else None
        things = (sample["sem_seg"] == 0).sum().item()
        assert things == pytest.approx(0 if masks is None else masks.area().sum().item(), rel=0.1, abs=50)
        seen += things
    assert seen > 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda root: next((root / "semantic_train").iterdir()).unlink(), "1 x image without a label map"),
        (lambda root: next((root / "train").iterdir()).unlink(), "1 x label map without an image"),
        (lambda root: shutil.rmtree(root / "semantic_train"), "semantic_train does not exist"),
        (lambda root: [p.unlink() for p in (root / "train").iterdir()], "no image with a label map"),
        (lambda root: paint(next((root / "semantic_train").iterdir()), 7), "value 7.*classes 0 to 4, or 255"),
        (lambda root: enlarge(next((root / "semantic_train").iterdir())), "65x64"),
        (lambda root: to_rgb(next((root / "semantic_train").iterdir())), "mode 'RGB'"),
        (lambda root: next((root / "semantic_train").iterdir()).write_bytes(b"no"), "not an image"),
    ],
)
def test_problems_of_label_maps_are_reported(shapes, fault, message):
    fault(shapes)
    with pytest.raises(DataError, match=message):
        register_datasets(shapes_cfg(shapes, "semantic", DATASETS__CHECK="full"))


def enlarge(path: Path) -> None:
    Image.fromarray(np.pad(np.array(Image.open(path)), ((0, 0), (0, 1)))).save(path)


def to_rgb(path: Path) -> None:
    Image.open(path).convert("RGB").save(path)


def test_skip_drops_broken_pairs(shapes):
    first, second = sorted((shapes / "semantic_train").iterdir())[:2]
    first.unlink()
    second.write_bytes(b"no")
    cfg = shapes_cfg(shapes, "semantic", DATASETS__ON_ERROR="skip")
    register_datasets(cfg)
    names = {Path(record["file_name"]).name for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0])}
    assert len(names) == 4
    assert not names & {first.name, second.name}


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_several_sets_of_label_maps_with_weights(shapes, task):
    """The first set has 6 images, the second 4."""
    cfg = shapes_cfg(shapes, task, DATASETS__TRAIN_WEIGHTS=(0.1, 0.9))
    data = cfg.DATASETS
    for key in ("TRAIN_IMAGES", "TRAIN_LABELS", *(["TRAIN_JSON"] if task == "panoptic" else [])):
        first = Path(data[key])
        data[key] = [str(first), str(first.with_name(first.name.replace("train", "val")))]
    register_datasets(cfg)
    assert len(set(data.TRAIN)) == 2
    batches = iter(build_detection_train_loader(cfg))
    samples = [sample for _ in range(50) for sample in next(batches)]
    assert sum(sample["file_name"].startswith(str(shapes / "val")) for sample in samples) == pytest.approx(90, abs=2)
    assert all("sem_seg" in sample for sample in samples)


RETINANET = {
    "MODEL__META_ARCHITECTURE": "PVTRetinaNet",
    "MODEL__RETINANET__IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
}


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("semantic", {"DATASETS__LABEL_NAMES": "[]"}, "LABEL_NAMES"),
        ("semantic", {"DATASETS__LABEL_NAMES": "['a', 'a']"}, "unique class names"),
        ("semantic", {"MODEL__SEM_SEG_HEAD__NUM_CLASSES": 4}, "NUM_CLASSES is 4.*Set it to 5"),
        ("semantic", {"DATASETS__TRAIN_IMAGES": ""}, "TRAIN_IMAGES is empty"),
        ("semantic", RETINANET, "expected SemanticSegmentor"),
        ("panoptic", {"DATASETS__VAL_PANOPTIC_JSON": ""}, "VAL_PANOPTIC_JSON"),
        ("panoptic", {"DATASETS__TRAIN_LABELS": "", "DATASETS__VAL_LABELS": ""}, "needs label maps"),
    ],
)
def test_inconsistent_keys_are_reported(shapes, task, changes, message):
    with pytest.raises(ConfigError, match=message):
        register_datasets(shapes_cfg(shapes, task, **changes))


def test_different_stuff_classes_are_refused(shapes):
    with pytest.raises(DataError, match=r"stuff classes \['background'\].*'sky'"):
        register_datasets(shapes_cfg(shapes, "panoptic", DATASETS__LABEL_NAMES="['things', 'sky']"))


def test_missing_ade20k_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"annotations_detectron2.*datasets/README.md"):
        register_datasets(load_config(CONFIGS / "semantic_fpn_pvt_tiny.yaml"))


def test_palette_of_a_label_map_is_ignored(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    image = Image.fromarray(labels).convert("P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.putdata(labels.ravel())
    image.save(tmp_path / "map.png")
    np.testing.assert_array_equal(LabelMaps(3, 255).read(tmp_path / "map.png", (4, 3)), labels)


def test_panoptic_folder_of_a_bare_file_name(tmp_path, monkeypatch):
    inner = tmp_path / "annotations"
    inner.mkdir()
    monkeypatch.chdir(inner)
    with pytest.raises(DataError, match="expected folder panoptic or "):
        panoptic_folder("panoptic.json")
    (tmp_path / "panoptic").mkdir()
    assert panoptic_folder("panoptic.json").samefile(tmp_path / "panoptic")
    (inner / "panoptic").mkdir()
    assert panoptic_folder("panoptic.json").samefile(inner / "panoptic")


@pytest.mark.parametrize("value", [11, 40])
def test_unknown_value_suggests_void(tmp_path, value):
    Image.fromarray(np.array([[0, 10, value]], np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE {value}.*NUM_CLASSES {value + 1}"):
        LabelMaps(11, 255).read(tmp_path / "a.png", (3, 1))
    assert LabelMaps(11, value).read(tmp_path / "a.png", (3, 1)).tolist() == [[0, 10, value]]


def test_size_of_a_label_map_is_compared_with_its_image(tmp_path):
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"label map .*a\.png is 3x2, but its image is 4x2"):
        LabelMaps(11, 255).read(tmp_path / "a.png", (4, 2))
