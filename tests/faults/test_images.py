"""Broken, huge and unusual image files are refused by name before the first step, or read correctly."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BoxMode
from PIL import Image

from pvt_det import Predictor
from pvt_det.data.coco.check import check_dataset
from pvt_det.data.imagenet.folders import FileImages
from pvt_det.data.imagenet.transforms import BrokenImageError, decode_rgb
from pvt_det.data.images import read_header, read_image, read_orientation
from pvt_det.data.sets import register_datasets
from pvt_det.errors import DataError
from pvt_det.modeling import rcnn
from pvt_det.structures.masks import RunLengthMasks
from pvt_det.utils.visualizer import draw
from tests.faults.conftest import SIDE, in_child
from tests.modeling.conftest import build


@pytest.fixture(scope="module")
def predictor(untrained_run):
    return Predictor(untrained_run, device="cpu")


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write_bomb(path: Path) -> None:
    """Write a PNG of 50,000×50,000 pixels (7.5 GB of RGB) in a few hundred bytes."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    end = png_chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + png_chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + end)


def test_F07_decompression_bomb(refused_set, tiny_set):
    write_bomb(tiny_set.image())
    for check in ("fast", "full"):
        refused_set("1.jpg is too large", "at most", DATASETS__CHECK=check)
    json_file = tiny_set.json_file
    report, growth = in_child(lambda: check_dataset(json_file, tiny_set.folder, "full", on_error="skip").lines)
    assert "1.jpg is too large" in report[0]
    assert growth < 200 * 2**20


@pytest.mark.parametrize("check", ["fast", "full"])
def test_F10_truncated_jpeg(refused_set, tiny_set, check):
    path = tiny_set.image()
    path.write_bytes(path.read_bytes()[:-300])
    refused_set(str(path), "image 1", "cut short", "ON_ERROR skip", DATASETS__CHECK=check)


@pytest.mark.parametrize("name", ["x.bmp", "x.gif", "x.jp2", "x.mpo", "x.ppm", "x.tif", "x.webp"])
def test_F10_truncated_file_of_other_formats_is_found_by_the_fast_check(refused_set, tiny_set, name):
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    path = tiny_set.folder / name
    Image.fromarray(pixels).save(path, **{"save_all": True} if name == "x.mpo" else {})
    tiny_set.content["images"][0]["file_name"] = name
    assert check_dataset(tiny_set.json_file, tiny_set.folder).images == 4
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    refused_set(str(path), "image 1", "replace it")


def test_F10_truncated_gif_with_an_end_marker_among_its_pixels(tmp_path):
    path = tmp_path / "x.gif"
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b";", len(content) // 2, -1) + 1])
    with pytest.raises(DataError, match="cut short"):
        read_header(path)


def test_F10_png_with_one_bit_flipped(refused_set, tiny_set, tmp_path):
    """Pillow does not verify the checksum of pixels while it decodes them."""
    tiny_set.write_image(Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)))
    path = tiny_set.folder / "1.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused_set(str(path), "bad header checksum", DATASETS__CHECK="full")


def test_F10_skip_keeps_the_results_of_the_rest(command, tiny_set, tmp_path):
    """The broken file is counted in the report and dropped from training, and the others are evaluated."""
    tiny_set.image().write_bytes(b"")
    words = tiny_set.words() | tiny_set.words("VAL") | {"DATASETS__ON_ERROR": "skip"}
    ending = command(**words, SOLVER__MAX_ITER=1, SOLVER__STEPS=[], MODEL__RETINANET__SCORE_THRESH_TEST=0.0)
    assert ending.code == 0
    report = (tmp_path / "run/log.txt").read_text()
    assert "3 images" in report
    assert f"dropped: 1 x image file that cannot be used: image 1: image {tiny_set.image()}" in report
    (detections_file,) = (tmp_path / "run/inference").glob("*/coco_instances_results.json")
    detections = detections_file.read_text()
    assert '"image_id": 2' in detections
    assert '"image_id": 1,' not in detections


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty (0 bytes)"), (b"<!DOCTYPE html>", "not an image (it starts with"), (None, "does not exist")],
    ids=["zero-byte", "html", "missing"],
)
def test_F11_file_that_is_not_an_image(refused_set, tiny_set, content, reason):
    path = tiny_set.image()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    refused_set(str(path), "image 1", reason, "ON_ERROR skip")


def test_F11_postscript_is_not_run(refused_set, tiny_set):
    """Pillow would run Ghostscript on it."""
    tiny_set.image().write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n")
    for check in ("fast", "full"):
        refused_set("1.jpg is not an image (it starts with b'%!PS", DATASETS__CHECK=check)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_F11_classification_refuses_postscript_bombs_and_pipes(tmp_path):
    with pytest.raises(BrokenImageError, match=r"not an image \(it starts with b'%!PS-Adobe"):
        decode_rgb(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n")
    content = io.BytesIO()
    Image.new("RGB", (64, 64)).save(content, "JPEG")
    size = struct.pack(">HH", 64, 64)
    bomb = content.getvalue().replace(b"\x08" + size, b"\x08" + struct.pack(">HH", 12_000, 12_000))  # 432 MB
    with pytest.raises(BrokenImageError, match="12000x12000 is too large"):
        decode_rgb(bomb)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(OSError, match=r"pipe\.jpg is not a regular file"):
        FileImages(tmp_path, ["pipe.jpg"], [0], ["a"]).read(0)


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "a\ud800.jpg", "a\x1b[31m.jpg"])
def test_F11_invalid_file_name(refused_set, tiny_set, name):
    tiny_set.content["images"][0]["file_name"] = name
    reason = "File name too long" if len(name) > 300 else "image without a printable file_name"
    refused_set("image 1", reason, "ON_ERROR skip")
    assert check_dataset(tiny_set.json_file, tiny_set.folder, on_error="skip").images == 3


def test_F12_16_bit_png_is_scaled(tmp_path):
    gray = np.random.default_rng(0).integers(0, 256, (6, 9), dtype=np.uint8)
    Image.fromarray(gray.astype(np.uint16) * 256 + 200).save(tmp_path / "x.png")
    assert (read_image(tmp_path / "x.png", "RGB") == gray[:, :, None]).all()
    assert (read_image(tmp_path / "x.png", "L")[:, :, 0] == gray).all()


def test_F12_32_bit_pixels_are_refused(refused_set, tiny_set):
    Image.new("F", (SIDE, SIDE), 0.5).save(tiny_set.folder / "1.tiff")
    tiny_set.content["images"][0]["file_name"] = "1.tiff"
    refused_set("1.tiff", "32-bit", "save it with 8 bits", DATASETS__CHECK="full")


@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "LA", "P", "CMYK"])
def test_F13_correct_pixels_for_every_mode(tmp_path, mode):
    """A red (or bright) left half and a blue (or dark) right half are read correctly from every mode."""
    rgb = np.zeros((8, 16, 3), np.uint8)
    rgb[:, :8, 0], rgb[:, 8:, 2] = 255, 255
    if mode in ("L", "1", "LA"):
        rgb = np.repeat(np.where(np.arange(16) < 8, 255, 0)[None, :, None], 8, axis=0).repeat(3, axis=2)
    image = Image.fromarray(rgb.astype(np.uint8)).convert(mode)
    if "A" in mode:
        image.putalpha(Image.new("L", image.size, 7))
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    image.save(path, **{"quality": 100, "subsampling": 0} if mode == "CMYK" else {})
    found = read_image(path, "RGB")
    assert np.abs(found.astype(int) - rgb).max() <= (4 if mode == "CMYK" else 0)


@pytest.mark.filterwarnings("error")
def test_F13_transparent_palette_without_a_warning(tmp_path):
    """Pillow would print a warning for each file."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).quantize(16)
    image.save(tmp_path / "x.png", transparency=bytes(range(16)))
    assert (read_image(tmp_path / "x.png", "RGB") == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif", "x.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_F14_exif_rotation(tmp_path, orientation, name):
    """An image whose upright form is bright on the left is read upright for every camera orientation."""
    upright = Image.fromarray(np.repeat(np.where(np.arange(16) < 8, 255, 0)[None], 8, axis=0).astype(np.uint8))
    undo = {
        1: (),
        2: (Image.Transpose.FLIP_LEFT_RIGHT,),
        3: (Image.Transpose.ROTATE_180,),
        4: (Image.Transpose.FLIP_TOP_BOTTOM,),
        5: (Image.Transpose.TRANSPOSE,),
        6: (Image.Transpose.ROTATE_90,),
        7: (Image.Transpose.TRANSVERSE,),
        8: (Image.Transpose.ROTATE_270,),
    }[orientation]
    for method in undo:
        upright = upright.transpose(method)
    exif = Image.Exif()
    exif[274] = orientation
    upright.save(tmp_path / name, exif=exif)
    pixels = read_image(tmp_path / name, "L")[:, :, 0]
    assert pixels.shape == (8, 16)
    assert pixels[:, :8].min() > 200
    assert pixels[:, 8:].max() < 50
    assert read_header(tmp_path / name) == (16, 8)
    assert read_orientation(tmp_path / name) == orientation


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", ["EXIF", "XMP"])
def test_F14_rotation_tag_anywhere_in_a_png(tmp_path, place, kind):
    """Header and pixels agree for every position of the tag."""
    path, exif = tmp_path / "x.png", Image.Exif()
    exif[274] = 6
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0<x xmlns:tiff='http://ns.adobe.com/tiff/1.0/' tiff:Orientation=\"6\"/>"
    tag = png_chunk(b"eXIf", exif.tobytes()[6:]) if kind == "EXIF" else png_chunk(b"iTXt", xmp)
    Image.new("RGB", (16, 8)).save(path)
    content = path.read_bytes()
    at = content.index(b"IDAT") - 4 if place == "before" else len(content) - 12
    path.write_bytes(content[:at] + tag + content[at:])
    assert read_header(path) == (8, 16)
    assert read_image(path, "RGB").shape == (16, 8, 3)


def test_F14_invalid_rotation_tag(tmp_path):
    """Header and pixels agree if the value of the tag is out of range."""
    exif = Image.Exif()
    exif[274] = 22
    Image.new("RGB", (16, 8)).save(tmp_path / "x.jpg", exif=exif)
    assert read_header(tmp_path / "x.jpg") == (16, 8)
    assert read_image(tmp_path / "x.jpg", "RGB").shape == (8, 16, 3)


def test_F14_size_that_differs_from_the_json_file(refused_set, tiny_set):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (SIDE, 32)).save(tiny_set.image(), exif=exif)
    tiny_set.content["images"][0]["height"] = 32
    refused_set("1.jpg is 32x64 (after EXIF rotation)", "says 64x32", "image 1")
    Image.new("RGB", (SIDE, 48)).save(tiny_set.image())
    refused_set("1.jpg is 64x48", "says 64x32")


SMALL = ("MODEL.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", "32", "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128")


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_F15_images_of_one_pixel_and_one_line(tmp_path, size):
    from pvt_det.config import load_config
    from pvt_det.data.mapper import PVTDatasetMapper

    Image.new("RGB", size).save(tmp_path / "x.png")
    config = Path(__file__).parents[2] / "configs/mask_rcnn_pvt_v2_b0.yaml"
    mapper = PVTDatasetMapper(load_config(config, list(SMALL)), is_train=False)
    record = mapper({"file_name": str(tmp_path / "x.png")})
    assert (record["width"], record["height"]) == size
    model = build("mask_rcnn_pvt_v2_b0", *SMALL, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0").eval()
    with torch.no_grad():
        found = model([record])[0]["instances"]
    assert found.image_size == size[::-1]
    assert found.pred_masks.shape == (len(found), *size[::-1])
    assert found.pred_boxes.tensor.isfinite().all()


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_F15_training_on_an_image_of_one_line(command, tiny_set, tmp_path, size):
    """The visualization of the first batch has a limited size."""
    tiny_set.write_image(Image.new("RGB", size))
    tiny_set.content["annotations"][0] |= {"bbox": [0, 0, *size], "segmentation": []}
    del tiny_set.content["images"][1:], tiny_set.content["annotations"][1:]
    ending = command(**tiny_set.words(), SOLVER__MAX_ITER=1, SOLVER__STEPS=[])
    assert ending.code == 0
    with Image.open(tmp_path / "run/train_batch.jpg") as drawing:
        assert max(drawing.size) < 10_000


def test_F15_drawing_of_one_line_has_a_limited_size():
    assert draw(np.zeros((5000, 1, 3), np.uint8), [], [], 640).shape == (65_000, 13, 3)
    assert draw(np.zeros((1, 5000, 3), np.uint8), [], [], 640).shape == (1, 5000, 3)
    assert draw(np.zeros((30, 40, 3), np.uint8), [], [], 640).shape == (480, 640, 3)


def test_F16_masks_pasted_in_chunks_equal_those_pasted_at_once(monkeypatch):
    """100 masks of 8000×6000 would be 4.8 GB as a tensor, so only a limited number is pasted at a time."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(7, 28, 28, generator=generator)
    corner = torch.rand(7, 2, generator=generator) * 200
    boxes = torch.cat([corner, corner + 90], dim=1)
    expected = paste_masks_in_image(masks, boxes, (300, 320))
    assert expected.any(dim=(1, 2)).all()
    pasted = []

    def record_paste(chunk, chunk_boxes, size):
        pasted.append(len(chunk))
        return paste_masks_in_image(chunk, chunk_boxes, size)

    monkeypatch.setattr(rcnn, "paste_masks_in_image", record_paste)
    monkeypatch.setattr(rcnn, "_PIXELS_AT_ONCE", 2 * 300 * 320)
    found = rcnn.paste_masks(masks, boxes, (300, 320))
    assert pasted == [2, 2, 2, 1]
    assert found.shape == (7, 300, 320)
    assert sum(map(len, found.counts)) < 20_000
    assert torch.equal(found.tensor, expected)
    assert torch.equal(found[torch.tensor([3, 1])].tensor, expected[[3, 1]])
    assert (np.asarray(found[5:]) == expected[5:].numpy()).all()


@pytest.mark.slow
def test_F16_image_of_48_megapixels_takes_less_than_2_gb(tmp_path):
    """The image is read and resized, and its 100 masks are pasted. Detectron2's Mask R-CNN takes 5.6 GB."""
    model = build("mask_rcnn_pvt_v2_b0", *SMALL, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0").eval()
    path = tmp_path / "x.jpg"
    Image.new("RGB", (8000, 6000), (90, 160, 30)).save(path)

    def find() -> int:
        small = Image.fromarray(read_image(path, "RGB")).resize((128, 96))
        image = torch.from_numpy(np.array(small)).permute(2, 0, 1)
        with torch.no_grad():
            return len(model([{"image": image, "height": 6000, "width": 8000}])[0]["instances"].pred_masks)

    found, growth = in_child(find)
    assert found == 100
    assert growth < 2 * 10**9


def test_F16_drawing_takes_few_bytes_per_pixel():
    """Matplotlib's own method takes 120 bytes per pixel, which is 6 GB for 8000×6000."""
    masks = torch.zeros(20, 1000, 2000, dtype=torch.bool)
    masks[:, 200:500, 300:900] = True
    rles = RunLengthMasks.encode(masks).rles()
    del masks
    box = {"bbox": [300, 200, 900, 500], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    objects = [{**box, "segmentation": rle} for rle in rles]
    image = np.zeros((1000, 2000, 3), np.uint8)

    def draw_objects() -> tuple[int, int]:
        drawing = draw(image, objects, ["a"], 2000)
        return int(drawing[450, 600].max()), int(drawing[700:].max())

    (inside, below), growth = in_child(draw_objects)
    assert inside > 50
    assert below == 0
    assert growth < 40 * image[:, :, 0].size


def test_F16_image_above_the_limit_is_refused(tmp_path, monkeypatch):
    from pvt_det.data import images

    Image.new("RGB", (20, 10)).save(tmp_path / "x.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 199)
    with pytest.raises(DataError, match="20x10"):
        read_image(tmp_path / "x.png", "RGB")
    monkeypatch.setattr(images, "MAX_PIXELS", 200)
    assert read_image(tmp_path / "x.png", "RGB").shape == (10, 20, 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "is None, which cv2.imread returns"),
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\).*grayscale image"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\).*alpha"),
        (np.zeros((0, 8, 3), np.uint8), "is empty"),
        (np.full((8, 8, 3), np.nan), "float64 and contains NaN"),
    ],
    ids=["None", "gray", "alpha", "empty", "NaN"],
)
def test_F17_predictor_refuses_invalid_images(predictor, image, message):
    with pytest.raises(DataError, match=message):
        predictor(image)


def test_F10_skip_applies_to_data_registered_by_detectron2(tiny_set, tiny_cfg, tmp_path):
    """Detectron2's loader would keep the broken image and the objects that the check drops."""
    name = str(tmp_path)
    tiny_set.image().write_bytes(b"")
    tiny_set.second["bbox"] = [8, 8, -3, 16]
    register_coco_instances(name, {}, str(tiny_set.json_file), str(tiny_set.folder))
    words = {"DATASETS__TRAIN_JSON": "", "DATASETS__TRAIN_IMAGES": "", "DATASETS__TRAIN": [name]}
    words |= {"DATASETS__TEST": [name]}
    cfg = tiny_cfg(tmp_path / "run", DATASETS__ON_ERROR="skip", MODEL__RETINANET__NUM_CLASSES=2, **words)
    register_datasets(cfg)
    found = {record["image_id"]: len(record["annotations"]) for record in DatasetCatalog.get(name)}
    assert found == {2: 0, 3: 1, 4: 1}
    register_datasets(cfg)
