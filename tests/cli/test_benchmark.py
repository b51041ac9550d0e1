"""tools/benchmark.py as it is typed: the suites of models on the smallest there are."""

from __future__ import annotations

import json

import pytest

from tools import benchmark


def test_the_trunk_beside_its_rivals(tmp_path, capsys):
    words = ["--models", "pvt_v2_b0", "--sizes", "2x32x64", "--dtypes", "fp32", "bf16", "--modes", "inference"]
    assert benchmark.main([*words, "--repeats", "1", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    rows = [(row["dtype"], row["contestant"]) for row in found["rows"]]
    assert rows == [(dtype, name) for dtype in ("fp32", "bf16") for name in ("pvt_det", "textbook", "timm")]
    assert found["environment"]["versions"]["torch"]
    assert "pvt_v2_b0" in capsys.readouterr().out


@pytest.mark.slow
def test_growth_is_drawn(tmp_path):
    plot = tmp_path / "growth.png"
    words = ["--suite", "growth", "--models", "pvt_v2_b0", "resnet50", "--sides", "32", "64", "--repeats", "1"]
    assert benchmark.main([*words, "--plot", str(plot)]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
