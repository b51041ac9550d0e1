"""Progress is shown as bars on a terminal and as lines elsewhere, and log.txt has all messages."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys

import pytest
from rich.cells import cell_len
from rich.console import Console

from pvt_det.utils import console as safe_console
from pvt_det.utils import progress
from pvt_det.utils.cli import run_cli
from pvt_det.utils.logs import run_logging
from pvt_det.utils.progress import Bars, Pace, ProgressDisplay, show_notice, track
from pvt_det.utils.signals import StopRequest

_DETAILS = ["0.35 s/it", "lr 0.0001", "loss_cls 0.1234", "loss_box_reg 0.5678", "mem 12.3 GiB"]


@pytest.fixture
def shown():
    return io.StringIO()


@pytest.fixture
def terminal(shown):
    """Builds a console that writes to `shown` as if it were a terminal."""

    def build(width=80):
        return Console(file=shown, force_terminal=True, force_interactive=True, color_system=None, width=width)

    return build


@pytest.fixture
def clock(monkeypatch):
    """Seconds that have passed, for the module under test."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def frames(shown) -> list[str]:
    """Every line that was drawn, also those that later ones replaced."""
    return [line for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", shown.getvalue()) if line.strip()]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(("total", "loss"), [(800, "0.5321"), (1_000_000, "1.234e+04")])
def test_bar_counter_eta_and_total_loss_fit_every_terminal(terminal, shown, clock, width, total, loss):
    display = ProgressDisplay(terminal(width), total, done=10)
    assert display.is_live
    display.start()
    for done in range(11, 31):
        clock[0] += 0.35
        display.advance(done)
        display.show(done, f"total_loss {loss}", _DETAILS)
    display.stop()
    lines = [line for line in frames(shown) if f"30/{total}" in line]
    assert lines
    for line in lines:
        assert cell_len(line) <= width - len("^C")
        assert re.search(
            rf"[━─]{{8,40}} 30/{total} eta (\d+d \d\d:\d\d|\d+:\d\d:\d\d) total_loss {re.escape(loss)}", line
        )
        # Details are shown whole or not at all, in their order.
        assert [detail for detail in _DETAILS if detail in line] == _DETAILS[: line.count("  ")]
    assert ("loss_cls" in lines[-1]) == (width == 120)


def test_a_bar_keeps_its_values(terminal, shown, capsys):
    display = ProgressDisplay(terminal(), total=40)
    display.start()
    display.show(20, "total_loss 0.5")
    display.advance(30)
    display.stop()
    assert "30/40" in frames(shown)[-1]
    assert "total_loss 0.5" in frames(shown)[-1]
    assert capsys.readouterr().out == ""


def test_lines_are_logged_without_terminal(shown, tmp_path, capsys, clock):
    console = Console(file=shown, force_terminal=False)
    with run_logging(tmp_path, 0, console):
        display = ProgressDisplay(console, total=40)
        display.start()
        clock[0] = 20.0
        display.advance(20)
        display.show(20, "total_loss 0.5", ["lr 0.1"])
        display.advance(30)
        display.stop()
    assert not display.is_live
    assert shown.getvalue() == ""
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("] iteration 20/40  eta 0:00:20  total_loss 0.5  lr 0.1")
    assert "iteration 20/40  eta 0:00:20  total_loss 0.5" in (tmp_path / "log.txt").read_text()


def test_remaining_time_follows_the_recent_speed(clock):
    pace = Pace()
    assert pace.eta(1000) == "eta -:--:--"
    clock[0] += 60
    pace.reach(1)
    assert pace.eta(61) == "eta 1:00:00"
    for seconds, steps in ((10, 200), (1, 40)):
        for _ in range(steps):
            clock[0] += seconds
            pace.reach(done := round(pace._points[-1][1]) + 1)
    assert pace.seconds_per_step == pytest.approx(1)
    assert pace.eta(done + 3661) == "eta 1:01:01"
    assert pace.eta(done + 100_000) == "eta 1d 03:46"
    assert pace.eta(done) == "eta 0:00:00"


def test_first_step_and_evaluations_do_not_slow_down_the_remaining_time(clock):
    pace = Pace()
    for seconds in (60, 1, 1):
        clock[0] += seconds
        pace.reach(pace._points[-1][1] + 1)
    clock[0] += 500
    pace.leave_out(500)
    clock[0] += 1
    pace.reach(4)
    assert pace.eta(14) == "eta 0:00:10"


def test_evaluation_is_a_second_bar_and_does_not_count_as_training(terminal, shown, clock):
    display = ProgressDisplay(terminal(60), total=40)
    display.start()
    for done in (1, 2, 3):
        clock[0] += 2
        display.show(done, "total_loss 0.5")
    with track("evaluating shapes", 4) as advance:
        clock[0] += 100
        advance()
        progress._shown[-1].refresh()
    clock[0] += 2
    display.show(4, "total_loss 0.4")
    display.stop()
    lines = frames(shown)
    (evaluation, *_) = [line for line in lines if "1/4" in line]
    assert evaluation.startswith("evaluating shapes ━━")
    assert "eta 0:05:00" in evaluation
    assert all(cell_len(line) <= 60 for line in lines)
    assert "evaluating" not in lines[-1]
    assert "4/40 eta 0:01:12 total_loss 0.4" in lines[-1]


def test_no_line_of_an_evaluation_is_left_above_the_next_log_line(terminal, shown):
    console = terminal(80)
    display = ProgressDisplay(console, total=40)
    display.start()
    with track("evaluating", 1) as advance:
        advance()
    shown.seek(0)
    shown.truncate()
    console.print("AP 12.3")
    drawn = frames(shown)
    display.stop()
    assert drawn[0].strip() == "AP 12.3"
    assert not any("evaluating" in line for line in drawn)


def test_tasks_log_lines_at_sensible_intervals(caplog, clock):
    caplog.set_level(logging.INFO, "pvt_det")
    with track("evaluating", 1000) as advance:
        for _ in range(1000):
            clock[0] += 0.5
            advance()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 10
    assert lines[0] == "evaluating 100/1000  eta 0:07:30"
    caplog.clear()
    with track("evaluating", 1_000_000) as advance:
        for _ in range(1000):
            clock[0] += 1
            advance()
    assert len(caplog.records) == 16  # one a minute
    caplog.clear()
    with track("evaluating", 5) as advance:
        for _ in range(5):
            clock[0] += 1
            advance()
    assert not caplog.records  # too short to be reported


def test_ctrl_c_is_acknowledged_below_the_bars(terminal, shown):
    notice = "Saving after this iteration; press Ctrl-C again to stop now."
    with Bars(terminal(80)) as bars, StopRequest("iteration") as stop:
        task = bars.add_task("training", total=4)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_name == "SIGINT"
        bars.advance(task)
        bars.refresh()
    *_, bar, last = frames(shown)
    assert bar.startswith("training ━━")
    assert "1/4" in bar
    assert last == notice


@pytest.mark.parametrize(("number", "count"), [(signal.SIGINT, 1), (signal.SIGTERM, 0)])
def test_ctrl_c_is_acknowledged_on_stderr_without_bars(capfd, number, count):
    with StopRequest("batch"):
        os.kill(os.getpid(), number)
    assert capfd.readouterr().err.count("Saving after this batch; press Ctrl-C again to stop now.\n") == count


def test_other_processes_do_not_repeat_the_acknowledgment(capfd):
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == ""


def test_a_closed_terminal_does_not_fail(monkeypatch):
    def write(*_):
        raise OSError("Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(progress.os, "write", write)
        show_notice("Saving")


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


def test_bars_of_a_command_are_drawn_and_not_escaped(monkeypatch):
    """Standard output escapes control characters in a command, but not those of the bars."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8", write_through=True))

    def main():
        with Bars(safe_console.Console(force_terminal=True, force_interactive=True)) as bars:
            bars.advance(bars.add_task("a\x1b[2Jb", total=2))
            bars.refresh()
            print("from a library\x1b[2J")

    assert run_cli(main) == 0
    text = written.getvalue().decode()
    assert "\\x1b[2J" in text
    assert "\x1b[2K" in text
    assert "\\x1b[2K" not in text
    assert "\x1b[2J" not in text
    assert "from a library" in text
