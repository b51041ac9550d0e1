"""Format conversion, checks, advice and leakage detection of `pvt-det inspect`, and its recommended settings."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hotcoco import COCO
from PIL import Image

from pvt_det.data.coco.annotations import CocoData
from pvt_det.data.coco.findings import Findings
from pvt_det.data.formats import find_annotations
from pvt_det.errors import DataError
from pvt_det.inspection.formats import to_coco
from pvt_det.inspection.inspect import CORNER_BOXES, NORMALIZED_BOXES, find_leakage, inspect_dataset, suspect_boxes
from pvt_det.inspection.recommend import fit_anchors, recommend
from pvt_det.inspection.statistics import describe
from pvt_det.inspection.terminal import advice_line, summary

SIZES = ((60, 40), (40, 60), (50, 50))


def write_dataset(folder: Path, seed: int = 0) -> Path:
    """Write three images, the last without objects, with boxes on whole pixels."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number, (width, height) in enumerate(SIZES, start=1):
        name = f"photo{number}.png"
        pixels = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for place in range(2 if number < 3 else 0):
            box = [4 + place * 10, 6, 12, 20]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": place + 1, "bbox": box, "area": 240}
                | {"iscrowd": 0}
            )
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    file = folder / "set.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "train")


def with_first_annotation(file: Path, **values) -> Path:
    """Write a copy of the data set with changed keys in its first annotation."""
    content = json.loads(file.read_text())
    content["annotations"][0].update(values)
    other = file.with_name("changed.json")
    other.write_text(json.dumps(content))
    return other


def inspect(source: Path, images: Path | None = None, **settings):
    images = images or source.parent
    return inspect_dataset(source, images, images.parent / "converted.json", **settings)


def objects(inspection) -> list[tuple]:
    """Return file, class name and box of each object, without the ids, which differ between formats."""
    files = {image["id"]: image["file_name"] for image in inspection.data.images}
    names = {category["id"]: category["name"] for category in inspection.data.categories}
    return sorted(
        (files[a["image_id"]], names[a["category_id"]], [round(v, 3) for v in a["bbox"]])
        for a in inspection.data.annotations
    )


def as_format(name: str, data: Path, folder: Path) -> Path:
    """Write the data set in a different format with hotcoco."""
    coco = COCO(str(data))
    if name == "CVAT":
        coco.to_cvat(str(folder / "annotations.xml"))
        return folder / "annotations.xml"
    if name == "YOLO":
        coco.to_yolo(str(folder))
    else:
        coco.to_voc(str(folder))
    return folder


@pytest.mark.parametrize("name", ["YOLO", "Pascal VOC", "CVAT"])
def test_all_formats_give_the_same_data(name, data, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    source = as_format(name, data, folder)
    assert find_annotations(source)[0] == name
    found = inspect(source, data.parent)
    assert found.format == name
    assert not found.findings.problems
    assert objects(found) == objects(inspect(data))
    assert found.statistics.images == 3
    assert found.json_file == data.parent.parent / "converted.json"


def test_yolo_polygons_subfolders_and_invalid_lines(tmp_path):
    images, labels = tmp_path / "images/a", tmp_path / "labels/a"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    rotated = Image.new("RGB", (40, 20))
    exif = rotated.getexif()
    exif[274] = 6
    rotated.save(images / "x.jpg", exif=exif)  # 20 wide and 40 high when upright
    Image.new("RGB", (10, 10)).save(images / "y.png")
    (tmp_path / "data.yaml").write_text("names: {0: cat, 1: 'dog: old'}\n")
    (labels / "x.txt").write_text(
        "1 0.5 0.5 0.5 0.5\n0 0 0 1 0 1 0.5\n\n2 .5 .5 .1 .1\n0 .5 .5 .1\n0 a b c d\n0 300 20 5 5\n"
    )
    (labels / "z.txt").write_text("0 .5 .5 .1 .1\n")
    found = inspect(tmp_path / "labels", tmp_path / "images")
    box, polygon = found.data.annotations
    assert found.data.class_names == ["cat", "dog: old"]
    assert (box["bbox"], box["category_id"]) == ([5, 10, 10, 20], 1)
    assert (polygon["bbox"], polygon["area"]) == ([0, 0, 20, 20], 200)
    assert polygon["segmentation"] == [[0, 0, 20, 0, 20, 20]]
    assert {image["file_name"] for image in found.data.images} == {"a/x.jpg", "a/y.png"}
    problems = {kind: problem.first for kind, problem in found.findings.problems.items()}
    assert problems == {
        "label file without an image": ["a/z.txt"],
        "label line whose class is not one of 0 to 1": ["a/x.txt, line 4"],
        "label line that is neither a box (5 numbers) nor a polygon (7 or more, an odd number)": ["a/x.txt, line 5"],
        "label line with a value that is not a number": ["a/x.txt, line 6"],
        "label line with coordinates that are not normalized by the image size (0 to 1)": ["a/x.txt, line 7"],
    }
    assert found.is_refused("stop")
    assert not found.is_refused("skip")


def test_error_for_folder_of_json_files_names_the_files(data):
    with pytest.raises(DataError, match=r"neither .* To read COCO JSON, give the file: .*set\.json$"):
        find_annotations(data.parent)


def test_yolo_without_class_names_or_images(tmp_path):
    (tmp_path / "a/b/c/d/labels").mkdir(parents=True)
    (tmp_path / "a/b/c/d/labels/x.txt").write_text("")
    with pytest.raises(DataError, match="no class names"):
        inspect(tmp_path / "a/b/c/d/labels", tmp_path)
    (tmp_path / "a/b/c/d/labels/classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match="has no images"):
        inspect(tmp_path / "a/b/c/d/labels", tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classes.txt", b"caf\xe9\n", "not a text file in UTF-8"),
        ("data.yaml", b"names: [caf\xe9]\n", "not a text file in UTF-8"),
        ("data.yaml", b"names: " + b"[" * 5000, "nested too deep"),
        ("data.yaml", b"a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\n", r"line 3: alias \*b is refused"),
        ("data.yaml", b"a: &a [" + b"x, " * 9000 + b"]\nnames: [*a, *a]\n", "line 2: aliases expand to more than"),
        ("data.yaml", b"names: [cat, [dog]]\n", r"class 1 is \['dog'\]. Expected a name. Put it in quotes"),
        ("data.yaml", b"names: {0: cat, 1: null}\n", "class 1 is None"),
        ("data.yaml", b"names: [yes]\n", "class 0 is True"),
        ("data.yaml", b"names: [cat]\nnames: [dog]\n", "line 2: names appears twice"),
    ],
)
def test_unreadable_yolo_class_names(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(DataError, match=message) as error:
        inspect(tmp_path, tmp_path)
    assert str(tmp_path / file) in str(error.value)
    assert "\n" not in str(error.value)


def test_yolo_class_names_with_a_byte_order_mark(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf1 .5 .5 .1 .1\n")
    Image.new("RGB", (10, 10)).save(tmp_path / "x.png")
    found = inspect(tmp_path, tmp_path)
    assert found.data.class_names == ["cat", "dog"]
    assert [a["category_id"] for a in found.data.annotations] == [1]


def test_pascal_voc_image_lists(data, tmp_path):
    (tmp_path / "voc").mkdir()
    voc = as_format("Pascal VOC", data, tmp_path / "voc")
    main = voc / "ImageSets/Main"
    main.mkdir(parents=True)
    for name, text in {
        "train": "photo1\n\nphoto3\n",
        "val": "photo2\nlost\n",
        "cat_val": "photo2 -1\n",
        "no": "",
    }.items():
        (main / f"{name}.txt").write_text(text)
    train, val = (inspect(main / f"{name}.txt", data.parent) for name in ("train", "val"))
    assert not train.findings.problems
    assert sorted(image["file_name"] for image in train.data.images) == ["photo1.png", "photo3.png"]
    assert train.data.class_names == val.data.class_names == ["cat", "dog"]
    assert objects(train) + objects(val) == objects(inspect(data))
    assert val.findings.problems["listed image without an annotation file"].first == ["lost"]
    (advice,) = [each for each in inspect(voc, data.parent).advice if "lists in" in each.text]
    assert advice.names == ["no.txt", "train.txt", "val.txt"]
    for name, message in {
        "cat_val.txt": "single class. Expected a list of image names only, such as no.txt, train.txt",
        "no.txt": "does not name any images",
        "": "contains image lists. Give one of them",
        "..": "contains image lists. Give one of them",
    }.items():
        with pytest.raises(DataError, match=message):
            inspect((main / name).resolve(), data.parent)
    (voc / "JPEGImages").mkdir()
    with pytest.raises(DataError, match=r"voc is not the image folder. Give .*JPEGImages"):
        inspect(main / "train.txt", voc)


def test_difficult_voc_objects_are_reported_as_crowds(data, tmp_path):
    (tmp_path / "voc").mkdir()
    voc = as_format("Pascal VOC", data, tmp_path / "voc")
    xml = next((voc / "Annotations").glob("*1.xml"))
    xml.write_text(xml.read_text().replace("<difficult>0<", "<difficult>1<", 1))
    numbers = dict(summary(inspect(voc, data.parent)))
    assert numbers["Crowd regions"].startswith("1 (objects marked difficult in Pascal VOC, ignored in training")


def test_errors_in_voc_and_cvat_files(data, tmp_path):
    voc = as_format("Pascal VOC", data, tmp_path / "voc") if (tmp_path / "voc").mkdir() is None else None
    xml = next((voc / "Annotations").glob("*1.xml"))
    text = xml.read_text()
    xml.write_text(text.replace("<width>60<", "<width>0<"))
    found = inspect(voc, data.parent)
    ((kind, problem),) = found.findings.problems.items()
    assert (kind, problem.repair, problem.first) == ("image without a size", "read from the image file", ["photo1.xml"])
    assert objects(found) == objects(inspect(data))
    xml.write_text(text.replace(">cat<", ">cat &amp; kitten<"))
    assert inspect(voc, data.parent).data.class_names == ["cat", "dog", "cat & kitten"]
    xml.write_text(text[:-30])
    found = inspect(voc, data.parent)
    assert str(xml) in found.findings.problems["annotation file that cannot be read"].first[0]
    assert found.is_refused("stop")
    assert (found.statistics.images, found.is_refused("skip")) == (2, False)
    cvat = as_format("CVAT", data, tmp_path)
    cvat.write_text(cvat.read_text().replace("</image>", '<points label="cat" points="1,1"/></image>', 1))
    found = inspect(cvat, data.parent)
    (problem,) = found.findings.problems.values()
    assert re.fullmatch(r"annotations.xml, line \d+ \(points\)", problem.first[0])
    xml.write_text(text)
    with pytest.raises(DataError, match=r"one image in Pascal VOC's format. Give the folder: .*Annotations"):
        inspect(xml, data.parent)


def test_voc_problems_name_the_file_and_line(data, tmp_path):
    (tmp_path / "voc").mkdir()
    xml = as_format("Pascal VOC", data, tmp_path / "voc") / "Annotations/photo1.xml"
    lines = xml.read_text().splitlines()
    places = [number for number, line in enumerate(lines, start=1) if "<object>" in line]
    text = "\n".join(lines)
    for old, new, kind in (
        ("<xmax>16<", "<xmax>2<", "bbox with negative width or height"),
        ("<xmin>5<", "<xmin>NaN<", "bbox with NaN, infinity or a value of 1e8 or more"),
        ("<xmin>5<", "<xmin><", "object without a box of four numbers (xmin, ymin, xmax, ymax)"),
        ("<name>cat<", "<name> <", "object without a name"),
    ):
        assert old in text
        xml.write_text(text.replace(old, new, 1))
        problems = inspect(tmp_path / "voc", data.parent).findings.problems
        assert {name: problem.first for name, problem in problems.items()} == {kind: [f"photo1.xml, line {places[0]}"]}
    xml.write_text(text.replace("<xmin>5<", "<xmin>5.5<", 1))
    assert inspect(tmp_path / "voc", data.parent).data.annotations[0]["bbox"] == [4.5, 6, 11.5, 20]
    # Quality advice has the same names.
    xml.write_text(text.replace("<xmin>15<", "<xmin>5<").replace("<xmax>26<", "<xmax>16<").replace(">dog<", ">cat<"))
    (advice,) = [item for item in inspect(tmp_path / "voc", data.parent).advice if "nearly identical" in item.text]
    assert set(advice.names) <= {f"photo1.xml, line {place}" for place in places}
    # A broken image is named by its annotation file, too.
    xml.write_text(text)
    (data.parent / "photo1.png").write_bytes((data.parent / "photo1.png").read_bytes()[:-20])
    (problem,) = inspect(tmp_path / "voc", data.parent).findings.problems.values()
    assert problem.first[0].startswith(f"photo1.xml: image {data.parent / 'photo1.png'} is broken or cut short")


def test_voc_file_names_are_fixed(data, tmp_path):
    (tmp_path / "voc").mkdir()
    xml = as_format("Pascal VOC", data, tmp_path / "voc") / "Annotations/photo1.xml"
    text = xml.read_text()
    for stated, problems in (("C:\\set\\photo1.png", 0), ("photo1", 1), ("", 1)):
        xml.write_text(text.replace("<filename>photo1.png<", f"<filename>{stated}<"))
        found = inspect(tmp_path / "voc", data.parent)
        assert objects(found) == objects(inspect(data))
        assert [problem.outcome("stop") for problem in found.findings.problems.values()] == ["fixed"] * problems


def test_wrong_image_folder(data):
    photos = data.parent / "photos"
    photos.mkdir()
    for number in (1, 2, 3):
        shutil.copy(data.parent / f"photo{number}.png", photos)
    (data.parent / "empty").mkdir()
    shutil.copy(photos / "photo1.png", data.parent / "empty")
    for number in (1, 2, 3):
        (data.parent / f"photo{number}.png").unlink()
    with pytest.raises(DataError) as caught:
        inspect_dataset(data, data.parent, Path())
    assert str(caught.value) == (
        f"image folder {data.parent} contains none of the images, such as photo1.png: 0 of 3 files exist in "
        f"{data.parent}, but 3 of 3 in {photos}. Give that folder instead."
    )
    found = inspect_dataset(data, data.parent / "empty", Path())
    assert found.findings.problems["image folder without most of the images"].first == [
        f"1 of 3 files exist in {data.parent / 'empty'}, but 3 of 3 in {photos}. Give that folder instead"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing.json", "does not exist"), ("data.yaml", "folder of the YOLO label files"), ("x", "neither")],
)
def test_unknown_source(tmp_path, name, message):
    if name == "data.yaml":
        (tmp_path / name).write_text("names: [a]")
    elif name == "x":
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=message):
        find_annotations(tmp_path / name)


def test_statistics(data):
    content = json.loads(data.read_text())
    content["annotations"][0]["segmentation"] = [[4, 6, 16, 6, 16, 26, 4, 26]]
    content["annotations"][1]["segmentation"] = {"size": [40, 60], "counts": [2400]}
    content["annotations"][3]["iscrowd"] = 1
    data.write_text(json.dumps(content))
    s = inspect(data).statistics
    assert (s.images, s.empty_images, s.objects, s.crowds, s.polygons, s.run_lengths) == (3, 1, 3, 1, 1, 1)
    assert [(c.name, c.objects, c.images) for c in s.classes] == [("cat", 2, 2), ("dog", 1, 1)]
    assert s.box_histogram()["8 to 16"] == 3
    assert sum(s.box_histogram().values()) == 3
    assert s.per_image.tolist() == [2, 1, 0]
    assert not s.has_masks


def test_problems_are_fixed_dropped_or_refused(data):
    found = inspect(with_first_annotation(data, bbox=[50, 6, 20, 20]))
    assert [p.outcome("stop") for p in found.findings.problems.values()] == ["fixed"]
    assert not found.is_refused("stop")
    assert found.is_refused("strict")
    found = inspect(with_first_annotation(data, bbox=[70, 6, 20, 20]))
    assert found.is_refused("stop")
    assert not found.is_refused("skip")
    assert found.statistics.objects == 3
    found = inspect(with_first_annotation(data, bbox=[4, 6, 0, 20]))
    assert list(found.findings.problems) == ["empty bbox"]


def test_advice(data):
    content = json.loads(data.read_text())
    content["categories"].append({"id": 7, "name": "horse"})
    content["annotations"].append({**content["annotations"][0], "id": 99})
    data.write_text(json.dumps(content))
    shutil.copy(data.parent / "photo2.png", data.parent / "photo2.bak")
    image = Image.open(data.parent / "photo3.png")
    exif = image.getexif()
    exif[274] = 3
    image.save(data.parent / "photo3.png", exif=exif)
    advice = {item.text.split(",")[0].split(";")[0]: item for item in inspect(data).advice}
    assert advice["objects of the same class with nearly identical boxes"].annotations
    assert advice["classes without objects"].names == ["horse"]
    assert advice["classes with fewer than 10 objects"].names == ["cat", "dog"]
    assert advice["images rotated by their EXIF tag"].names == ["photo3.png"]
    assert len(advice) == 4
    shutil.copy(data.parent / "photo1.png", data.parent / "photo3.png")
    content["images"][2].update(width=60, height=40)
    data.write_text(json.dumps(content))
    identical = [item for item in inspect(data).advice if item.text == "images with identical files"]
    assert [(item.names, item.count) for item in identical] == [(["photo1.png = photo3.png"], 2)]
    assert advice_line(identical[0]) == "2 x images with identical files: photo1.png = photo3.png"


def as_normalized(x, y, w, h, width, height):
    return [x / width, y / height, w / width, h / height]


def as_corners(x, y, w, h, width, height):
    return [x, y, x + w, y + h]


@pytest.mark.parametrize(("convert", "text"), [(as_normalized, NORMALIZED_BOXES), (as_corners, CORNER_BOXES)])
def test_normalized_and_corner_boxes_are_reported(data, convert, text):
    content = json.loads(data.read_text())
    for annotation, (x, y) in zip(content["annotations"], [(4, 6), (40, 16), (20, 30), (26, 38)], strict=True):
        width, height = SIZES[annotation["image_id"] - 1]
        annotation["bbox"] = convert(x, y, 12, 20, width, height)
    data.write_text(json.dumps(content))
    found = inspect(data)
    (advice,) = [item for item in found.advice if item.text in (NORMALIZED_BOXES, CORNER_BOXES)]
    assert (advice.text, advice.count, advice.annotations, advice.images) == (text, 4, [1, 2, 3, 4], [1, 1, 2, 2])
    assert not found.is_refused("stop")
    assert found.is_refused("strict")


def test_a_few_suspect_boxes_are_not_reported(data):
    """Boxes near the corner, boxes of whole images and boxes that exceed the image slightly occur in correct data."""
    content = json.loads(data.read_text())
    for boxes in (
        [[0, 0, 1, 1], [4, 6, 12, 20], [14, 6, 12, 20], [0, 0, 40, 60]],
        [[0, 0, 60, 40], [0, 0, 60, 40], [0, 0, 40, 60], [0, 0, 40, 60]],
        [[50, 6, 20, 20], [55, 6, 12, 20], [35, 6, 12, 20], [4, 50, 12, 20]],
        [[4, 6, 0, 0]] * 4,
    ):
        for annotation, box in zip(content["annotations"], boxes, strict=True):
            annotation["bbox"] = box
        assert suspect_boxes(CocoData(content["images"], content["annotations"], content["categories"])) is None


def test_advice_with_unusual_ids_and_values(data):
    content = json.loads(data.read_text())
    for number, image in enumerate(content["images"]):
        image.update(id=number, license={"odd": [1]})
    for annotation in content["annotations"]:
        annotation.update(image_id=annotation["image_id"] - 1, id=-annotation["id"], score="high", keypoints="none")
    content["annotations"].append({**content["annotations"][0], "id": 2**52})
    data.write_text(json.dumps(content))
    found = inspect(data)
    assert not found.findings.problems
    assert {-1, 2**52} in [set(item.annotations) for item in found.advice]


def test_leakage(tmp_path, data):
    """Identical files and resampled copies of an image are found, different images are not."""
    val = write_dataset(tmp_path / "val", seed=1)
    train = inspect(data, perceptual_hashes=True)
    assert find_leakage(train, inspect(val, perceptual_hashes=True)) == []
    shutil.copy(data.parent / "photo2.png", val.parent / "photo2.png")
    smooth = Image.fromarray(np.random.default_rng(5).integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((50, 50))
    smooth.save(data.parent / "photo3.png")
    smooth.resize((55, 55)).resize((50, 50)).save(val.parent / "photo3.png")
    identical, similar = find_leakage(inspect(data, perceptual_hashes=True), inspect(val, perceptual_hashes=True))
    assert (identical.images, identical.names) == ([2], ["photo2.png = photo2.png"])
    assert similar.images == [3]
    assert "look like" in similar.text


def test_no_leakage_between_real_splits(shared_dir):
    """Microscope images look similar, but none is reported as a duplicate."""
    root = shared_dir / "data/blood_cells"
    parts = [
        inspect_dataset(
            root / f"annotations/instances_{part}.json", root / "images", Path(), level="off", perceptual_hashes=True
        )
        for part in ("train", "val")
    ]
    assert find_leakage(*parts) == []


def test_anchors_fit_the_boxes():
    strides, octaves = (8, 16, 32, 64, 128), (1, 2 ** (1 / 3), 2 ** (2 / 3))
    generator = np.random.default_rng(0)
    for size in (12, 40):
        boxes = size * np.exp(generator.normal(0, 0.2, (200, 2)))
        anchors = fit_anchors(boxes, strides, octaves, 4.0)
        assert anchors.covered >= anchors.covered_by_coco
        assert anchors.covered > 0.8
        assert anchors.sizes[0][0] == round(anchors.factor * 8, 2)
        assert anchors.ratios == [0.5, 1.0, 2.0]
    small = fit_anchors(np.full((9, 2), 12.0), strides, octaves, 4.0)
    assert (small.covered, small.covered_by_coco) == (1.0, 0.0)
    tall = np.array([[10.0, 60.0]] * 50)
    assert min(fit_anchors(tall, strides, octaves, 4.0).ratios) > 2


@pytest.mark.parametrize(
    ("name", "side", "iterations", "detections"), [("blood_cells", 256, 700, 100), ("nuclei", 256, 500, 200)]
)
def test_settings_are_close_to_the_hand_written_configs(shared_dir, name, side, iterations, detections):
    root = shared_dir / "data" / name
    contents = [json.loads((root / f"annotations/instances_{part}.json").read_text()) for part in ("train", "val")]
    parts = [describe(CocoData(c["images"], c["annotations"], c["categories"])) for c in contents]
    task = "mask-rcnn" if parts[0].has_masks else "retinanet"
    most = max(int(part.per_image.max()) for part in parts)
    settings = recommend(parts[0], task, on_cpu=True, batch=4, pretrained=False, most_objects=most)
    assert settings.short_side == side
    assert settings.iterations == pytest.approx(iterations, rel=0.15)
    assert settings.iterations % 10 == 0
    assert settings.learning_rate == 4e-4
    assert settings.anchors.factor == 2.0
    assert settings.detections >= detections
    on_gpu = recommend(parts[0], task, on_cpu=False, batch=16, pretrained=True, most_objects=most)
    assert on_gpu.short_side > side
    assert on_gpu.iterations * 16 >= 16_000
    assert on_gpu.learning_rate == 2e-4


def test_to_coco_skips_broken_images(tmp_path):
    """A broken image is reported as one problem, and the other images are converted."""
    write_dataset(tmp_path / "images")
    (tmp_path / "images/broken.jpg").write_bytes(b"x")
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/photo1.txt").write_text("0 .5 .5 .5 .5")
    findings = Findings()
    to_coco(tmp_path / "labels", tmp_path / "images", tmp_path / "out.json", findings)
    assert [p.count for p in findings.problems.values()] == [1]
    assert len(json.loads((tmp_path / "out.json").read_text())["images"]) == 3
