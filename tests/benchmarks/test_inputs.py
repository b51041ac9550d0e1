"""The input suite measures the training pipeline and distinguishes exact from approximate decoders."""

from __future__ import annotations

import pytest
from rich.console import Console

from benchmarks.inputs import input_table, run_inputs
from pvt_det.errors import DataError
from tests.data.imagenet.fakes import jpeg


def test_exactness_of_every_implementation(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number, (320, 280)))
    rows = list(run_inputs(tmp_path, limit=2, repeats=1))
    assert {row.step for row in rows} == {"decode", "resize", "training", "evaluation"}
    found = {row.implementation: row for row in rows}
    for name in ("simplejpeg (pvt_det)", "Pillow", "torchvision", "OpenCV"):
        assert found[name].max_difference == 0
    assert found["torch uint8 (pvt_det)"].max_difference <= 5
    assert found["OpenCV, half size"].max_difference > 0
    assert all(row.images_per_s > 0 and row.speedup > 0 for row in rows)
    console = Console(width=160)
    with console.capture() as capture:
        console.print(input_table(rows))
    assert all(row.implementation in capture.get() for row in rows)


def test_folder_without_photos_is_refused(tmp_path):
    with pytest.raises(DataError, match="contains no JPEG files"):
        list(run_inputs(tmp_path, limit=2, repeats=1))
