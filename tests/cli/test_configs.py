"""Tests of the list of recipes."""

from __future__ import annotations

import pytest

from pvt_det.errors import ConfigError
from tests.command_line import run_command


def test_lists_recipes_with_their_published_results(capsys):
    assert run_command("configs", ["retinanet", "PVT_small"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line.split() for line in lines if " retinanet_pvt_small " in line]
    assert row == ["retinanet_pvt_small", "1x", "40.4", "yes"]
    assert not any("mask_rcnn" in line for line in lines)


def test_unknown_word_is_an_error():
    with pytest.raises(ConfigError, match="focalnet: no recipe has such a name"):
        run_command("configs", ["focalnet"])
