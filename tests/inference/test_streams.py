"""Cameras and live streams: read until they end, stall or are stopped, with right times and complete files."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from rich.console import Console
from rich.progress import Progress

from pvt_det.errors import DataError, Interrupted
from pvt_det.inference import frames
from pvt_det.inference.files import PredictionFiles
from pvt_det.inference.frames import LiveVideo, Video
from pvt_det.inference.journal import Journal
from pvt_det.inference.run import PredictionRun
from pvt_det.inference.sources import find_sources
from pvt_det.inference.video import VideoFile
from tests.inference.rtsp_server import RtspHandler, transport_stream

needs_pyav = pytest.mark.skipif(find_spec("av") is None, reason="PyAV (pip install av) is not installed")
SIZE = (64, 96)
INTERVAL = 0.04  # seconds between the frames of the stream


def picture(number: int) -> np.ndarray:
    """A white box that moves by 4 pixels from frame to frame."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[20:50, 4 * number : 4 * number + 20] = 255
    return pixels


def write_video(path: Path, count: int, rate: float = 12.0) -> Path:
    codec = "mp4v" if path.suffix == ".mp4" else "MJPG"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, SIZE[::-1])
    for number in range(count):
        writer.write(picture(number))
    writer.release()
    return path


def detect(images) -> list[Instances]:
    result = []
    for pixels in images:
        left = float(np.argmax(pixels[30, :, 0] > 128))
        result.append(
            Instances(
                SIZE,
                pred_boxes=Boxes(torch.tensor([[left, 20, left + 20, 50]])),
                scores=torch.tensor([0.9]),
                pred_classes=torch.tensor([0]),
            )
        )
    return result


@pytest.fixture
def run(tmp_path):
    """Predict on inputs. Return the errors, the results, the images and the console output."""

    def build(*inputs, predict=detect, batch_size=2, **options):
        files = PredictionFiles(Journal(tmp_path / "out"), ("box",), pictures=True, crops=False)
        progress = Progress(console=Console(record=True, width=400), disable=True)
        steps = PredictionRun(predict, files, batch_size=batch_size, progress=progress, **options)
        errors = steps.run(find_sources(map(str, inputs)))
        results = json.loads((tmp_path / "out/detections.json").read_text())
        images = json.loads((tmp_path / "out/images.json").read_text())["images"]
        return errors, results, images, progress.console.export_text()

    return build


def duration(path: Path) -> tuple[int, float]:
    video = Video(path)
    return len(list(video)), video.rate


@pytest.mark.parametrize("codec", [pytest.param("h264", marks=needs_pyav), "mp4v"])
def test_stride_keeps_times_and_speed(run, tmp_path, monkeypatch, codec):
    if codec == "mp4v":
        monkeypatch.setattr("pvt_det.inference.video.find_spec", lambda name: None)
    errors, results, images, printed = run(write_video(tmp_path / "v.avi", 8), stride=3)
    assert errors == []
    assert [(image["frame"], image["time"]) for image in images] == [(1, 0), (4, 0.25), (7, 0.5)]
    assert [result["bbox"][0] for result in results] == pytest.approx([0, 12, 24], abs=2)
    assert duration(tmp_path / "out/videos/v.mp4") == (3, pytest.approx(4))
    assert "v.avi: 3 frames" in printed


def test_truncated_video_with_stride_is_damaged(run, tmp_path):
    path = write_video(tmp_path / "v.avi", 30)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    errors, _, images, _ = run(path, stride=2)
    assert "v.avi is damaged. Only the first" in errors[0]
    assert 0 < len(images) < 15


class Handler(BaseHTTPRequestHandler):
    """Sends a motion JPEG stream, as cameras do, or a file."""

    frames = 12
    folder: Path

    def do_GET(self):
        with suppress(OSError):  # the client has left
            self.send_file() if self.path.endswith(".mp4") else self.send_stream()

    def send_file(self):
        content = (self.folder / Path(self.path).name).read_bytes()
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self.wfile.write(content[first:])

    def send_stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        number = 0
        while number < self.frames or self.path == "/endless":
            jpeg = cv2.imencode(".jpg", picture(number % 19))[1].tobytes()
            head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
            self.wfile.write(head + jpeg + b"\r\n")
            number += 1
            time.sleep(INTERVAL)
        if self.path == "/stalls":
            time.sleep(5)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    Handler.folder = tmp_path
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_stream_is_read_until_the_sender_ends_it(run, server, tmp_path):
    errors, results, images, printed = run(f"{server}/live")
    assert errors == []
    assert [image["frame"] for image in images] == list(range(1, 13))
    assert images[0]["file_name"] == f"{server}/live"
    assert [result["bbox"][0] for result in results] == pytest.approx([4 * n for n in range(12)], abs=2)
    # The times are those at which the frames came.
    times = [image["time"] for image in images]
    assert times == sorted(times)
    assert times[-1] > 3 * INTERVAL
    count, rate = duration(tmp_path / "out/videos/live.mp4")
    assert count / rate == pytest.approx(max(times[-1], 12 / rate), abs=0.1)
    assert f"live stream 1/1 {server}/live: 12 frames" in printed
    assert "(ended by the sender)" in printed


def test_slow_model_leaves_frames_out_and_keeps_the_speed(run, server, tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "_WAITING", 1)

    def slow(images):
        time.sleep(0.15)
        return detect(images)

    errors, _, images, printed = run(f"{server}/live", predict=slow)
    assert errors == []
    assert 2 <= len(images) < 10
    assert [image["frame"] for image in images] == sorted({image["frame"] for image in images})
    assert "left out because they came faster than the model" in printed
    count, rate = duration(tmp_path / "out/videos/live.mp4")
    # Frames that came in a burst are shown one after the other.
    assert count / rate == pytest.approx(max(images[-1]["time"], images[-1]["frame"] / rate), abs=0.1)


@needs_pyav
def test_rtsp_stream(run, tmp_path):
    RtspHandler.content = transport_stream([picture(number) for number in range(19)], 25)
    RtspHandler.seconds = 0.5
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), RtspHandler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        port = running.server_address[1]
        errors, results, images, printed = run(f"rtsp://me:secret@127.0.0.1:{port}/live")
        running.shutdown()
    assert errors == []
    assert len(images) >= 10
    assert {image["file_name"] for image in images} == {f"rtsp://127.0.0.1:{port}/live"}
    wanted = [4 * (image["frame"] - 1) for image in images]
    assert [result["bbox"][0] for result in results] == pytest.approx(wanted, abs=2)
    assert "secret" not in printed


@pytest.mark.parametrize("codec", [pytest.param("h264", marks=needs_pyav), "mp4v"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_stopping_an_endless_stream_completes_its_files(run, server, tmp_path, monkeypatch, codec, name):
    if codec == "mp4v":
        monkeypatch.setattr("pvt_det.inference.video.find_spec", lambda name: None)
    calls = iter(range(100))

    def stop_later(images):
        if next(calls) == 3:
            os.kill(os.getpid(), signal.Signals[name])
        return detect(images)

    errors, _, images, printed = run(f"{server}/endless", predict=stop_later)
    assert errors == []
    assert len(images) >= 4
    assert "(stopped)" in printed
    assert duration(tmp_path / "out/videos/endless.mp4")[0] >= len(images)
    assert not (tmp_path / "out/predictions.part.jsonl").exists()


def test_stopping_a_stream_leaves_later_sources_to_resume(run, server, tmp_path):
    video = write_video(tmp_path / "v.avi", 4)

    def stop(images):
        os.kill(os.getpid(), signal.SIGTERM)
        return detect(images)

    with pytest.raises(Interrupted, match="Resume with"):
        run(f"{server}/endless", video, predict=stop)
    journal = Journal(tmp_path / "out")
    assert list(journal.sources) == [f"{server}/endless"]
    assert journal.images >= 1


def test_stopping_a_video_closes_the_drawn_file(run, tmp_path):
    def stop(images):
        os.kill(os.getpid(), signal.SIGTERM)
        return detect(images)

    with pytest.raises(Interrupted):
        run(write_video(tmp_path / "v.avi", 6), predict=stop)
    assert duration(tmp_path / "out/videos/v.mp4")[0] == 2


def test_stalled_stream_is_a_fault(run, server, monkeypatch):
    monkeypatch.setattr(frames, "STALL_LIMIT", 1.0)
    errors, _, images, _ = run(f"{server}/stalls")
    assert len(images) == 12
    used = "The 12 frames until then are used. Start again to reconnect."
    assert errors == [f"Stream {server}/stalls sent nothing for 1 seconds. {used}"]


def test_video_of_a_server_is_read_completely(run, server, tmp_path):
    write_video(tmp_path / "movie.mp4", 20)

    def slow(images):
        time.sleep(0.02)
        return detect(images)

    errors, _, images, printed = run(f"{server}/movie.mp4", predict=slow)
    assert errors == []
    assert [image["frame"] for image in images] == list(range(1, 21))
    assert f"video 1/1 {server}/movie.mp4: 20 frames" in printed


def test_camera_or_stream_that_cannot_be_opened_is_named(run):
    with pytest.raises(DataError, match=r"Camera 99 cannot be opened. Check that it is connected"):
        LiveVideo("99")
    with pytest.raises(DataError, match=r"Stream rtsp://127\.0\.0\.1:9/x cannot be opened. Check the URL") as raised:
        LiveVideo("rtsp://me:secret@127.0.0.1:9/x")
    assert "secret" not in str(raised.value)


@needs_pyav
def test_live_video_can_be_played_if_the_process_is_killed(tmp_path):
    """Fragments are complete as they are written: the file is not closed here."""
    video = VideoFile(tmp_path / "v.mp4", 25.0, is_live=True)
    for number in range(600):
        video.add(picture(number % 19))
    copy = tmp_path / "copy.mp4"
    copy.write_bytes((tmp_path / "v.mp4").read_bytes())
    assert len(list(Video(copy))) >= 250
    video.close()
    assert len(list(Video(tmp_path / "v.mp4"))) == 600


def test_skipped_positions_repeat_the_frame_before(tmp_path):
    with VideoFile(tmp_path / "v.mp4", 10.0) as video:
        video.add(picture(0), 0)
        video.add(picture(10), 3)
    lefts = [int(np.argmax(pixels[30, :, 0] > 128)) for pixels in Video(tmp_path / "v.mp4")]
    assert lefts == pytest.approx([0, 0, 0, 40], abs=2)
