"""The generated data set: exact annotations, identical on every machine, no overlap between splits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pvt_det.errors import DataError
from tests.scripts import dataset_script

make_shapes = dataset_script("make_shapes")
CATEGORIES, make_image, write_shapes = make_shapes.CATEGORIES, make_shapes.make_image, make_shapes.write_shapes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set large enough to contain partly hidden and split objects, and images without objects."""
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=60, val=40, image_size=96, seed=3)


def annotations(root: Path, split: str) -> dict:
    return json.loads((root / f"annotations/instances_{split}.json").read_text())


def digest(root: Path) -> str:
    result = hashlib.sha256()
    for split in ("train", "val"):
        content = annotations(root, split)
        result.update(json.dumps(content, sort_keys=True).encode())
        for image in content["images"]:
            result.update(np.asarray(Image.open(root / split / image["file_name"])).tobytes())
    return result.hexdigest()


@pytest.mark.parametrize("split", ["train", "val"])
def test_polygons_boxes_and_areas_describe_the_same_pixels(root: Path, split: str) -> None:
    coco = COCO(root / f"annotations/instances_{split}.json")
    parts = set()
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        x, y = columns.min(), rows.min()
        assert annotation["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
        assert annotation["area"] == mask.sum() > 0
        assert annotation["iscrowd"] == 0
        parts.add(len(annotation["segmentation"]))
    assert len(parts) > 1  # at least one object is split by another one


def test_no_pixel_belongs_to_two_objects(root: Path) -> None:
    coco = COCO(root / "annotations/instances_train.json")
    for image_id in coco.imgs:
        masks = [coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds(image_id))]
        assert not masks or np.sum(masks, axis=0).max() == 1


def test_images_match_the_json_file(root: Path) -> None:
    for split, count in (("train", 60), ("val", 40)):
        content = annotations(root, split)
        assert len(content["images"]) == count == len(list((root / split).iterdir()))
        for image in content["images"]:
            with Image.open(root / split / image["file_name"]) as opened:
                assert opened.size == (image["width"], image["height"]) == (96, 96)
                assert opened.mode == "RGB"


def test_all_classes_and_images_without_objects_occur(root: Path) -> None:
    empty = 0
    for split in ("train", "val"):
        content = annotations(root, split)
        assert [category["name"] for category in content["categories"]] == list(CATEGORIES)
        assert {a["category_id"] for a in content["annotations"]} == {1, 2, 3, 4}
        empty += len(content["images"]) - len({a["image_id"] for a in content["annotations"]})
    assert empty > 0


def test_splits_share_neither_ids_nor_pixels(root: Path) -> None:
    train, val = ({image["id"] for image in annotations(root, split)["images"]} for split in ("train", "val"))
    assert not train & val
    pixels = [path.read_bytes() for split in ("train", "val") for path in (root / split).iterdir()]
    assert len(set(pixels)) == 100


def test_data_set_is_identical_on_every_machine(tmp_path: Path) -> None:
    root = write_shapes(tmp_path, train=6, val=3, image_size=64, seed=1)
    assert digest(root) == "d8611e658cb1aceb4eaf2a49cd1d8550263dc25e23f10676560c20a4470b885e"


def test_more_images_leave_the_first_ones_unchanged(root: Path, tmp_path: Path) -> None:
    more = write_shapes(tmp_path, train=61, val=1, image_size=96, seed=3)
    for path in (root / "train").iterdir():
        assert (more / "train" / path.name).read_bytes() == path.read_bytes()
    before, after = annotations(root, "train"), annotations(more, "train")
    assert after["annotations"][: len(before["annotations"])] == before["annotations"]


def test_later_shapes_hide_earlier_ones() -> None:
    hidden = 0
    for seed in range(40):
        _, shapes = make_image(np.random.RandomState(seed), 128)
        for index, shape in enumerate(shapes):
            later = np.zeros((128, 128), bool)
            for other in shapes[index + 1 :]:
                later |= other.full
            assert (shape.visible == (shape.full & ~later)).all()
            assert shape.visible.sum() >= 0.6 * shape.full.sum()
            hidden += int((shape.visible != shape.full).any())
    assert hidden > 10


@pytest.mark.parametrize(
    ("numbers", "message"),
    [({"image_size": 31}, "31"), ({"val": 0}, "val is 0"), ({"seed": -1}, "-1")],
)
def test_numbers_out_of_range_are_reported(tmp_path: Path, numbers: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_shapes(tmp_path, **numbers)
