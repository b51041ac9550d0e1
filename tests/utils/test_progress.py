"""Progress is shown as a bar on a terminal and as lines elsewhere, and log.txt has all messages."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from pvt_det.utils.logs import run_logging
from pvt_det.utils.progress import ProgressDisplay


@pytest.fixture
def shown():
    return io.StringIO()


def test_bar_on_terminal_keeps_its_status(shown, capsys):
    display = ProgressDisplay(Console(file=shown, force_terminal=True, width=120), total=40, done=10)
    assert display.is_live
    display.start()
    display.update(20, "loss 0.5")
    display.update(30)
    display.stop()
    last = next(line for line in reversed(shown.getvalue().splitlines()) if "training" in line)
    assert "30/40" in last
    assert "loss 0.5" in last
    assert capsys.readouterr().out == ""


def test_status_is_logged_without_terminal(shown, tmp_path, capsys):
    console = Console(file=shown, force_terminal=False)
    with run_logging(tmp_path, 0, console):
        display = ProgressDisplay(console, total=40)
        display.start()
        display.update(20, "loss 0.5")
        display.update(30)
        display.stop()
    assert not display.is_live
    assert shown.getvalue() == ""
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("] iteration 20/40  loss 0.5")
    assert "iteration 20/40  loss 0.5" in (tmp_path / "log.txt").read_text()


def test_log_file_has_more_details_than_console(shown, tmp_path, capsys):
    with run_logging(tmp_path, 0, Console(file=shown, force_terminal=False)):
        logging.getLogger("pvt_det.data").debug("a detail")
        logging.getLogger("detectron2.data").info("a library's detail")
        logging.getLogger("detectron2.data").warning("a library's warning")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("a library's warning")
    text = (tmp_path / "log.txt").read_text()
    assert all(said in text for said in ("a detail", "a library's detail", "a library's warning"))


def test_other_processes_log_to_their_own_files(shown, tmp_path, capsys):
    with run_logging(tmp_path, 3, Console(file=shown, force_terminal=False)):
        logging.getLogger("pvt_det").info("here too")
    assert capsys.readouterr().out == ""
    assert "here too" in (tmp_path / "log.txt.rank3").read_text()
