"""Tables in the log fit into a terminal of 80 columns, where the time of the log line takes 11."""

from __future__ import annotations

from pvt_det.utils.tables import class_table, metric_table

ROOM = 80 - 11
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR1000", "ARs", "ARm", "ARl")


def test_metrics_are_six_in_a_row():
    values = {name: float(number) for number, name in enumerate(METRICS)} | {"AP-cat": 50.0}
    lines = metric_table(values | {"APm": float("nan")}).splitlines()
    assert max(map(len, lines)) <= ROOM
    words = [line.split() for line in lines if "─" not in line]
    assert words[::2] == [list(METRICS[:6]), list(METRICS[6:])]
    assert words[1::2] == [["0.00", "1.00", "2.00", "3.00", "-", "5.00"], [f"{n}.00" for n in range(6, 12)]]


def test_classes_are_three_in_a_row():
    lines = class_table({"AP": 1.0, **{f"AP-class {number}": float(number) for number in range(4)}}).splitlines()
    assert max(map(len, lines)) <= ROOM
    assert lines[0].split() == ["class", "AP"] * 2 or lines[0].split() == ["class", "AP"] * 3
    assert "class 3" in "".join(lines)
