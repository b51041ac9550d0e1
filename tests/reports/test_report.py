"""The HTML report of a run: its content, that it is self-contained, and its layout in a browser."""

from __future__ import annotations

import base64
import html as html_parser
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from pvt_det.config import get_config
from pvt_det.errors import DataError
from pvt_det.reports.page import write_report
from pvt_det.utils.digest import file_digest

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
SIZES = [40, 40, 40, 12]  # side of each image's object in pixels


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on four images with two correct detections, one with the wrong class, and one missed object."""
    folder = tmp_path_factory.mktemp("run")
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    truth = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "<dog>"}]}
    found = []
    for number, side in enumerate(SIZES, start=1):
        Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)).save(images / f"{number}.png")
        truth["images"].append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 128})
        category = 3 if number % 2 else 9
        box = [10.0 * number, 20.0, float(side), float(side)]
        truth["annotations"].append(
            {"id": number, "image_id": number, "category_id": category, "bbox": box, "area": side**2, "iscrowd": 0}
        )
        if number < 4:
            label = 9 if number == 3 else category
            found.append({"image_id": number, "category_id": label, "bbox": box, "score": 0.9 - number / 20})
    (folder / "val.json").write_text(json.dumps(truth))
    (folder / "detections.json").write_text(json.dumps(found))
    cfg = get_config()
    cfg.MODEL.META_ARCHITECTURE = "PVTRetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_pvt_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["stage2", "stage3", "stage4"]
    cfg.DATASETS.VAL_JSON, cfg.DATASETS.VAL_IMAGES = str(folder / "val.json"), str(images)
    (folder / "config.yaml").write_text(cfg.dump())
    lines = [{"iteration": i, "total_loss": 2.0 / (i + 1), "lr": 0.01, "bbox/AP": 10.0 * i} for i in range(3)]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)) + '\n{"iteration": 3, "total')
    results = {
        "config_file": "configs/mine.yaml",
        "model": "RetinaNet pvt_tiny",
        "recipe": "adamw lr 0.001",
        "dataset": "val",
        "parameters": 14431560,
        "kind": "training",
        "checkpoints": {
            "final": {
                "file": "model_final.pth",
                "sha256": "",
                "iteration": 3,
                "metrics": {"bbox": {"AP": 37.6, "AP50": 37.6, "APl": None, "AP-cat": 50.5}},
            },
            "best": {"file": "model_best.pth", "sha256": "", "iteration": 1, "metrics": {"bbox": {"AP": 41.2}}},
        },
        "shown": "final",
        "data": [],
        "detections": {"file": "detections.json", "sha256": ""},
        "ground_truth": {"file": "val.json", "sha256": "5" * 64},
        "environment": {"device": "a processor", "versions": {"torch": "2.14"}},
    }
    results["ground_truth"]["sha256"] = file_digest(folder / "val.json")
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture(scope="module")
def page(run):
    write_report(run, run / "out" / "report.html", base=run)
    return run / "out" / "report.html"


def test_report_shows_the_results_of_the_run(page):
    text = page.read_text()
    headings = [html_parser.unescape(heading) for heading in re.findall("<h2>(.*?)</h2>", text)]
    assert headings == [
        "Metrics",
        f"Compared with {page.parents[1].name}",
        "Boxes: classes and sizes",
        "Boxes: precision and recall",
        "Boxes: errors and calibration",
        "Boxes: confusion",
        "Worst images",
        "Training",
        "Environment",
        "Configuration",
    ]
    assert "3.png: 1 missed, 1 false" in text
    assert "4.png: 1 missed, 0 false" in text
    assert text.index("3.png: 1 missed") < text.index("4.png: 1 missed")
    assert "1.png" not in text  # has no error
    assert "torch 2.14" in text
    assert text.index("Weights: model_final.pth (iteration 3)") < text.index("Weights: model_best.pth (iteration 1)")
    assert "META_ARCHITECTURE: PVTRetinaNet" in text
    assert "AP differs by +0.00 [+0.00, +0.00]" in text
    assert '<td class="number">37.6</td><td class="number">37.6</td><td class="number">+0.0</td>' in text


def test_per_class_results(page):
    table = page.read_text().split("classes and sizes")[1].split("</table>")[0]
    rows = re.findall(r"<tr><td>(.*?)</td>(.*?)</tr>", table)
    numbers = {name: re.findall(r">([\d.]*)</td>", cells) for name, cells in rows}
    # One of two cats was found, and the large one of two dogs. The other cat was detected as a dog.
    assert numbers["cat"][:2] == ["2", "50.5"]
    assert numbers["&lt;dog&gt;"][0] == "2"
    assert numbers["cat"][4] == ""  # no small cat
    assert numbers["&lt;dog&gt;"][4] == "0.0"


def test_report_is_self_contained_and_escapes_names(page):
    text = page.read_text()
    assert "<dog>" not in text
    assert not re.findall(r'(?:src|href|srcset)="(?!data:)', text)
    assert "<script" not in text


def test_report_of_a_run_without_images_says_so(run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    (moved / "config.yaml").unlink()
    (moved / "metrics.json").unlink()
    write_report(moved, moved / "report.html")
    text = (moved / "report.html").read_text()
    assert "No pictures: " in text
    assert "config.yaml does not exist" in text
    assert f"pvt-det report {moved} --val-images DIR" in text
    assert "<h2>Training</h2>" not in text


def test_report_of_an_earlier_version_says_that_its_ground_truth_was_not_recorded(run, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(run, old)
    results = json.loads((run / "results.json").read_text())
    metrics = results["checkpoints"]["final"]["metrics"]
    for key in ("kind", "checkpoints", "shown", "data", "detections", "ground_truth"):
        del results[key]
    results |= {"metrics": metrics, "results_file": "detections.json", "annotations": str(old / "val.json")}
    (old / "results.json").write_text(json.dumps(results))
    write_report(old, old / "report.html")
    text = (old / "report.html").read_text()
    assert "did not record the weights and the ground truth" in text
    assert "Boxes: classes and sizes" in text


def test_folder_without_results_is_refused(tmp_path):
    with pytest.raises(DataError, match="results"):
        write_report(tmp_path, tmp_path / "report.html")


def test_images_with_exif_rotation_are_drawn_upright(run, tmp_path):
    """Boxes refer to the upright image, so the image must be upright too."""
    rotated = tmp_path / "rotated"
    shutil.copytree(run, rotated)
    (rotated / "val.json").rename(rotated / "rotated.json")  # use a new data set name
    for file in ("config.yaml", "results.json"):
        text = (rotated / file).read_text().replace(str(run), str(rotated)).replace("val.json", "rotated.json")
        (rotated / file).write_text(text.replace('"dataset": "val"', '"dataset": "rotated"'))
    photo = rotated / "images/4.png"
    exif = Image.Exif()
    exif[274] = 6  # rotated by 90 degrees
    left_is_white = np.zeros((96, 128, 3), np.uint8)
    left_is_white[:, :64] = 255
    Image.fromarray(np.rot90(left_is_white).copy()).save(photo, exif=exif)
    write_report(rotated, rotated / "report.html")
    caption = '4.png: 1 missed, 0 false" src="data:image/jpeg;base64,'
    pictures = [text.split('"')[0] for text in (rotated / "report.html").read_text().split(caption)[1:]]
    assert len(pictures) == 2  # ground truth, detections
    for data in pictures:
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert shown.shape == (420, 560, 3)
        assert shown[-60:, :200].min() > 200
        assert shown[-60:, -200:].max() < 60


def test_all_objects_are_missed_if_all_scores_are_low(run, tmp_path):
    low = tmp_path / "low"
    shutil.copytree(run, low)
    found = json.loads((low / "detections.json").read_text())
    (low / "detections.json").write_text(json.dumps([{**each, "score": each["score"] / 3} for each in found]))
    write_report(low, low / "report.html")
    text = (low / "report.html").read_text()
    assert all(f"{number}.png: 1 missed, 0 false" in text for number in (1, 2, 3, 4))


def test_run_on_several_data_sets_is_refused(run, tmp_path):
    results = json.loads((run / "results.json").read_text())
    results["checkpoints"]["final"]["metrics"] = {"a": {"bbox": {"AP": 1.0}}, "b": {}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(DataError, match=r"several data sets \(a\)"):
        write_report(tmp_path, tmp_path / "report.html")


@pytest.mark.parametrize("width", [390, 1200])
def test_page_fits_the_browser_window(page, width, tmp_path):
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser is installed: expected one of {', '.join(BROWSERS)}")
    # The page does not allow scripts, so a copy gets a script that reports its width. The copy is in a frame because a
    # browser window cannot be as narrow as a phone.
    layout = "[document.documentElement.scrollWidth, [...document.images].every(i => i.naturalWidth > 0)].join(' ')"
    script = f"<script>onload = () => {{ parent.document.title = {layout} }}</script>"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", page.read_text())
    text = text.replace('loading="lazy"', "").replace("</body>", f"{script}</body>")
    frame = f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{html_parser.escape(text)}"></iframe>'
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html><html><body>{frame}</body></html>")
    quiet = [
        "--disable-background-networking",
        "--disable-sync",
        "--no-first-run",
        f"--user-data-dir={tmp_path}/profile",
    ]
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", *quiet, "--window-size=1300,900", "--dump-dom"]
    shown = subprocess.run([*command, f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=120)
    scroll_width, all_images = re.search(r"<title>(\d+) (\w+)</title>", shown.stdout).groups()
    assert width / 2 < int(scroll_width) <= width
    assert all_images == "true"
