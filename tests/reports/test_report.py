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
from matplotlib import pyplot as plt
from matplotlib.text import Text
from PIL import Image

from pvt_det.config import get_config
from pvt_det.errors import ConfigError, DataError
from pvt_det.evaluation.thresholds import match_scores
from pvt_det.reports import figures
from pvt_det.reports.detection import build_evaluators
from pvt_det.reports.page import write_report
from pvt_det.results import load_run
from pvt_det.utils.digest import file_digest
from tests.command_line import run_command

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
        "Boxes: score threshold",
        "Boxes: precision and recall",
        "Boxes: errors and calibration",
        "Boxes: confusion",
        "Validation images",
        "Worst images",
        "Training",
        "Environment",
        "Configuration",
    ]
    assert "3.png: 1 missed, 0 false" in text  # The wrong detection is below the threshold.
    assert "4.png: 1 missed, 0 false" in text
    assert text.index("3.png: 1 missed") < text.index("4.png: 1 missed")
    assert "1.png" not in text.split("<h2>Worst images")[1]  # has no error
    assert "torch 2.14" in text
    assert text.index("Weights: model_final.pth (iteration 3)") < text.index("Weights: model_best.pth (iteration 1)")
    assert "META_ARCHITECTURE: PVTRetinaNet" in text
    assert "AP differs by +0.00 [+0.00, +0.00]" in text
    assert '<td class="number">37.60</td><td class="number">37.60</td><td class="number">+0.00</td>' in text


def test_per_class_results(page):
    table = page.read_text().split("classes and sizes")[1].split("</table>")[0]
    rows = re.findall(r"<tr><td>(.*?)</td>(.*?)</tr>", table)
    numbers = {name: re.findall(r">([\d.]*)</td>", cells) for name, cells in rows}
    # One of two cats was found, and the large one of two dogs. The other cat was detected as a dog.
    assert numbers["cat"][:2] == ["2", "50.50"]
    assert numbers["&lt;dog&gt;"][0] == "2"
    assert numbers["cat"][4] == ""  # no small cat
    assert numbers["&lt;dog&gt;"][4] == "0.00"


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


def copy_with_scores(run, folder, factor):
    shutil.copytree(run, folder)
    found = json.loads((folder / "detections.json").read_text())
    (folder / "detections.json").write_text(json.dumps([{**each, "score": each["score"] * factor} for each in found]))
    return folder


def test_threshold_with_the_best_f1_is_chosen_and_explained(page):
    """The correct detections have the scores 0.85 and 0.8, and the wrong one has 0.75."""
    section = page.read_text().split("Boxes: score threshold</h2>")[1].split("</section>")[0]
    # Cat: 1 of 2 found, nothing wrong. Dog: 1 of 2 found. The threshold is between 0.75 and 0.8.
    assert "Score threshold 0.775: F1 66.67%, precision 100.00%, recall 50.00% (means over 2 classes" in section
    assert "This threshold has the best F1." in section
    assert '<td>cat</td><td class="number">2</td><td class="number">100.00</td><td class="number">50.00</td>' in section
    assert section.count("<picture>") == 2


def test_low_scores_of_an_undertrained_model_are_shown(run, tmp_path):
    """With a fixed threshold of 0.5, every picture would be empty, and every object would be confused with nothing."""
    low = copy_with_scores(run, tmp_path / "low", 0.1)
    write_report(low, low / "report.html")
    text = (low / "report.html").read_text()
    assert "Score threshold 0.078: F1 66.67%" in text
    worst = text.split("<h2>Worst images")[1]
    assert "1.png" not in worst
    assert "3.png: 1 missed, 0 false" in worst


def test_given_threshold_replaces_the_best_one(run, tmp_path):
    low = copy_with_scores(run, tmp_path / "low", 0.1)
    assert run_command("report", [low, "--score-threshold", "0.5"]) == 0
    text = (low / "report.html").read_text()
    assert "Score threshold 0.5: F1 0.00%, precision none, recall 0.00%" in text
    assert "The best F1 is at 0.078: F1 66.67%" in text
    assert all(f"{number}.png: 1 missed, 0 false" in text for number in (1, 2, 3, 4))
    with pytest.raises(ConfigError, match=r"score threshold 1\.5: expected a number from 0 to 1"):
        run_command("report", [low, "--score-threshold", "1.5"])


def test_model_without_a_correct_detection_gets_pictures_and_a_notice(run, tmp_path):
    wrong = tmp_path / "wrong"
    shutil.copytree(run, wrong)
    box = {"category_id": 3, "bbox": [90, 60, 20, 20]}
    found = [{**box, "image_id": 1, "score": score} for score in (0.03, 0.02, 0.01, 0.009, 0.002)]
    (wrong / "detections.json").write_text(json.dumps(found))
    write_report(wrong, wrong / "report.html")
    text = (wrong / "report.html").read_text()
    assert "No detection is correct at IoU 0.5." in text
    assert "with a score of at least 0.009: about as many as there are objects." in text
    assert "1.png: 1 missed, 4 false" in text


def test_mosaic_shows_the_same_images_with_objects_and_with_detections(page):
    section = page.read_text().split("<h2>Validation images")[1].split("</section>")[0]
    objects, detections = section.split("<h3>")[1:]
    assert (objects.split("<")[0], detections.split("<")[0]) == ("Ground truth", "Detections")
    names = [re.findall("<figcaption>(.*?)</figcaption>", part) for part in (objects, detections)]
    assert names[0] == names[1] == ["1.png", "2.png", "3.png", "4.png"]
    drawn = [re.findall(r'src="data:image/jpeg;base64,(.*?)"', part) for part in (objects, detections)]
    assert all(len(pictures) == 4 for pictures in drawn)
    assert drawn[0][0] != drawn[1][0]


def test_figures_are_in_percent(run, monkeypatch):
    """Text in figures is drawn as paths, so it is read from the axes."""
    texts = set()

    def read(draw, size, caption):
        figure, axes = plt.subplots()
        draw(axes)
        figure.canvas.draw()
        texts.update(text.get_text() for text in figure.findobj(Text))
        plt.close(figure)
        return figures.Html(caption)

    monkeypatch.setattr(figures, "_both", read)
    boxes = build_evaluators(load_run(run))["bbox"]
    figures.precision_recall(boxes)
    figures.errors(boxes, boxes)
    figures.confusion(boxes, 0.5)
    figures.threshold_curves(match_scores(boxes), 0.5)
    labels = ("Recall", "Precision", "Detected as", "Score", "Correct detections", "F1", "Mean over classes")
    assert {f"{label} (%)" for label in labels} <= texts
    assert {"<dog> (2)", "cat (2)", "50", "100", "missed object"} <= texts
    # The scores of thresholds are options, and the only numbers from 0 to 1.
    assert {text for text in texts if re.fullmatch(r"0\.\d+", text)} == {"0.0", "0.2", "0.4", "0.6", "0.8"}


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
