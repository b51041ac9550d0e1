"""The demo from end to end, far too short to learn anything, and its verdict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pvt_det.config import load_config
from tools import demo


def test_a_demo_of_two_iterations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "demo"
    arguments = ["--output", str(output), "--train", "8", "--val", "4", "--picture", str(tmp_path / "sheet.jpg")]
    short = ["SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1", "SOLVER.IMS_PER_BATCH", "2"]
    short += ["DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu"]
    assert demo.main([*arguments, *short]) == 1
    printed = capsys.readouterr().out
    assert "AP50" in printed
    assert "on 4 held-out images: far less than the 0.70" in printed
    results = json.loads((output / "results.json").read_text())
    assert results["iterations"] == 2
    assert results["metrics"]["bbox"]["AP"] < 50
    pictures = sorted((output / "pictures").iterdir())
    assert [path.name for path in pictures] == ["000002.png", "000004.png", "000006.png", "000008.png"]
    with Image.open(pictures[0]) as picture, Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.size == (2 * picture.width + 4, 2 * picture.height + 4)
        # The left half shows the truth, so it is not just the photo enlarged.
        shown = np.asarray(picture.convert("RGB").crop((0, 18, 384, 402)).resize((128, 128), Image.Resampling.BOX))
    plain = np.asarray(Image.open(output / "shapes/val/000002.png"))
    assert np.abs(shown.astype(int) - plain).max() > 60


def test_the_short_example_of_the_help_is_a_valid_config() -> None:
    parser = demo.build_parser()
    (words,) = [line.split()[2:] for line in (parser.epilog or "").splitlines() if "MAX_ITER" in line]
    assert load_config(demo.CONFIG, parser.parse_words(words).overrides).SOLVER.MAX_ITER == 20


@pytest.mark.parametrize(
    ("ap", "code", "words"),
    [(70.0, 0, "as it should be"), (69.9, 0, "less than the 0.70"), (49.9, 1, "something is broken")],
)
def test_the_verdict(capsys: pytest.CaptureFixture[str], ap: float, code: int, words: str) -> None:
    assert demo.verdict(ap, 200) == code
    assert words in capsys.readouterr().out
