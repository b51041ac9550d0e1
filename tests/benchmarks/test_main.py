"""The command line of the benchmarks: each suite has its own options and refuses others."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.__main__ import main
from pvt_det.errors import ConfigError, DataError


def test_trunk_suite_compares_all_implementations(tmp_path, capsys):
    args = ["--models", "pvt_v2_b0", "--sizes", "2x32x64", "--dtypes", "fp32", "bf16", "--modes", "inference"]
    assert main(["trunk", *args, "--repeats", "1", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    rows = [(row["dtype"], row["implementation"]) for row in found["rows"]]
    assert rows == [(dtype, name) for dtype in ("fp32", "bf16") for name in ("pvt_det", "textbook", "timm")]
    assert found["environment"]["versions"]["torch"]
    assert "pvt_v2_b0" in capsys.readouterr().out


def test_growth_suite_writes_a_plot(in_this_process, tmp_path):
    plot = tmp_path / "growth.png"
    args = ["growth", "--models", "pvt_v2_b0", "resnet50", "--sides", "32", "64", "--repeats", "1"]
    assert main([*args, "--plot", str(plot)]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (["mapper"], ConfigError, "benchmarks mapper: the following arguments are required: --data"),
        (["mapper", "--data", ".", "--compile"], ConfigError, "benchmarks mapper: unrecognized arguments: --compile"),
        (["trunk", "--data", "."], ConfigError, "benchmarks trunk: unrecognized arguments: --data"),
        (["trunk", "--plot", "x.png"], ConfigError, "benchmarks trunk: unrecognized arguments: --plot"),
        (["trunk", "--treads", "1"], ConfigError, "unrecognized arguments: --treads 1. Did you mean --threads?"),
        (["growth", "--dtype", "fp32", "bf16"], ConfigError, "unrecognized arguments: bf16"),
        (["detector", "--data", ".", "--compile"], ConfigError, "detectors are compiled on a GPU only"),
        (["trunk", "--device", "gpu"], ConfigError, "argument --device: gpu: expected cpu, cuda"),
        (["trunk", "--repeats", "0"], ConfigError, "'0' is not an integer of 1 or more"),
        (["detector", "--data", ".", "--workers", "-1"], ConfigError, "--workers"),
        (["detector", "--data", ".", "--models", "pvt_small"], ConfigError, "expected a config file such as configs/"),
        (["trunk", "--models", "pvt_smal"], ConfigError, "invalid choice: 'pvt_smal' .choose from 'pvt_tiny'"),
        (["mapper", "--data", "."], DataError, "expected COCO's layout, with annotations/instances_train"),
        (["grwoth"], ConfigError, "invalid choice: 'grwoth' .choose from 'trunk', 'growth'"),
    ],
)
def test_invalid_options_are_reported(args, error, message):
    with pytest.raises(error, match=message):
        main(args)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_output_folder_is_checked_before_the_benchmark():
    with pytest.raises(ConfigError, match=r"^folder /proc/absent\S* cannot be created: "):
        main(["mapper", "--data", "absent", "--json", "/proc/absent/found.json"])
