"""Videos are H.264 if PyAV is installed, complete, and their errors are not silent."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from pvt_det.inference.frames import Video
from pvt_det.inference.video import VideoFile
from tests.faults.conftest import in_child

needs_pyav = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV (pip install av) is not installed")
CODECS = [pytest.param("h264", marks=needs_pyav), "mp4v"]


@pytest.fixture
def codec(request, monkeypatch):
    if request.param == "mp4v":
        monkeypatch.setattr("pvt_det.inference.video.find_spec", lambda name: None)
    return request.param


def frames(count: int, size=(64, 96)) -> list[np.ndarray]:
    """Colored frames with a white box that moves to the right."""
    result = []
    for number in range(count):
        frame = np.full((*size, 3), (200, 60, 20), np.uint8)
        frame[20:40, 4 * number : 4 * number + 20] = 255
        result.append(frame)
    return result


def write(path: Path, images, rate=12.0) -> Path:
    video = VideoFile(path, rate)
    for image in images:
        video.add(image)
    video.close()
    return path


@pytest.mark.parametrize("codec", CODECS, indirect=True)
@pytest.mark.parametrize("size", [(64, 96), (63, 97)])
def test_videos_contain_every_frame_in_its_colors(codec, size, tmp_path):
    path = write(tmp_path / "new/v.mp4", frames(9, size))
    found = list(Video(path))
    assert len(found) == 9
    assert Video(path).rate == pytest.approx(12)
    assert found[0].shape == (64, 96 + 2 * (size[1] % 2), 3)
    for image, wanted in zip(found, frames(9, size), strict=True):
        assert np.abs(image[: size[0], : size[1]].astype(int) - wanted).mean() < 8
        assert np.abs(image[50:60, 40:60].mean(axis=(0, 1)) - (200, 60, 20)).max() < 10


@needs_pyav
@pytest.mark.parametrize("rate", [29.97002997002997, 25, 7.5])
def test_videos_are_playable_by_browsers(tmp_path, rate):
    import av

    path = write(tmp_path / "v.mp4", frames(5), rate)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == pytest.approx(rate, rel=1e-4)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays before it is loaded completely


@pytest.mark.parametrize("codec", CODECS, indirect=True)
def test_full_disk_is_reported(codec, tmp_path):
    """A limit of the file size is like a full disk. OpenCV does not report it."""
    path = tmp_path / "v.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (40, 128, 192, 3), dtype=np.uint8)

    def write_to_full_disk() -> str:
        with pytest.raises(OSError, match=r"File too large|disk is full") as raised:
            write(path, noise)
        return str(raised.value.filename)

    name, _ = in_child(write_to_full_disk, file_size=100_000)
    assert name == str(path)


@pytest.mark.parametrize("codec", CODECS, indirect=True)
def test_truncated_video_is_reported(codec, tmp_path):
    video = VideoFile(tmp_path / "v.mp4", 12.0)
    for frame in frames(4):
        video.add(frame)
    video.frames += 1
    with pytest.raises(OSError, match="only 4 of 5 frames were written"):
        video.close()


def test_video_without_frames_writes_nothing(tmp_path):
    write(tmp_path / "v.mp4", [])
    assert list(tmp_path.iterdir()) == []
