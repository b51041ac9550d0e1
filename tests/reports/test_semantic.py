"""The report's sections about label maps."""

from __future__ import annotations

import html as html_parser
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from pvt_det.config import get_config
from pvt_det.errors import ConfigError
from pvt_det.evaluation.label_results import (
    SEGMENTATION_FILE,
    ImageResult,
    LabelResults,
    segments_of,
    write_label_results,
)
from pvt_det.reports.page import write_report
from pvt_det.utils.digest import file_digest

CLASSES = ["road", "<car>", "tree"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on two images. In the first, a third of the car is predicted as tree."""
    folder = tmp_path_factory.mktemp("run")
    random = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir()
    truth = np.zeros((24, 36), np.uint8)
    truth[:, 18:] = 1
    truth[:4] = 9
    for name in "ab":
        Image.fromarray(random.integers(0, 255, (24, 36, 3), dtype=np.uint8)).save(folder / f"images/{name}.jpg")
        Image.fromarray(truth).save(folder / f"labels/{name}.png")
    wrong = truth % 9
    wrong[:, 30:] = 2
    confusion = np.array([[720, 0, 0], [0, 600, 120], [0, 0, 0]])
    images = [ImageResult(f"/elsewhere/{name}.jpg", 83.3, 83.3, segments_of(found)) for name, found in (("a", wrong),)]
    best = ImageResult("/elsewhere/b.jpg", 100.0, 100.0, segments_of(truth % 9))
    results = LabelResults(tuple(CLASSES), 9, confusion, tuple(images), (best,))
    write_label_results(folder / SEGMENTATION_FILE, results)
    cfg = get_config()
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_pvt_fpn_backbone"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 3, 9
    cfg.MODEL.FPN.IN_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    cfg.DATASETS.VAL_IMAGES, cfg.DATASETS.VAL_LABELS = str(folder / "images"), str(folder / "labels")
    cfg.DATASETS.LABEL_NAMES = CLASSES
    (folder / "config.yaml").write_text(cfg.dump())
    metrics = {"mIoU": 90.0, "pACC": 91.7, "IoU-road": 80.0, "IoU-<car>": 100.0, "IoU-tree": None}
    metrics |= {"ACC-road": 81.5, "ACC-<car>": 100.0, "ACC-tree": None}
    content = {
        "config_file": "configs/mine.yaml",
        "model": "Semantic FPN pvt_tiny",
        "recipe": "adamw lr 0.001",
        "dataset": "labels",
        "parameters": 14431560,
        "kind": "training",
        "checkpoints": {
            "final": {"file": "model_final.pth", "sha256": "", "iteration": 3, "metrics": {"sem_seg": metrics}}
        },
        "shown": "final",
        "data": [],
        "segmentation": {"file": SEGMENTATION_FILE, "sha256": file_digest(folder / SEGMENTATION_FILE)},
    }
    (folder / "results.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def sections(run):
    write_report(run, run / "report.html")
    text = (run / "report.html").read_text()
    assert "<car>" not in text
    parts = re.split("<h2>(.*?)</h2>", text)
    return dict(zip(map(html_parser.unescape, parts[1::2]), parts[2::2], strict=True))


def test_sections(sections):
    names = [name for name in sections if name.startswith("Segmentation")]
    assert names == ["Segmentation: classes", "Segmentation: confusion", "Segmentation: images"]
    assert "IoU-" not in sections["Metrics"]
    assert "90.0" in sections["Metrics"]


def test_classes_are_sorted_by_iou_with_accuracy_and_share(sections):
    rows = re.findall("<tr><td>.*?</span>(.*?)</td>(.*?)</tr>", sections["Segmentation: classes"])
    cells = [(name, re.findall(">([^<]*)</td>", numbers)) for name, numbers in rows]
    assert "1 class without ground truth left out" in sections["Segmentation: classes"]
    assert cells == [
        ("&lt;car&gt;", ["100.00", "100.00", "50.00"]),
        ("road", ["80.00", "81.50", "50.00"]),
    ]


def test_confusion_matrix_in_percent(sections):
    text = html_parser.unescape(sections["Segmentation: confusion"])
    assert "16.7% of '<car>' is predicted as 'tree' (120 pixels)" in text
    rows = dict(re.findall('<th scope="row">(.*?)</th>(.*?)</tr>', text))
    assert re.findall(">(.*?)</td>", rows["<car>"]) == ["", "83", "17"]
    assert re.findall("--heat:(.*?)%", rows["<car>"]) == ["0", "83", "17"]


def test_images_with_truth_prediction_and_errors(sections):
    text = sections["Segmentation: images"]
    assert text.count("data:image/jpeg") == 2 * 4
    assert text.index("a.jpg: IoU 83.3, 83.3% of the pixels are correct") < text.index("Best images")
    assert text.index("Best images") < text.index("b.jpg: IoU 100.0")
    for title in ("image", "truth", "prediction", "errors"):
        assert f"<small>{title}</small>" in text
    assert "void (ignored)" in text


def test_changed_results_and_missing_images_are_reported(run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    (moved / "config.yaml").unlink()
    write_report(moved, moved / "report.html")
    assert "No pictures: " in (moved / "report.html").read_text()
    with (moved / SEGMENTATION_FILE).open("a") as file:
        file.write(" ")
    write_report(moved, moved / "report.html")
    text = (moved / "report.html").read_text()
    assert "segmentation.json is not the file that results.json describes" in text
    assert "The confusion matrix and the predictions were not recorded" in text
    assert "Segmentation: images" not in text


@pytest.mark.parametrize("labels", [None, "labels"])
def test_moved_images_and_label_maps_are_found_in_the_given_folders(run, tmp_path, labels):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    config = (tmp_path / "config.yaml").read_text()
    lost = [name for name in ("images", labels) if name]
    for name in lost:
        config = config.replace(str(run / name), f"/nowhere/{name}")
    (tmp_path / "config.yaml").write_text(config)
    page = tmp_path / "page.html"
    write_report(tmp_path, page)
    assert "data:image/jpeg" not in page.read_text()
    write_report(tmp_path, page, images=tmp_path / "images", labels=tmp_path / labels if labels else None)
    text = page.read_text()
    assert text.count("data:image/jpeg") == 2 * 4
    assert "a.jpg: IoU 83.3" in text


def test_missing_folder_of_label_maps_is_an_error(run, tmp_path):
    with pytest.raises(ConfigError, match=r"--val-labels .*lost does not exist.*folder of the validation label maps"):
        write_report(run, tmp_path / "page.html", labels=tmp_path / "lost")
