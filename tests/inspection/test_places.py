"""Where `pvt-det inspect` finds annotations and images: common layouts of data set folders, lists, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pvt_det.data.coco.findings import Findings
from pvt_det.data.formats import find_image_folder, is_image_list
from pvt_det.errors import DataError
from pvt_det.inspection.formats import to_coco
from pvt_det.inspection.places import Place, find_places

LABEL = "0 .5 .5 .5 .5\n"
COCO = {"annotations": [], "categories": []}
VOC = "<annotation><filename>{}.png</filename><size><width>8</width><height>8</height></size></annotation>"
CVAT = '<annotations><image id="0" name="a.png" width="8" height="8"/></annotations>'


def write(root: Path, files: dict[str, str]) -> Path:
    """Write files by relative path. Images are 8 by 8 pixels."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.new("RGB", (8, 8)).save(path)
        else:
            path.write_text(text)
    return root


def coco(*names: str) -> str:
    return json.dumps(COCO | {"images": [{"id": n, "file_name": name} for n, name in enumerate(names)]})


YOLO_FILES = {
    f"{part}/{kind}/{part}.{end}": LABEL
    for part in ("train", "valid")
    for kind, end in (("images", "png"), ("labels", "txt"))
}
LAYOUTS = {
    "Roboflow YOLO": (
        YOLO_FILES | {"data.yaml": "train: ../train/images\nval: ../valid/images\nnames: [a]\n", "README.txt": "Hi"},
        [("train/labels", "train/images", "data.yaml"), ("valid/labels", "valid/images", "data.yaml")],
    ),
    "YOLO without a YAML file": (
        YOLO_FILES | {"classes.txt": "a\n"},
        [("train/labels", "train/images", None), ("valid/labels", "valid/images", None)],
    ),
    "ultralytics": (
        {
            "coco8.yaml": "path: .\ntrain: images/train\nval: images/val\nnames: {0: a}\n",
            **{f"images/{part}/x.png": "" for part in ("train", "val")},
            **{f"labels/{part}/x.txt": LABEL for part in ("train", "val")},
        },
        [("labels/train", "images/train", "coco8.yaml"), ("labels/val", "images/val", "coco8.yaml")],
    ),
    "YOLO labels and images": (
        {"classes.txt": "a", "images/x.png": "", "labels/x.txt": LABEL},
        [("labels", "images", None)],
    ),
    "Pascal VOC with lists": (
        {
            **{f"JPEGImages/{name}.png": "" for name in "ab"},
            **{f"Annotations/{name}.xml": VOC.format(name) for name in "ab"},
            "ImageSets/Main/train.txt": "a\n",
            "ImageSets/Main/val.txt": "b\n",
        },
        [("ImageSets/Main/train.txt", "JPEGImages", None), ("ImageSets/Main/val.txt", "JPEGImages", None)],
    ),
    "Pascal VOC without lists": ({"images/a.png": "", "Annotations/a.xml": VOC.format("a")}, [("", "images", None)]),
    "Roboflow VOC": (
        {f"{part}/a.{end}": VOC.format("a") for part in ("train", "valid", "test") for end in ("png", "xml")},
        [("train", "train", None), ("valid", "valid", None)],
    ),
    "Roboflow COCO": (
        {
            **{f"{part}/{part}.png": "" for part in ("train", "valid")},
            **{f"{part}/_annotations.coco.json": coco(f"{part}.png") for part in ("train", "valid")},
            "README.dataset.txt": "Exported from Roboflow",
        },
        [("train/_annotations.coco.json", "train", None), ("valid/_annotations.coco.json", "valid", None)],
    ),
    "COCO": (
        {
            "annotations/instances_train2017.json": coco("1.png"),
            "annotations/instances_val2017.json": coco("2.png"),
            "annotations/captions_train2017.json": "{}",
            "train2017/1.png": "",
            "val2017/2.png": "",
        },
        [
            ("annotations/instances_train2017.json", "train2017", None),
            ("annotations/instances_val2017.json", "val2017", None),
        ],
    ),
    "CVAT": ({"annotations.xml": CVAT, "images/a.png": ""}, [("annotations.xml", "images", None)]),
}


def places(root: Path, expected) -> list[Place]:
    return [Place(root / source, root / images, root / file if file else None) for source, images, file in expected]


@pytest.mark.parametrize("name", LAYOUTS)
def test_folder_of_a_data_set(tmp_path, name):
    files, expected = LAYOUTS[name]
    write(tmp_path, files)
    found = find_places(tmp_path, None, None, None)
    assert [(p.annotations.resolve(), p.images.resolve(), p.class_file) for p in found] == [
        (p.annotations, p.images, p.class_file) for p in places(tmp_path, expected)
    ]
    for place in found:
        if place.annotations.suffix != ".json":
            findings = Findings()
            to_coco(place.annotations, place.images, tmp_path / "out.json", findings, (), place.class_file)
            assert not findings.problems
            assert len(json.loads((tmp_path / "out.json").read_text())["images"]) == 1


@pytest.mark.parametrize("name", ["Roboflow YOLO", "Roboflow COCO", "COCO", "CVAT"])
def test_images_of_a_single_source_are_found(tmp_path, name):
    files, expected = LAYOUTS[name]
    write(tmp_path, files)
    (train, *_) = places(tmp_path, expected)
    (found,) = find_places(train.annotations, None, None, None)
    assert (found.annotations, found.images) == (train.annotations, train.images)


def test_given_folders_are_used(tmp_path):
    write(tmp_path, LAYOUTS["Roboflow YOLO"][0])
    train, val = tmp_path / "train", tmp_path / "valid"
    assert find_places(train / "labels", train / "images", val / "labels", val / "images") == [
        Place(train / "labels", train / "images"),
        Place(val / "labels", val / "images"),
    ]
    # The images of the validation labels are found if they are not given.
    assert find_places(train / "labels", None, val / "labels", None)[1].images == val / "images"
    # A YAML file with images gives the class names.
    file = tmp_path / "data.yaml"
    assert find_places(file, val / "images", None, None) == [Place(val / "labels", val / "images", file)]
    assert find_places(train / "labels", train / "images", file, None)[1].images.resolve() == val / "images"


def test_yolo_list_of_image_paths(tmp_path):
    write(
        tmp_path,
        {f"images/{name}.png": "" for name in ("a/x", "b/x", "b/y")}
        | {f"labels/{name}.txt": LABEL for name in ("a/x", "b/x", "b/y")}
        | {"classes.txt": "cat", "train.txt": f"./images/a/x.png\n{tmp_path}/images/b/y.png\nimages/gone.png\n"},
    )
    (place,) = find_places(tmp_path / "train.txt", None, None, None)
    assert place.images == tmp_path / "images"
    findings = Findings()
    to_coco(place.annotations, place.images, tmp_path / "out.json", findings)
    content = json.loads((tmp_path / "out.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a/x.png", "b/y.png"]
    assert [a["origin"] for a in content["annotations"]] == ["a/x.txt, line 1", "b/y.txt, line 1"]
    assert findings.problems["listed image without a file"].first == ["images/gone.png"]


def test_list_without_annotations(tmp_path):
    write(tmp_path, {"one/two/three/list.txt": "a.png\nb.png\n", "x.txt": LABEL})
    with pytest.raises(
        DataError, match=r"list of 2 images \(a.png, b.png\), but no annotations .* Give the annotations"
    ):
        find_places(tmp_path / "one/two/three/list.txt", None, None, None)
    assert not is_image_list(tmp_path / "x.txt")


@pytest.mark.parametrize("annotations", ["set.json", "labels", "voc", "data.yaml", "cvat.xml"])
def test_swapped_arguments(tmp_path, annotations):
    write(
        tmp_path,
        {"photos/a.png": "", "set.json": coco("a.png"), "labels/a.txt": LABEL, "voc/a.xml": VOC.format("a")}
        | {"data.yaml": "names: [a]", "cvat.xml": CVAT},
    )
    with pytest.raises(DataError, match=rf"they are swapped. .*{annotations} .*photos$"):
        find_places(tmp_path / "photos", tmp_path / annotations, None, None)


def test_messages_name_what_was_found(tmp_path):
    write(tmp_path / "devkit", {f"VOC{year}/Annotations/a.xml": VOC.format("a") for year in (2007, 2012)})
    with pytest.raises(DataError, match=r"several data sets. Give one of them: .*VOC2007, .*VOC2012"):
        find_places(tmp_path / "devkit", None, None, None)
    write(tmp_path / "photos", {"more/a.png": "", "b.png": "", "notes.doc": ""})
    with pytest.raises(DataError, match=r"neither .* It contains more/, 1 .doc file, 1 .png file"):
        find_places(tmp_path / "photos", None, None, None)
    write(
        tmp_path / "yolo", {"data.yaml": "train: images\nval: x\nnames: [a]", "labels/a.txt": LABEL, "photos/a.png": ""}
    )
    with pytest.raises(
        DataError, match=r"data.yaml: train is 'images', but .*images does not exist.* contains labels/, photos/"
    ):
        find_places(tmp_path / "yolo", None, None, None)
    with pytest.raises(DataError, match=r"images of .*labels were not found near it"):
        find_places(tmp_path / "yolo/labels", None, None, None)
    write(tmp_path / "many", {f"{name}.json": coco() for name in "abc"})
    with pytest.raises(DataError, match=r"3 JSON files\. Give the one to train on"):
        find_places(tmp_path / "many", None, None, None)
    write(tmp_path / "coco", {"annotations/x.json": coco("a.png"), "images/a.png": "", "other/b.png": ""})
    with pytest.raises(DataError, match=r"images in .*coco/images, but .*coco/other was given"):
        find_places(tmp_path / "coco", tmp_path / "coco/other", None, None)
    assert find_places(tmp_path / "coco", tmp_path / "coco", None, None)[0].images == tmp_path / "coco/images"


def test_image_folder_is_searched_near_the_given_one(tmp_path):
    write(tmp_path, dict.fromkeys(("set/images/train/a.png", "set/images/train/b.png", "set/other/a.png"), ""))
    names = ["a.png", "b.png", str(tmp_path / "set/other/a.png")]
    for near in ("set", "set/images", "set/other", "set/missing"):
        assert find_image_folder(names, tmp_path / near) == (tmp_path / "set/images/train", 2)
    assert find_image_folder(["in no folder.png"], tmp_path / "set") is None
