"""The logger of the page about loggers is found and logs a training, installed as a package."""

from __future__ import annotations

import csv
import re
import tomllib
from pathlib import Path

from tests.command_line import run_command

PAGE = Path(__file__).parents[2] / "docs/loggers.md"


def block(language: str) -> str:
    """Return the code block of a language."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return code


def test_example_of_a_logger(tiny_words, tmp_path, monkeypatch):
    points = tomllib.loads(block("toml"))["project"]["entry-points"]["pvt_det.writers"]
    info = tmp_path / "acme_loggers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme_loggers\nVersion: 1.0\n")
    lines = [f"{name} = {value}\n" for name, value in points.items()]
    (info / "entry_points.txt").write_text("[pvt_det.writers]\n" + "".join(lines))
    (tmp_path / "acme_loggers.py").write_text(block("python"))
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    words = tiny_words(run, SOLVER__MAX_ITER=2, SOLVER__STEPS=[])
    assert run_command("train", ["retinanet_pvt_tiny", "--logger", "csv", *words]) == 0
    rows = list(csv.reader((run / "loss.csv").open()))
    assert rows[0][0] == "1"
    assert 0 < float(rows[0][1]) < 100
