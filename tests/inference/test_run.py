"""Prediction on files, folders and videos: output files, broken inputs, tiles and label maps."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePath

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from rich.console import Console
from rich.progress import Progress

import pvt_det
from pvt_det.config import get_config, load_config
from pvt_det.data.mapper import build_augmentations
from pvt_det.errors import ConfigError, DataError, NumericError
from pvt_det.inference.files import PredictionFiles
from pvt_det.inference.frames import Video
from pvt_det.inference.journal import Journal
from pvt_det.inference.run import PredictionRun
from pvt_det.inference.segmentor import Segmentor
from pvt_det.inference.sources import Source, find_sources
from pvt_det.inference.tiling import TiledPredictor
from pvt_det.structures.masks import RunLengthMasks
from pvt_det.utils.visualizer import class_colors, draw_labels
from pvt_det.weights import load_pretrained
from tests.command_line import run_command

BOX = (10, 20, 30, 50)


def picture(*boxes, size=(64, 96)):
    """Return a black image with white boxes (x1, y1, x2, y2)."""
    pixels = np.zeros((*size, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = 255
    return pixels


def save(path: Path, pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def white_boxes(pixels, min_side=1):
    """Return detections of class 1, with masks, of the white boxes whose sides are at least `min_side`."""
    count, _, stats, _ = cv2.connectedComponentsWithStats((pixels[:, :, 0] > 128).astype(np.uint8))
    rows = [row[:4] for row in stats[1:count] if min(row[2:4]) >= min_side]
    boxes = torch.tensor(np.array(rows).reshape(-1, 4)).float()
    boxes[:, 2:] += boxes[:, :2]
    masks = torch.zeros(len(boxes), *pixels.shape[:2], dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    return Instances(
        pixels.shape[:2],
        pred_boxes=Boxes(boxes),
        scores=torch.full((len(boxes),), 0.9),
        pred_classes=torch.ones(len(boxes), dtype=torch.int64),
        pred_masks=RunLengthMasks.encode(masks),
    )


def test_find_sources_in_files_folders_and_patterns_with_unique_names(tmp_path):
    for name in ("a/x.png", "a/deep/y.JPG", "b/x.jpg", "b/z.mp4", "a/notes.txt", "c/w.avif", "c/w.JP2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_sources([str(tmp_path / "a"), str(tmp_path / "b/*"), str(tmp_path / "b/x.jpg"), str(tmp_path / "c")])
    assert [(source.path.name, source.name.as_posix(), source.is_video) for source in found] == [
        ("y.JPG", "deep/y", False),
        ("x.png", "x", False),
        ("x.jpg", "x_2", False),
        ("z.mp4", "z", True),
        ("w.JP2", "w", False),
        ("w.avif", "w_2", False),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [("nowhere.png", r"nowhere\.png does not exist"), ("*.xyz", "No file matches"), ("empty", "no image or video")],
)
def test_input_without_files_is_refused(tmp_path, given, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        find_sources([str(tmp_path / given)])


def test_empty_input_is_not_the_working_folder():
    with pytest.raises(DataError, match="'' is not a file name"):
        find_sources([""])


def test_misspelled_source_is_corrected(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"fotos does not exist\. Did you mean .*photos\? Expected an image"):
        find_sources([str(tmp_path / "fotos")])


@pytest.mark.parametrize("given", ["in", "in/*"])
def test_pipes_and_broken_links_are_reported(run, tmp_path, given):
    """Reading a pipe would block forever."""
    save(tmp_path / "in/a.png", picture(BOX))
    (tmp_path / "in/folder.png").mkdir()
    for name in ("pipe.jpg", "pipe.mp4"):
        os.mkfifo(tmp_path / "in" / name)
    (tmp_path / "in/z.png").symlink_to(tmp_path / "nowhere.png")
    errors, results, _, printed = run(tmp_path / given)
    assert len(results) == 1
    reasons = {"pipe.jpg": "is not a regular file", "pipe.mp4": "is not a regular file", "z.png": "does not exist"}
    assert len(errors) == len(reasons)
    for error, (name, reason) in zip(errors, reasons.items(), strict=True):
        assert name in error
        assert reason in error
        assert error in printed


@pytest.fixture
def run(tmp_path):
    """Detect white boxes in files. Return the errors, the results, the images and the console output."""

    def build(*words, classes=None, **options):
        files = PredictionFiles(
            Journal(tmp_path / "out"), ("cat", "and/or"), **{"pictures": True, "crops": True} | options
        )
        progress = Progress(console=Console(record=True, width=400), disable=True)
        steps = PredictionRun(
            lambda images: [white_boxes(image) for image in images],
            files,
            batch_size=2,
            progress=progress,
            classes=classes,
        )
        errors = steps.run(find_sources(map(str, words)))
        results = json.loads((tmp_path / "out/detections.json").read_text())
        images = json.loads((tmp_path / "out/images.json").read_text())
        return errors, results, images, progress.console.export_text()

    return build


def test_results_drawings_and_crops_of_a_folder_with_a_damaged_file(run, tmp_path):
    for name, boxes in (("a.png", [BOX]), ("c.png", []), ("d.png", [BOX, (50, 5, 90, 60)])):
        save(tmp_path / "in" / name, picture(*boxes))
    (tmp_path / "in/b.png").write_bytes(b"damaged")
    errors, results, images, printed = run(tmp_path / "in")
    assert len(errors) == 1
    assert "b.png" in errors[0]
    assert errors[0] in printed
    assert [Path(image["file_name"]).name for image in images["images"]] == ["a.png", "c.png", "d.png"]
    assert images["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "and/or"}]
    assert [(r["image_id"], r["category_id"], r["bbox"]) for r in results] == [
        (1, 2, [10.0, 20.0, 20.0, 30.0]),
        (3, 2, [50.0, 5.0, 40.0, 55.0]),
        (3, 2, [10.0, 20.0, 20.0, 30.0]),
    ]
    assert results[0]["segmentation"]["size"] == [64, 96]
    pictures = sorted((tmp_path / "out/pictures").iterdir())
    assert [path.name for path in pictures] == ["a.jpg", "c.jpg", "d.jpg"]
    assert Image.open(pictures[0]).size == (640, 426)
    assert np.asarray(Image.open(pictures[1])).max() < 10
    crops = sorted((tmp_path / "out/crops/and_or").iterdir())
    assert [path.name for path in crops] == ["a_1.jpg", "d_1.jpg", "d_2.jpg"]
    assert np.asarray(Image.open(crops[0])).shape == (30, 20, 3)
    assert np.asarray(Image.open(crops[0])).min() > 245


def test_classes_filter_the_detections(run, tmp_path):
    save(tmp_path / "a.png", picture(BOX))
    _, results, _, _ = run(tmp_path / "a.png", classes=[0], pictures=False, crops=False)
    assert results == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["detections.json", "images.json"]


def test_video_is_processed_frame_by_frame(run, tmp_path):
    write_video(tmp_path / "v.avi", 5)
    (tmp_path / "w.mp4").write_bytes(b"no video")
    errors, results, images, _ = run(tmp_path / "v.avi", tmp_path / "w.mp4", crops=False)
    assert len(errors) == 1
    assert "w.mp4 cannot be opened" in errors[0]
    assert [image["frame"] for image in images["images"]] == [1, 2, 3, 4, 5]
    assert [result["bbox"][0] for result in results] == pytest.approx([0, 10, 20, 30, 40], abs=1.5)
    shown = Video(tmp_path / "out/videos/v.mp4")
    assert (shown.rate, len(list(shown))) == (12.0, 5)


class NearSighted:
    """Detects white boxes. In images larger than 100 pixels, it misses boxes smaller than 60 pixels."""

    def __init__(self):
        self.cfg = get_config()
        self.class_names = ("cat", "dog")
        self.seen = []

    def __call__(self, images):
        if not isinstance(images, list):
            return self([images])[0]
        self.seen += [image.shape[:2] for image in images]
        return [white_boxes(image, min_side=60 if max(image.shape) > 100 else 1) for image in images]


def test_tiles_find_each_object_once_at_its_position():
    small = [(5, 5, 15, 25), (85, 40, 97, 55), (148, 150, 158, 158), (240, 190, 250, 200)]
    large = (100, 60, 230, 125)  # larger than a tile
    image = picture(*small, large, size=(200, 250))
    predictor = NearSighted()
    (found,) = TiledPredictor(predictor, tile=100, overlap=0.25)([image])
    wanted = torch.tensor([*small, large]).float()
    order = found.pred_boxes.tensor[:, 0].argsort()
    torch.testing.assert_close(found.pred_boxes.tensor[order], wanted[wanted[:, 0].argsort()])
    assert found.image_size == (200, 250)
    assert predictor.seen == [(200, 250), *[(100, 100)] * 9]
    for mask, box in zip(found.pred_masks, found.pred_boxes.tensor.int().tolist(), strict=True):
        assert torch.equal(mask, torch.from_numpy(picture(box, size=(200, 250))[:, :, 0] > 0))


def test_image_that_fits_into_a_tile_is_not_split():
    predictor = NearSighted()
    (found,) = TiledPredictor(predictor, tile=100)([picture(BOX)])
    assert predictor.seen == [(64, 96)]
    assert found.pred_boxes.tensor.tolist() == [list(BOX)]


@pytest.mark.parametrize(("settings", "message"), [((10,), "tile 10"), ((64, 1.0), r"overlap 1\.0")])
def test_tile_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TiledPredictor(NearSighted(), *settings)


def test_crops_stay_inside_the_output_folder(tmp_path):
    files = PredictionFiles(Journal(tmp_path / "out"), ("..",), pictures=False, crops=True)
    found = white_boxes(picture(BOX))
    found.pred_classes[:] = 0
    files.add(Source(tmp_path / "a.png", PurePath("a")), picture(BOX), found)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg")] == ["out/crops/class 0/a_1.jpg"]


def test_predict_command_reports_unreadable_files(untrained_run, shapes, tmp_path, capsys):
    (tmp_path / "damaged.png").write_bytes(b"damaged")
    words = [str(shapes / "val"), str(tmp_path / "damaged.png"), "--config-file", str(untrained_run), "--device", "cpu"]
    more = ["--output", str(tmp_path / "out"), "--score-threshold", "0.9", "--no-pictures", "--classes", "star"]
    with pytest.raises(DataError, match="1 of 4 files could not be read"):
        run_command("predict", [*words, *more])
    printed = capsys.readouterr()
    assert "damaged.png" in printed.err
    results = json.loads((tmp_path / "out/detections.json").read_text())
    assert f"{len(results)} objects in 3 images" in printed.out
    assert len(results) > 0
    assert {result["category_id"] for result in results} == {4}
    assert min(result["score"] for result in results) > 0.9
    for near in ("stra", "STAR"):
        with pytest.raises(ConfigError, match=rf"--classes {near}: .*Did you mean star"):
            run_command("predict", [*words, "--classes", near])
    with pytest.raises(ConfigError, match=r"damaged\.png cannot be created: a file is in the way\. Choose another"):
        run_command("predict", [*words, "--output", str(tmp_path / "damaged.png")])
    with pytest.raises(ConfigError, match=r"Device cuda:99 is not available: PyTorch can use .*cpu"):
        run_command("predict", [*words, "--device", "cuda:99"])
    assert (
        run_command("predict", [*words[:1], *words[2:], "--score-threshold", "1.0", "--output", str(tmp_path / "none")])
        == 0
    )
    assert "0 objects in 3 images: " in (printed := capsys.readouterr().out)
    assert "no object scores above 1. Lower --score-threshold to see more" in printed


def test_label_maps_match_the_model_at_the_original_size(segmentor_run):
    image = picture(BOX, (60, 5, 90, 20), size=(60, 90))
    segmentor = pvt_det.Segmentor(segmentor_run, device="cpu")
    assert segmentor.class_names == ("background", "circle", "square", "triangle", "star")
    labels, mirrored = segmentor([image, image[:, ::-1]])
    cfg = load_config(segmentor_run / "config.yaml")
    model = build_model(cfg).eval()
    load_pretrained(model, str(segmentor_run / "model_final.pth"))
    resized = T.AugInput(image)
    T.AugmentationList(build_augmentations(cfg, is_train=False))(resized)
    with torch.no_grad():
        record = {"image": torch.from_numpy(resized.image.transpose(2, 0, 1).copy()), "height": 60, "width": 90}
        wanted = model([record])[0]["sem_seg"].argmax(0).numpy()
    assert (labels.dtype, labels.shape) == (np.uint8, (60, 90))
    assert np.array_equal(labels, wanted)
    assert len(np.unique(labels)) > 2
    assert not np.array_equal(labels, mirrored)
    torch.nn.init.constant_(segmentor._model.sem_seg_head.predictor.bias, torch.nan)
    with pytest.raises(NumericError, match="NaN"):
        segmentor(image)


def test_video_is_segmented_frame_by_frame(segmentor_run, tmp_path, capsys):
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 12.0, (96, 64))
    for _ in range(2):
        writer.write(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    writer.release()
    words = [str(tmp_path / "v.avi"), "--config-file", str(segmentor_run), "--device", "cpu"]
    assert run_command("predict", [*words, "--output", str(tmp_path / "out")]) == 0
    assert "2 label maps: " in (printed := capsys.readouterr().out)
    assert printed.endswith(f"labels, {tmp_path / 'out/videos'}\n")
    labels = Segmentor(segmentor_run, device="cpu")(list(Video(tmp_path / "v.avi")))
    for number, expected in enumerate(labels, start=1):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"out/labels/v/{number:06d}.png")), expected)
    shown = Video(tmp_path / "out/videos/v.mp4")
    assert (shown.rate, len(list(shown))) == (12.0, 2)


def test_predict_command_segments_and_refuses_detector_options(segmentor_run, shapes, tmp_path, capsys):
    (tmp_path / "damaged.png").write_bytes(b"damaged")
    first = min((shapes / "val").iterdir())
    words = [str(first), str(tmp_path / "damaged.png"), "--config-file", str(segmentor_run), "--device", "cpu"]
    labels = Segmentor(segmentor_run, device="cpu")(first)
    with pytest.raises(DataError, match="1 of 2 files could not be read"):
        run_command("predict", [*words, "--output", str(tmp_path / "all")])
    printed = capsys.readouterr()
    assert "damaged.png" in printed.err
    assert "1 label map: " in printed.out
    files = [path for path in (tmp_path / "all").rglob("*") if path.is_file() and path.name != ".lock"]
    written = sorted(path.relative_to(tmp_path / "all").as_posix() for path in files)
    assert written == ["images.json", f"labels/{first.stem}.png", f"pictures/{first.stem}.jpg"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "all" / written[1])), labels)
    listed = json.loads((tmp_path / "all/images.json").read_text())
    assert [(image["file_name"], image["name"]) for image in listed["images"]] == [(str(first), first.stem)]
    assert listed["categories"][0] == {"id": 0, "name": "background"}
    *others, kept = np.unique(labels)
    assert others
    few = [words[0], *words[2:], "--output", str(tmp_path / "few"), "--no-pictures"]
    assert (
        run_command("predict", [*few, "--classes", ("background", "circle", "square", "triangle", "star")[kept]]) == 0
    )
    only = np.asarray(Image.open(tmp_path / "few" / written[1]))
    assert np.array_equal(only, np.where(labels == kept, kept, 255))
    assert not (tmp_path / "few/pictures").exists()
    for option in (["--score-threshold", "0.5"], ["--crops"], ["--tile", "64"], ["--overlap", "0"]):
        with pytest.raises(ConfigError, match=rf"{option[0]} is for detectors"):
            run_command("predict", [*words, *option])


def test_class_has_the_same_color_in_every_drawing():
    labels = np.full((64, 96), 255, np.uint8)
    labels[:32] = 4
    drawn = draw_labels(picture(), labels, ("a", "b", "c", "d", "e"), 96)
    assert drawn[4, 4].tolist() == pytest.approx(class_colors()[4] / 2, abs=2)
    assert drawn[60, 4].max() == 0


def test_line_for_each_image_with_counts_and_milliseconds(run, tmp_path):
    for name, boxes in (("a.png", [BOX]), ("c.png", []), ("d.png", [BOX, (50, 5, 90, 60)])):
        save(tmp_path / "in" / name, picture(*boxes))
    (tmp_path / "in/b.png").write_bytes(b"damaged")
    printed = run(tmp_path / "in")[3]
    lines = [re.sub(r"\d+ ms", "N ms", line) for line in printed.splitlines() if not line.startswith("skipped: ")]
    assert lines == [
        f"image 1/4 {tmp_path}/in/a.png: 1 and/or, N ms",
        f"image 3/4 {tmp_path}/in/c.png: no objects, N ms",
        f"image 4/4 {tmp_path}/in/d.png: 2 and/or, N ms",
    ]


def test_lines_of_a_video_and_the_note_about_its_codec(run, tmp_path, monkeypatch):
    monkeypatch.setattr("pvt_det.inference.video.find_spec", lambda name: None)
    write_video(tmp_path / "v.avi", 5)
    lines = [re.sub(r"\d+ ms", "N ms", line) for line in run(tmp_path / "v.avi", crops=False)[3].splitlines()]
    assert lines == [
        "note: The videos are written as MPEG-4, which browsers do not play, because PyAV is not installed. For H.264, "
        "install it with: pip install av",
        f"video 1/1 {tmp_path}/v.avi frame 2/5: 1 and/or, N ms",
        f"video 1/1 {tmp_path}/v.avi: 5 frames, N ms per frame",
    ]


def test_quiet_prints_faults_only(segmentor_run, untrained_run, shapes, tmp_path, capsys):
    (tmp_path / "damaged.png").write_bytes(b"damaged")
    first = min((shapes / "val").iterdir())
    for folder, line in ((untrained_run, r"\d+ \w+.*|no objects"), (segmentor_run, r"\w+ \d+%.*")):
        words = [first, tmp_path / "damaged.png", "--config-file", folder, "--device", "cpu"]
        for quiet in ([], ["--quiet"]):
            with pytest.raises(DataError, match="1 of 2 files could not be read"):
                run_command("predict", [*words, *quiet, "--output", tmp_path / f"{folder.name}{len(quiet)}"])
            printed = capsys.readouterr().err.splitlines()
            assert any(text.startswith("skipped: ") for text in printed)
            said = [text for text in printed if text.startswith("image ")]
            assert bool(said) != bool(quiet)
            assert all(re.fullmatch(rf"image 1/2 {re.escape(str(first))}: ({line}), \d+ ms", text) for text in said)


def write_video(path: Path, count: int) -> Path:
    """Write a video of a white box that moves to the right."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.0, (96, 64))
    for shift in range(0, 10 * count, 10):
        writer.write(picture((shift, 20, shift + 20, 50)))
    writer.release()
    return path
