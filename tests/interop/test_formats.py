"""YOLO and LabelMe files hold what was detected, readers understand them, and COCO json can be evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import hotcoco
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.progress import Progress

from pvt_det.data.coco.findings import Findings
from pvt_det.inference.files import PredictionFiles
from pvt_det.inference.journal import Journal
from pvt_det.inference.run import PredictionRun
from pvt_det.inference.sources import find_sources
from pvt_det.inspection.formats import to_coco
from pvt_det.interop.formats import FORMATS
from pvt_det.interop.outlines import joined, outlines
from pvt_det.structures.masks import RunLengthMasks
from pvt_det.structures.rle import decode, encode, from_polygon

SIZE = (80, 120)
NAMES = ("cat", "dög")
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]


def disk(x: int, y: int, radius: int) -> np.ndarray:
    return ((ROWS - y) ** 2 + (COLUMNS - x) ** 2 < radius**2).astype(np.uint8)


MASKS = {
    "disk": disk(60, 40, 25),
    "with a hole": disk(60, 40, 30) - disk(60, 40, 12),
    "in two parts": disk(20, 20, 12) + disk(90, 60, 15),
    "one pixel": disk(7, 9, 1),
    "whole image": np.ones(SIZE, np.uint8),
    "box": np.pad(np.ones((30, 50), np.uint8), ((10, 40), (20, 50))),
}


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


@pytest.mark.parametrize("name", MASKS)
def test_polygons_cover_the_pixels_of_the_mask(name):
    mask = MASKS[name]
    parts = outlines(encode(mask[None])[0])
    assert [len(rings) for rings in parts] == {"with a hole": [2], "in two parts": [1, 1]}.get(name, [1])
    polygon = joined(ring for rings in parts for ring in rings)
    drawn = decode(from_polygon(polygon.ravel().tolist(), *SIZE))
    assert overlap(drawn, mask) > 0.97
    assert len(polygon) < 80


def test_empty_mask_has_no_outlines():
    assert outlines(encode(np.zeros((1, *SIZE), np.uint8))[0]) == []


def found(names: list[str], *, masks: bool) -> Instances:
    """Return a detection for each of some masks, the first of class 0 and the others of class 1."""
    pixels = np.stack([MASKS[name] for name in names]) if names else np.zeros((0, *SIZE), np.uint8)
    boxes = np.array([[*np.argwhere(m).min(0)[::-1], *(np.argwhere(m).max(0)[::-1] + 1)] for m in pixels])
    result = Instances(
        SIZE,
        pred_boxes=Boxes(torch.from_numpy(boxes.reshape(-1, 4)).float()),
        scores=torch.linspace(0.9, 0.6, max(len(names), 1))[: len(names)],
        pred_classes=(torch.arange(len(names)) > 0).long(),
    )
    if masks:
        result.pred_masks = RunLengthMasks.encode(torch.from_numpy(pixels))
    return result


CONTENT = {"sub/a.png": ["disk", "with a hole", "in two parts"], "b.png": [], "c.png": ["box"]}


@pytest.fixture
def write(tmp_path):
    """Predict on three images, and a video if wanted, and write every format. Return the output folder."""

    def run(*, masks: bool, video: bool = False) -> Path:
        for name in CONTENT:
            (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / name)
        inputs = [tmp_path / "images"]
        left = [found(names, masks=masks) for _, names in sorted(CONTENT.items())]
        if video:
            writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 12.0, SIZE[::-1])
            for _ in range(2):
                writer.write(np.full((*SIZE, 3), 200, np.uint8))
            writer.release()
            inputs.append(tmp_path / "v.avi")
            left += [found(["box"], masks=masks)] * 2
        files = PredictionFiles(
            Journal(tmp_path / "out"), NAMES, pictures=False, crops=False, formats=[each() for each in FORMATS.values()]
        )
        steps = PredictionRun(
            lambda images: [left.pop(0) for _ in images],
            files,
            batch_size=2,
            progress=Progress(disable=True),
            quiet=True,
        )
        assert steps.run(find_sources(map(str, inputs))) == []
        return tmp_path / "out"

    return run


def test_yolo_lines(write):
    folder = write(masks=False) / "yolo"
    assert (folder / "classes.txt").read_text(encoding="utf-8") == "cat\ndög\n"
    assert (folder / "labels/c.txt").read_text() == "0 0.375000 0.312500 0.416667 0.375000 0.900000\n"
    assert (folder / "labels/b.txt").read_text() == ""
    assert len((folder / "labels/sub/a.txt").read_text().splitlines()) == 3


@pytest.mark.parametrize("masks", [False, True])
def test_inspect_reads_the_yolo_files(write, masks):
    out = write(masks=masks)
    findings = Findings()
    to_coco(out / "yolo/labels", out.parent / "images", out / "labels.json", findings)
    data = json.loads((out / "labels.json").read_text())
    assert [category["name"] for category in data["categories"]] == list(NAMES)
    assert {kind: problem.count for kind, problem in findings.problems.items()} == {"label line with a score": 4}
    assert not findings.refused("stop")
    names = {image["id"]: image["file_name"] for image in data["images"]}
    assert sorted(names.values()) == sorted(CONTENT)
    read: dict[str, list] = {}
    for each in data["annotations"]:
        read.setdefault(names[each["image_id"]], []).append(each)
    assert {name: len(objects) for name, objects in read.items()} == {"c.png": 1, "sub/a.png": 3}
    for name, objects in read.items():
        wanted = found(CONTENT[name], masks=masks)
        assert [each["category_id"] for each in objects] == wanted.pred_classes.tolist()
        for each, box, mask in zip(objects, wanted.pred_boxes.tensor.tolist(), CONTENT[name], strict=True):
            x, y, width, height = each["bbox"]
            assert [x, y, x + width, y + height] == pytest.approx(box, abs=0.6 if masks else 1e-3)
            if masks:
                drawn = decode(from_polygon(each["segmentation"][0], *SIZE))
                assert overlap(drawn, MASKS[mask]) > 0.97


def read_labelme(file: Path) -> dict:
    """Check a file as LabelMe does when it opens one, and return its content."""
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["imageData"] is None
    assert Image.open(file.parent / content["imagePath"]).size == (content["imageWidth"], content["imageHeight"])
    assert not Path(content["imagePath"]).is_absolute()
    for shape in content["shapes"]:
        assert isinstance(shape["label"], str)
        assert isinstance(shape["group_id"], int | None)
        assert shape["flags"] == {}
        assert all(isinstance(value, int | float) for x, y in shape["points"] for value in (x, y))
        assert {"polygon": len(shape["points"]) >= 3, "rectangle": len(shape["points"]) == 2}[shape["shape_type"]]
    return content


def test_labelme_files_with_rectangles(write):
    folder = write(masks=False, video=True) / "labelme"
    (shape,) = read_labelme(folder / "c.json")["shapes"]
    assert (shape["label"], shape["points"], shape["group_id"]) == ("cat", [[20, 10], [70, 40]], None)
    assert shape["score"] == pytest.approx(0.9)
    assert read_labelme(folder / "b.json")["shapes"] == []
    nested = read_labelme(folder / "sub/a.json")
    assert [each["label"] for each in nested["shapes"]] == ["cat", "dög", "dög"]
    assert nested["imagePath"] == "../../../images/sub/a.png"
    frame = read_labelme(folder / "v/000002.json")
    assert frame["imagePath"] == "000002.jpg"
    assert np.asarray(Image.open(folder / "v/000002.jpg")).mean() == pytest.approx(200, abs=2)


def test_labelme_polygons_of_one_object_share_a_group(write):
    shapes = read_labelme(write(masks=True) / "labelme/sub/a.json")["shapes"]
    assert [(each["shape_type"], each["group_id"]) for each in shapes] == [
        ("polygon", None),
        ("polygon", None),
        ("polygon", 3),
        ("polygon", 3),
    ]
    drawn = [decode(from_polygon(np.ravel(each["points"]).tolist(), *SIZE)) for each in shapes]
    for mask, name in zip((drawn[0], drawn[1], drawn[2] | drawn[3]), CONTENT["sub/a.png"], strict=True):
        assert overlap(mask, MASKS[name]) > 0.97


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_coco_results_can_be_evaluated(write, kind, tmp_path):
    """Perfect detections have AP 1 with pycocotools, and hotcoco reads them."""
    out = write(masks=True)
    results = json.loads((out / "detections.json").read_text())
    truth = json.loads((out / "images.json").read_text())
    truth["annotations"] = [
        {**each, "id": number, "iscrowd": 0, "area": each["bbox"][2] * each["bbox"][3]}
        for number, each in enumerate(results, start=1)
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    gt = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(gt, gt.loadRes(str(out / "detections.json")), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == 1.0
    read = hotcoco.COCO(str(tmp_path / "truth.json")).load_res(str(out / "detections.json"))
    assert len(read.get_ann_ids()) == len(results) == 4
