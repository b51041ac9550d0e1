"""The generated pages of the documentation site cover every config key and every option."""

from __future__ import annotations

import argparse
import html
import re
from collections.abc import Callable

import pytest

from docs import generate
from pvt_det.cli.main import COMMANDS
from pvt_det.cli.start import load
from pvt_det.config.table import TABLE


def text_of(page: str) -> str:
    """The text that a reader sees, without tags."""
    return html.unescape(re.sub(r"</?(?:code|wbr)>", "", page))


def test_config_page_has_a_row_for_every_key_of_the_table() -> None:
    rows = [line for line in text_of(generate.config_page()).splitlines() if "<br>" in line]
    assert [row.removeprefix("| ").partition("<br>")[0] for row in rows] == list(TABLE)
    assert rows == sorted(set(rows), key=rows.index)


def test_config_page_shows_defaults_values_and_meanings() -> None:
    page = text_of(generate.config_page())
    assert '| MODEL.PVT.VARIANT<br>"pvt_small" | one of pvt_tiny, pvt_small, ' in page
    assert (
        "| INPUT.MOSAIC.SCALE<br>(0.5, 1.5) | a list of 2 numbers, above 0 and at most 100, in ascending order | "
        in page
    )
    limit = "an integer, 1 to 1,000,000; less than SOLVER.MAX_ITER"
    assert f"| SOLVER.NUM_DECAYS<br>3 | {limit} | Number of times that " in page


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


@pytest.mark.parametrize(("build", "columns"), [(generate.config_page, 3), (generate.cli_page, 2)])
def test_tables_have_the_same_number_of_columns_in_every_row(build: Callable[[], str], columns: int) -> None:
    rows = [line for line in build().splitlines() if line.startswith("| ")]
    assert len(rows) > 50
    assert {row.count("|") for row in rows} == {columns + 1}


def test_tutorial_page_has_the_text_and_code_of_the_notebook() -> None:
    page = generate.tutorial_page()
    assert page.startswith("# Tutorial")
    assert "```python\nfrom pvt_det import Predictor\n" in page
