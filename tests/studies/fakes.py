"""A study whose runs are replaced by a fast program, and the calls of that program."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pvt_det.studies import runner, submit
from pvt_det.studies.jobs import Job

PROGRAM = Path(__file__).with_name("fake_run.py")
STUDY = """
description: Two models on things.
data:
  things: {train_json: train.json, train_images: images, val_json: val.json, val_images: images}
  pictures: {folder: pictures}
pretrain:
  trunk: {model: pvt_v2_b0, data: pictures, options: {img_size: 32, epochs: 1, warmup_epochs: 0}}
seeds: [0, 1]
overrides: {SOLVER: {MAX_ITER: 2, STEPS: [], WARMUP_ITERS: 1}}
grids:
  retinanet:
    data: [things]
    baseline: small
    configs:
      large: {config: retinanet_pvt_v2_b1, weights: ""}
      small: {config: retinanet_pvt_v2_b0, weights: trunk}
"""


class FakeRuns:
    """What the fake program does, and how it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "study.yaml"
        self.file.write_text(STUDY)
        for name in ("train.json", "val.json"):
            (folder / name).write_text("{}")
        for name in ("images", "pictures"):
            (folder / name).mkdir()
        self.behave({})

    def behave(self, behavior: dict) -> None:
        (self.folder / "fake.json").write_text(json.dumps(behavior))

    def calls(self) -> list[dict]:
        """Return the calls since the last time."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def folders(self) -> list[str]:
        """Return the run folders of the calls since the last time, in the study's folder."""
        return [str(Path(call["folder"]).relative_to("output/studies/study")) for call in self.calls()]


def command_line(job: Job, processes: int = 1) -> list[str]:
    return [sys.executable, "-S", str(PROGRAM), job.command, *job.words]


@pytest.fixture
def fake_runs(tmp_path, monkeypatch) -> FakeRuns:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "command_line", command_line)
    monkeypatch.setattr(submit, "command_line", command_line)
    monkeypatch.setenv("FAKE_RUNS", str(tmp_path / "fake.json"))
    return FakeRuns(tmp_path)
