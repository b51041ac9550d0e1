"""A tiny data set for tests to break, and fixtures that run the command line like a user."""

from __future__ import annotations

import json
import multiprocessing
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pvt_det.utils.cli import run_cli
from tests.command_line import run_command
from tests.drills.outcome import resident_bytes
from tests.tiny_runs import CONFIG

SIDE = 64
SQUARE = [[8, 8, 32, 8, 32, 24, 8, 24]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("faults")


def valid_content() -> dict[str, Any]:
    """Return annotations of four images with one object each, with ids 11 to 14."""
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": SIDE, "height": SIDE} for i in range(1, 5)],
        "categories": [{"id": 3, "name": "bowl"}, {"id": 9, "name": "cup"}],
        "annotations": [
            {
                "id": 10 + i,
                "image_id": i,
                "category_id": (3, 9)[i % 2],
                "bbox": [8, 8, 24, 16],
                "area": 384,
                "iscrowd": 0,
                "segmentation": [list(SQUARE[0])],
            }
            for i in range(1, 5)
        ],
    }


@dataclass
class TinySet:
    """A COCO-format data set in its own folder. Tests change `content` or the files before they use it."""

    folder: Path
    content: dict[str, Any] = field(default_factory=valid_content)

    def image(self, number: int = 1) -> Path:
        return self.folder / f"{number}.jpg"

    def write_image(self, image: Image.Image, number: int = 1, **options: Any) -> None:
        image.save(self.folder / f"{number}.png", **options)
        record = self.content["images"][number - 1]
        record["file_name"], record["width"], record["height"] = f"{number}.png", *image.size

    @property
    def second(self) -> dict[str, Any]:
        """The annotation with id 12."""
        return self.content["annotations"][1]

    @property
    def json_file(self) -> Path:
        """Write the annotation file and return its path."""
        path = self.folder / "set.json"
        path.write_text(json.dumps(self.content))
        return path

    def words(self, part: str = "TRAIN") -> dict[str, Any]:
        return {f"DATASETS__{part}_JSON": self.json_file, f"DATASETS__{part}_IMAGES": self.folder}


@pytest.fixture
def tiny_set(tmp_path: Path) -> TinySet:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(1, 5):
        pixels = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return TinySet(folder)


def in_child(function: Callable[[], Any], *, address_space: int | None = None, file_size: int | None = None) -> tuple:
    """Run a function in a forked process with limits in bytes, and return its result and memory growth."""
    processes = multiprocessing.get_context("fork")
    receiver, sender = processes.Pipe(duplex=False)

    def run() -> None:
        torch.set_num_threads(1)  # a forked process cannot use its parent's threads
        before = resident_bytes()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the parent
        for limit, size in ((resource.RLIMIT_AS, address_space), (resource.RLIMIT_FSIZE, file_size)):
            if size is not None:
                size += address_space_now() if limit == resource.RLIMIT_AS else 0
                resource.setrlimit(limit, (size, size))
        result = function()
        sender.send((result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before))

    child = processes.Process(target=run)
    child.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        child.join()
        assert child.exitcode == 0


def address_space_now() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@dataclass(frozen=True)
class Ending:
    """Exit code and output of a command."""

    code: int
    error: str
    output: str


@pytest.fixture
def command(tiny_words, repo_root: Path, tmp_path: Path, capsys):
    """Run `pvt-det train` without a traceback: `command("--resume", SOLVER__MAX_ITER=2)`."""

    def run(*options: object, output: Path = tmp_path / "run", val: bool = False, **changes: object) -> Ending:
        words = ["--config-file", repo_root / CONFIG, *options, *tiny_words(output, val=val, **changes)]
        code = run_cli(lambda: run_command("train", words))
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return Ending(code, captured.err, captured.out)

    return run


@pytest.fixture
def refused(command, tmp_path: Path):
    """Check that a command fails before training, with one message that contains all `parts`."""

    def expect(code: int, *parts: str, options: tuple[object, ...] = (), **changes: object) -> str:
        ending = command(*options, **changes)
        assert ending.code == code, ending
        assert ending.error.startswith("error: ")
        assert ending.error.count("error: ") == 1
        for part in parts:
            assert part in ending.error, ending.error
        assert not list((tmp_path / "run").glob("*.pth"))
        return ending.error

    return expect


@pytest.fixture
def refused_set(refused, tiny_set: TinySet):
    """Check that training on the tiny data set fails with exit code 3."""

    def expect(*parts: str, **changes: object) -> str:
        return refused(3, *parts, **tiny_set.words(), **changes)

    return expect
