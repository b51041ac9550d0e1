"""Reading images: channel orders and tolerated faults."""

import numpy as np
import pytest
from PIL import Image

from pvt_det.data.images import read_header, read_image

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


def test_broken_exif_is_ignored(tmp_path, rgb):
    path = saved(tmp_path, Image.fromarray(rgb), "x.jpg", exif=b"Exif\0\0garbage that is no tag at all")
    assert read_image(path, "RGB").shape == (H, W, 3)
    assert read_header(path) == (W, H)


def test_bytes_after_the_end_are_ignored(tmp_path, rgb):
    path = saved(tmp_path, Image.fromarray(rgb), "x.jpg")
    path.write_bytes(path.read_bytes() + b"\0" * 500)
    assert read_header(path) == (W, H)
