"""Figures of a report page, each as SVG for light and for dark readers."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import hotcoco
from hotcoco import plot
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pvt_det.html import Html, drawing, drawings

# Draws in a theme of hotcoco's.
Draw: TypeAlias = Callable[[str], Figure]
# The least score of what a picture or a confusion matrix shows.
SHOWN_SCORE = 0.5
_CURVES = 10


def precision_recall(evaluator: hotcoco.COCOeval) -> Html:
    """Curves of the best classes, and of the mean at several overlaps."""
    classes = _both(lambda theme: plot.pr_curve_top_n(evaluator, top_n=_CURVES, theme=theme)[0], _CLASS_CURVES)
    overlaps = _both(
        lambda theme: plot.pr_curve_iou_sweep(evaluator, iou_thrs=[0.5, 0.75, 0.9], theme=theme)[0], _MEAN_CURVES
    )
    return drawings([classes, overlaps])


def errors(evaluator: hotcoco.COCOeval) -> Html:
    """What each kind of error costs, and which class is taken for which."""
    costs, matrix = evaluator.tide_errors(), evaluator.confusion_matrix(min_score=SHOWN_SCORE)
    return drawings(
        [
            _both(lambda theme: plot.tide_errors(costs, theme=theme)[0], _TIDE),
            _both(lambda theme: plot.confusion_matrix(matrix, theme=theme)[0], _CONFUSION),
        ]
    )


def calibration(evaluator: hotcoco.COCOeval) -> Html:
    """How far a score is a probability."""
    found = evaluator.calibration()
    return drawings([_both(lambda theme: plot.reliability_diagram(found, theme=theme)[0], _CALIBRATION)])


def class_differences(compared: Mapping[str, Any]) -> Html:
    """AP of each class less that of another run."""
    return _both(
        lambda theme: plot.category_deltas(dict(compared), theme=theme)[0], "AP of each class, less the other's."
    )


def curves(series: Mapping[str, Sequence[tuple[float, float]]], title: str, caption: str, *, log: bool = False) -> Html:
    """Lines over iterations.

    Args:
        series: points (iteration, value) by name.
        title: of the figure.
        caption: below it.
        log: whether the values stand on a logarithmic axis.
    """

    def draw(theme: str) -> Figure:
        with plot.style(theme):
            figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
            _lines(axes, series, title, log=log)
        return figure

    return _both(draw, caption)


def _lines(axes: Axes, series: Mapping[str, Sequence[tuple[float, float]]], title: str, *, log: bool) -> None:
    for name, points in series.items():
        x, y = zip(*points, strict=True)
        axes.plot(x, y, label=name, linewidth=1.5, marker="o" if len(points) < 2 else None)
    axes.set_title(title, loc="left")
    axes.set_xlabel("iteration")
    if log:
        axes.set_yscale("log")
    axes.legend(fontsize=9)


def _both(draw: Draw, caption: str) -> Html:
    return drawing(_svg(draw, "cyanotype"), _svg(draw, "cyanotype-dark"), caption)


def _svg(draw: Draw, theme: str) -> str:
    # Without a date, and with names of its parts that do not change, the same results give the same page.
    with plt.rc_context({"svg.hashsalt": "report"}):
        figure = draw(theme)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    return buffer.getvalue()


_CLASS_CURVES = f"Precision over recall at an overlap (IoU) of 0.5, of at most {_CURVES} classes, the best ones."
_MEAN_CURVES = "The mean over all classes, at larger overlaps too: what falls early here is badly located."
_TIDE = (
    "How much AP50 would gain if all errors of a kind were mended (TIDE): wrong class, badly located, both, "
    "found twice, background taken for an object, missed."
)
_CONFUSION = (
    f"Objects (rows) and what was found there (columns), detections of score {SHOWN_SCORE} and above, IoU 0.5; BG: "
    "nothing found, or nothing there."
)
_CALIBRATION = "Share of right detections over their score: below the diagonal, the model is too sure of itself."
