"""Importing the package before torch lets waiting OpenMP threads sleep, unless the user has chosen otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def run(code, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in _NAMES}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "PASSIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "1000"}, "None"),
        ({"KMP_BLOCKTIME": "0"}, "None"),
    ],
)
def test_policy_of_the_user_is_kept(given, expected):
    code = "import os, pvt_det; print(os.environ.get('OMP_WAIT_POLICY'))"
    assert run(code, **given).stdout.strip() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="for GNU OpenMP, which PyTorch uses on Linux")
def test_openmp_of_torch_reads_it():
    shown = run("import pvt_det, torch", OMP_DISPLAY_ENV="VERBOSE").stderr
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown
    assert "GOMP_SPINCOUNT = '0'" in shown
