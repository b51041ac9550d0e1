"""Tests of the precision of the forward pass."""

from __future__ import annotations

import pytest
import torch

from pvt_det.utils.precision import has_fast_bf16

AVX512_ONLY = {"avx512_f": True, "avx512_bw": True, "avx512_vnni": True, "avx512_bf16": False, "amx_bf16": False}


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        (AVX512_ONLY, False),  # oneDNN emulates bf16 here, and still reports it as supported
        (AVX512_ONLY | {"avx512_bf16": True}, True),
        (AVX512_ONLY | {"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True, "bf16": False}, False),
    ],
)
def test_bf16_is_fast_only_on_processors_with_its_instructions(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_fast_bf16(torch.device("cpu")) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 sse\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx512f avx512_vnni\n", False),
        (None, False),
    ],
)
def test_older_pytorch_asks_linux_for_bf16(monkeypatch, tmp_path, content, expected):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr("pvt_det.utils.precision._CPU_INFO", tmp_path / "cpuinfo")
    if content is not None:
        (tmp_path / "cpuinfo").write_text(content)
    assert has_fast_bf16(torch.device("cpu")) == expected


def test_bf16_is_fast_on_gpus():
    assert has_fast_bf16(torch.device("cuda"))
