"""Inspection of folders with images and label maps: shares, problems, advice and recommended settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pvt_det.errors import DataError
from pvt_det.inspection.semantic.inspection import find_label_leakage, inspect_labels
from pvt_det.inspection.semantic.recommend import recommend_labels
from pvt_det.inspection.semantic.scan import conversion, is_label_folder

SIZE = (40, 30)


def write(folder: Path, maps: dict[str, np.ndarray], *, seed: int = 0, palette: list[int] | None = None) -> tuple:
    """Write label maps with random images, and return both folders."""
    random = np.random.default_rng(seed)
    labels, images = folder / "labels", folder / "images"
    labels.mkdir(parents=True, exist_ok=True)
    images.mkdir(exist_ok=True)
    for name, values in maps.items():
        file = Image.fromarray(values)
        if palette:
            file.putpalette(palette)
        file.save(labels / f"{name}.png")
        Image.fromarray(random.integers(0, 255, (*values.shape[:2], 3), dtype=np.uint8)).save(images / f"{name}.jpg")
    return labels, images


def stripes(*values: int) -> np.ndarray:
    """Return a label map with an equal share of each value."""
    return np.repeat(np.array(values, np.uint8), SIZE[0] // len(values))[None].repeat(SIZE[1], axis=0)


def problems(found) -> dict[str, str]:
    return {kind: problem.first[0] for kind, problem in found.scan.findings.problems.items()}


def test_shares_images_and_void(tmp_path):
    folders = write(tmp_path, {"a": stripes(0, 1), "b": stripes(0, 11), "c": stripes(11)})
    found = inspect_labels(*folders, names={0: "road", 1: "car"})
    assert [(each.name, each.images) for each in found.classes] == [("road", 2), ("car", 1)]
    assert [each.share for each in found.classes] == pytest.approx([2 / 3, 1 / 3])
    assert found.scheme.ignore_value == 11
    assert found.void_share == pytest.approx(0.5)
    assert {item.text: item.names for item in found.advice}["images whose pixels are all void"] == ["c.jpg"]
    assert not found.is_refused("stop")
    assert found.is_refused("strict")


def test_palette_indices_are_the_classes(tmp_path):
    folders = write(tmp_path, {"a": stripes(0, 1, 2), "b": stripes(2, 1)}, palette=[0, 0, 0, 128, 0, 0, 0, 128, 0])
    found = inspect_labels(*folders)
    assert [each.images for each in found.classes] == [1, 2, 2]
    assert found.scan.palette[1].tolist() == [128, 0, 0]


def test_files_that_cannot_be_used(tmp_path):
    labels, images = write(tmp_path, {name: stripes(0, 1) for name in "abcdefgh"})
    colors = np.array([[0, 0, 0], [128, 0, 0]], np.uint8)
    Image.fromarray(colors[stripes(0, 1)]).save(labels / "a.png")
    Image.fromarray(stripes(0, 1)).convert("RGB").save(labels / "b.png")
    Image.fromarray(stripes(0, 1).astype(np.uint16) * 26_001).save(labels / "c.png")
    Image.fromarray(stripes(0, 1)[:-1]).save(labels / "d.png")
    Image.fromarray(stripes(0, 1) == 1).save(labels / "e.png")
    (images / "f.jpg").unlink()
    (labels / "g.png").unlink()
    found = inspect_labels(labels, images)
    assert [each.label.name for each in found.files] == ["h.png"]
    found_problems = problems(found)
    assert found_problems["label map in color instead of class numbers"] == "a.png: mode RGB, 2 colors"
    assert (
        found.scan.findings.problems["label map in color instead of class numbers"]
        .first[1]
        .startswith("b.png: mode RGB, the three channels are equal")
    )
    assert (
        "mode I;16, values up to 26001; these may be ids" in found_problems["label map with more than 8 bits per pixel"]
    )
    assert "d.png is 40x29, but its image is 40x30" in found_problems["file that cannot be used"]
    assert "1 bit" in " ".join(found_problems)
    assert found_problems["label map without an image"].endswith("f.png")
    assert found_problems["image without a label map"].endswith("g.jpg")
    assert found.is_refused("stop")
    assert not found.is_refused("skip")


def test_the_script_for_colors_works(tmp_path, monkeypatch):
    colors = np.array([[10, 20, 30], [128, 0, 0], [0, 0, 255]], np.uint8)
    labels, images = write(tmp_path, {"a": colors[stripes(0, 0, 0, 1, 1, 2, 2, 2)]})
    found = inspect_labels(labels, images)
    assert found.is_refused("skip")
    script = conversion(found.scan.colors)
    monkeypatch.setattr("sys.argv", ["convert", str(labels / "a.png")])
    exec(compile(script, "script", "exec"), {})
    found = inspect_labels(labels, images)
    assert not problems(found)
    assert [each.share for each in found.classes] == pytest.approx([3 / 8, 3 / 8, 2 / 8])


def test_value_without_a_name_is_refused(tmp_path):
    found = inspect_labels(
        *write(tmp_path, {"a": stripes(0, 1, 2), "b": stripes(0, 1, 7, 9)}), names={0: "a", 1: "b", 2: "c"}
    )
    assert (
        problems(found)["label map with a value that is not a class"] == "b.png: 7, 9, expected 0 to 2, or 255 for void"
    )
    assert len(found.files) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda labels, images: (labels / "a.png").rename(labels / "a_L.png"),
            "have '_L' in addition, such as a_L",
        ),
        (lambda labels, images: (labels / "a.png").rename(labels / "1.png"), "labels has 1.png, .*images has a"),
        (lambda labels, images: (labels / "a.png").rename(labels / "a.jpg"), "must be PNG files with one channel"),
        (lambda labels, images: (labels / "a.png").unlink(), "contains no PNG files. Give the label maps first"),
    ],
)
def test_folders_that_do_not_belong_together(tmp_path, change, message):
    labels, images = write(tmp_path, {"a": stripes(0, 1)})
    change(labels, images)
    with pytest.raises(DataError, match=message):
        inspect_labels(labels, images)


def test_swapped_and_nested_folders(tmp_path):
    labels, images = write(tmp_path, {"a": stripes(0, 1)})
    with pytest.raises(DataError, match=f"Expected the label maps first. Swap the folders: {labels} {images}"):
        inspect_labels(images, labels)
    with pytest.raises(DataError, match=f"contains no PNG files. Its subfolder {labels} does"):
        inspect_labels(tmp_path, images)


def test_label_folders_are_detected(tmp_path):
    labels, images = write(tmp_path, {"a": stripes(0, 1)})
    assert is_label_folder(labels, images)
    assert is_label_folder(images, labels)  # swapped, which the inspection reports
    assert not is_label_folder(images, images)
    assert not is_label_folder(labels / "a.png", images)
    (labels / "a.txt").write_text("0 .5 .5 .1 .1")  # YOLO
    assert not is_label_folder(labels, images)


def test_leakage_and_classes_of_the_validation_data(tmp_path):
    train = inspect_labels(*write(tmp_path / "train", {"a": stripes(0, 1, 255)}), perceptual_hashes=True)
    folders = write(tmp_path / "val", {"b": stripes(0, 0, 255)})
    val = inspect_labels(*folders, perceptual_hashes=True, train=train)
    assert val.scheme is train.scheme
    assert not problems(val)
    found = {item.text: item.names for item in find_label_leakage(train, val)}
    assert found == {
        "images that are also in the training data": ["b.jpg is a.jpg"],
        "training classes without pixels in the validation data": ["class 1"],
    }
    other = inspect_labels(*write(tmp_path / "other", {"b": stripes(0, 7)}), train=train)
    assert "b.png: 7, expected 0 to 1, or 255 for void" in problems(other).values()


@pytest.fixture
def shapes_like(tmp_path):
    return inspect_labels(*write(tmp_path, {str(number): stripes(0, 0, 0, 1) for number in range(4)}))


@pytest.mark.parametrize(("on_cpu", "side", "crop"), [(True, 64, 64), (False, 64, 64)])
def test_settings_of_small_images(shapes_like, on_cpu, side, crop):
    found = recommend_labels(shapes_like, on_cpu=on_cpu, batch=4, pretrained=True)
    assert (found.short_side, found.crop) == (side, crop)
    assert found.iterations == 300  # 300 epochs of 4 images
    assert found.single_class == 1.0  # 75% of the pixels are of one class
    assert found.learning_rate == pytest.approx(2e-4 * (4 / 32) ** 0.5, rel=0.02)


def test_settings_of_large_images(tmp_path):
    large = {"a": np.kron(stripes(0, 1), np.ones((50, 50), np.uint8))}  # 2000×1500
    found = inspect_labels(*write(tmp_path, large))
    gpu = recommend_labels(found, on_cpu=False, batch=16, pretrained=True)
    assert (gpu.short_side, gpu.crop, gpu.longest, gpu.single_class) == (1024, 512, 1366, 0.75)
    cpu = recommend_labels(found, on_cpu=True, batch=4, pretrained=False)
    assert (cpu.short_side, cpu.crop) == (320, 256)
    assert cpu.learning_rate == 4e-4
