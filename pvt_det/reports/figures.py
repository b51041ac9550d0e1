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

from pvt_det.utils.html import Html, drawing, drawings

# Draws in a theme of hotcoco's.
Draw: TypeAlias = Callable[[str], Figure]
# The least score of what a picture or a confusion matrix shows.
SHOWN_SCORE = 0.5
_CURVES = 10
# Letters have one size, so that those of a small figure are large where it is shown as wide as others.
_SMALL = (6, 3.8)
# A confusion matrix of more stands alone, as wide as the page.
_FEW_CLASSES = 12


def precision_recall(evaluator: hotcoco.COCOeval) -> Html:
    """Curves of the best classes, and of the mean at several overlaps."""
    classes = _both(lambda theme: plot.pr_curve_top_n(evaluator, top_n=_CURVES, theme=theme)[0], _CLASS_CURVES)
    overlaps = _both(
        lambda theme: plot.pr_curve_iou_sweep(evaluator, iou_thrs=[0.5, 0.75, 0.9], theme=theme)[0], _MEAN_CURVES
    )
    return drawings([classes, overlaps])


def errors(evaluator: hotcoco.COCOeval) -> Html:
    """What each kind of error costs, and how far a score is a probability."""
    costs, scores = evaluator.tide_errors(), evaluator.calibration()

    def draw_costs(axes: Axes, theme: str) -> None:
        plot.tide_errors(costs, theme=theme, ax=axes)

    calibration = _both(lambda theme: plot.reliability_diagram(scores, theme=theme)[0], _CALIBRATION)
    return drawings([_both(_on_axes(draw_costs, _SMALL), _TIDE), calibration])


def confusion(evaluator: hotcoco.COCOeval) -> Html:
    """Which class is taken for which."""
    matrix = evaluator.confusion_matrix(min_score=SHOWN_SCORE)
    shown = _both(lambda theme: plot.confusion_matrix(matrix, theme=theme)[0], _CONFUSION)
    return drawings([shown]) if len(evaluator.params.cat_ids) <= _FEW_CLASSES else shown


def class_differences(compared: Mapping[str, Any], name: str, other: str) -> Html:
    """AP of each class in run `name`, less that in run `other`.

    Args:
        compared: what `hotcoco.compare` gives of the other run's evaluator and this one's.
        name: of the run.
        other: of the one it is compared with.
    """
    named = {**compared, "name_a": other, "name_b": name}
    size = (_SMALL[0], max(_SMALL[1], 0.28 * min(len(compared["per_category"]), 40)))

    def draw(axes: Axes, theme: str) -> None:
        plot.category_deltas(named, theme=theme, ax=axes)

    return drawings([_both(_on_axes(draw, size), "AP of each class, from 0 to 1, less the other run's.")])


def curves(series: Mapping[str, Sequence[tuple[float, float]]], title: str, caption: str, *, log: bool = False) -> Html:
    """Lines over iterations.

    Args:
        series: points (iteration, value) by name.
        title: of the figure.
        caption: below it.
        log: whether the values stand on a logarithmic axis.
    """
    return _both(_on_axes(lambda axes, _: _lines(axes, series, title, log=log), _SMALL), caption)


def _on_axes(draw: Callable[[Axes, str], None], size: tuple[float, float]) -> Draw:
    """What draws on axes of a figure of its own, width and height in inches."""

    def draw_figure(theme: str) -> Figure:
        with plot.style(theme):
            figure, axes = plt.subplots(figsize=size, layout="constrained")
            draw(axes, theme)
        return figure

    return draw_figure


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
