"""Right pixels for every mode of file, and upright ones."""

import numpy as np
import pytest
from PIL import Image

from pvt_det.data import images
from pvt_det.data.images import read_header, read_image
from pvt_det.errors import DataError

H, W = 6, 9


@pytest.fixture
def gray():
    return np.random.default_rng(0).integers(0, 256, (H, W), dtype=np.uint8)


@pytest.fixture
def rgb():
    return np.random.default_rng(1).integers(0, 256, (H, W, 3), dtype=np.uint8)


def saved(tmp_path, image, name="x.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_formats(tmp_path, rgb):
    path = saved(tmp_path, Image.fromarray(rgb))
    assert (read_image(path, "RGB") == rgb).all()
    assert (read_image(path, "BGR") == rgb[:, :, ::-1]).all()
    assert read_image(path, "L").shape == (H, W, 1)


def test_gray_and_one_bit(tmp_path, gray):
    three = np.repeat(gray[:, :, None], 3, axis=2)
    assert (read_image(saved(tmp_path, Image.fromarray(gray)), "RGB") == three).all()
    bits = read_image(saved(tmp_path, Image.fromarray(gray > 127)), "RGB")
    assert (bits == np.where(three > 127, 255, 0)).all()


def test_alpha_is_dropped(tmp_path, gray, rgb):
    rgba = np.dstack([rgb, gray])
    assert (read_image(saved(tmp_path, Image.fromarray(rgba)), "RGB") == rgb).all()
    la = np.dstack([gray, gray // 2])
    assert (read_image(saved(tmp_path, Image.fromarray(la)), "RGB")[:, :, 1] == gray).all()


def test_palette(tmp_path, rgb):
    palette = Image.fromarray(rgb).quantize(64)
    expected = np.asarray(palette.convert("RGB"))
    assert (read_image(saved(tmp_path, palette, "x.gif"), "RGB") == expected).all()


def test_cmyk(tmp_path):
    cmyk = Image.new("CMYK", (W, H), (255, 0, 0, 0))  # cyan
    pixels = read_image(saved(tmp_path, cmyk, "x.jpg", quality=100), "RGB")
    assert np.abs(pixels.astype(int) - [0, 255, 255]).max() <= 3


def test_16_bits_are_scaled(tmp_path, gray):
    path = saved(tmp_path, Image.fromarray(gray.astype(np.uint16) * 256 + 200))
    assert (read_image(path, "RGB") == gray[:, :, None]).all()
    assert (read_image(path, "L")[:, :, 0] == gray).all()


def test_32_bits_are_refused(tmp_path):
    with pytest.raises(DataError, match="32 bits"):
        read_image(saved(tmp_path, Image.new("F", (W, H), 0.5), "x.tiff"), "RGB")


@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, name):
    """A picture that is bright at the left of its upright form comes out so, whatever way the camera was held."""
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
    path = saved(tmp_path, upright, name, exif=exif)
    pixels = read_image(path, "L")[:, :, 0]
    assert pixels.shape == (8, 16)
    assert pixels[:, :8].min() > 200
    assert pixels[:, 8:].max() < 50
    assert read_header(path) == (16, 8)


def test_broken_exif_is_no_obstacle(tmp_path, rgb):
    path = saved(tmp_path, Image.fromarray(rgb), "x.jpg", exif=b"Exif\0\0garbage that is no tag at all")
    assert read_image(path, "RGB").shape == (H, W, 3)
    assert read_header(path) == (W, H)


def test_one_pixel_and_a_thin_line(tmp_path):
    for width, height in ((1, 1), (5000, 1)):
        path = saved(tmp_path, Image.new("RGB", (width, height)))
        assert read_image(path, "RGB").shape == (height, width, 3)


def test_bound_on_pixels(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new("RGB", (20, 10)))
    monkeypatch.setattr(images, "MAX_PIXELS", 199)
    with pytest.raises(DataError, match="20x10"):
        read_image(path, "RGB")
    monkeypatch.setattr(images, "MAX_PIXELS", 200)
    assert read_image(path, "RGB").shape == (10, 20, 3)


def test_bytes_after_the_end_are_no_fault(tmp_path, rgb):
    path = saved(tmp_path, Image.fromarray(rgb), "x.jpg")
    path.write_bytes(path.read_bytes() + b"\0" * 500)
    assert read_header(path) == (W, H)
