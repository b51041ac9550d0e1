"""Draw the figures of a report, each as SVG in a light and a dark theme."""

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

# Draws a figure in a named hotcoco theme.
Draw: TypeAlias = Callable[[str], Figure]
# Minimum score of the detections in visualizations and confusion matrices.
SHOWN_SCORE = 0.5
_CURVES = 10
# Figure size in inches. The font size is fixed, so text of small figures appears larger at the same display width.
_SMALL = (6, 3.8)
# A confusion matrix of more classes is as wide as the page.
_FEW_CLASSES = 12


def precision_recall(evaluator: hotcoco.COCOeval) -> Html:
    """Draw the precision-recall curves of the best classes, and of the mean at several IoU thresholds.

    Args:
        evaluator: Evaluator with accumulated results.
    """
    classes = _both(lambda theme: plot.pr_curve_top_n(evaluator, top_n=_CURVES, theme=theme)[0], _CLASS_CURVES)
    overlaps = _both(
        lambda theme: plot.pr_curve_iou_sweep(evaluator, iou_thrs=[0.5, 0.75, 0.9], theme=theme)[0], _MEAN_CURVES
    )
    return drawings([classes, overlaps])


def errors(evaluator: hotcoco.COCOeval) -> Html:
    """Draw the AP cost of each type of error (TIDE), and how well scores are calibrated.

    Args:
        evaluator: Evaluator with accumulated results.
    """
    costs, scores = evaluator.tide_errors(), evaluator.calibration()

    def draw_costs(axes: Axes, theme: str) -> None:
        plot.tide_errors(costs, theme=theme, ax=axes)

    calibration = _both(lambda theme: plot.reliability_diagram(scores, theme=theme)[0], _CALIBRATION)
    return drawings([_both(_on_axes(draw_costs, _SMALL), _TIDE), calibration])


def confusion(evaluator: hotcoco.COCOeval) -> Html:
    """Draw the confusion matrix of the classes.

    Args:
        evaluator: Evaluator with accumulated results.
    """
    matrix = evaluator.confusion_matrix(min_score=SHOWN_SCORE)
    shown = _both(lambda theme: plot.confusion_matrix(matrix, theme=theme)[0], _CONFUSION)
    return drawings([shown]) if len(evaluator.params.cat_ids) <= _FEW_CLASSES else shown


def class_differences(compared: Mapping[str, Any], name: str, other: str) -> Html:
    """Draw the AP of each class in one run minus that in another run.

    Args:
        compared: Result of `hotcoco.compare`, called with the evaluators of the other run and of this run.
        name: Name of this run.
        other: Name of the other run.
    """
    named = {**compared, "name_a": other, "name_b": name}
    size = (_SMALL[0], max(_SMALL[1], 0.28 * min(len(compared["per_category"]), 40)))

    def draw(axes: Axes, theme: str) -> None:
        plot.category_deltas(named, theme=theme, ax=axes)

    return drawings([_both(_on_axes(draw, size), "AP per class (0 to 1) minus the AP of the other run.")])


def curves(series: Mapping[str, Sequence[tuple[float, float]]], title: str, caption: str, *, log: bool = False) -> Html:
    """Draw one or more curves over iterations.

    Args:
        series: Points (iteration, value) of each curve by its name.
        title: Title of the figure.
        caption: Caption below the figure.
        log: Whether the value axis is logarithmic.
    """
    return _both(_on_axes(lambda axes, _: _lines(axes, series, title, log=log), _SMALL), caption)


def _on_axes(draw: Callable[[Axes, str], None], size: tuple[float, float]) -> Draw:
    """Return a function that draws on the axes of a new figure with this width and height in inches."""

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
    # Omit the date and fix the ids of SVG elements, so that the same results give the same page.
    with plt.rc_context({"svg.hashsalt": "report"}):
        figure = draw(theme)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    return buffer.getvalue()


_CLASS_CURVES = f"Precision over recall at IoU 0.5, for the best classes (at most {_CURVES})."
_MEAN_CURVES = (
    "Precision over recall at several IoU thresholds, mean over all classes. A curve that drops early only at a high "
    "IoU shows poor localization."
)
_TIDE = (
    "AP50 that would be gained by fixing all errors of one type (TIDE): wrong class, poor localization, both, "
    "duplicate detection, background detected as an object, missed object."
)
_CONFUSION = (
    f"Objects (rows) and detections with a score of at least {SHOWN_SCORE} (columns) at IoU 0.5. BG (background) means "
    "that nothing was detected, or that there is no object."
)
_CALIBRATION = "Fraction of correct detections by score. Below the diagonal, the model is overconfident."
