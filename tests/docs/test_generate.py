"""The generated pages of the documentation site cover every config key and every option."""

from __future__ import annotations

import argparse
import html
import re
from collections.abc import Callable

import pytest
from detectron2.config import CfgNode, get_cfg

from docs import generate
from pvt_det.cli.main import COMMANDS
from pvt_det.cli.start import load
from pvt_det.config import get_config


def leaves(cfg: CfgNode, prefix: str = "") -> set[str]:
    """The full names of all keys."""
    names: set[str] = set()
    for name, value in cfg.items():
        names |= leaves(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else {f"{prefix}{name}"}
    return names


def test_config_page_has_every_key_that_detectron2_lacks() -> None:
    documented = {key.name for key in generate.documented_keys()}
    added = leaves(get_config()) - leaves(get_cfg())
    assert added
    assert documented >= added
    # The rest changes the default of a key of Detectron2's.
    assert documented - added <= leaves(get_cfg())


def test_every_key_has_a_comment() -> None:
    assert [key.name for key in generate.documented_keys() if len(key.meaning) < 20] == []


def text_of(page: str) -> str:
    """The text that a reader sees, without tags."""
    return html.unescape(re.sub(r"</?(?:code|wbr)>", "", page))


def test_config_page_shows_defaults_and_meanings() -> None:
    page = text_of(generate.config_page())
    assert '| MODEL.PVT.VARIANT<br>"pvt_small" | Variant of the PVT trunk: ' in page
    assert "| INPUT.MOSAIC.SCALE<br>(0.5, 1.5) | " in page


@pytest.mark.parametrize("command", COMMANDS)
def test_cli_page_has_every_option(command: str) -> None:
    page = generate.cli_page()
    start = page.index(f"\n## pvt-det {command}\n")
    end = page.find("\n## ", start + 1)
    section = text_of(page[start : end if end > 0 else None])
    for action in load(command).build_parser()._actions:
        for flag in action.option_strings:
            if action.help != argparse.SUPPRESS and flag not in ("-h", "--help"):
                assert f"| {flag}" in section or f", {flag}" in section, flag
    assert "%(" not in section


@pytest.mark.parametrize("build", [generate.config_page, generate.cli_page])
def test_tables_have_two_columns(build: Callable[[], str]) -> None:
    rows = [line for line in build().splitlines() if line.startswith("| ")]
    assert len(rows) > 50
    assert {row.count("|") for row in rows} == {3}


def test_tutorial_page_has_the_text_and_code_of_the_notebook() -> None:
    page = generate.tutorial_page()
    assert page.startswith("# Tutorial")
    assert "```python\nfrom pvt_det import Predictor\n" in page
