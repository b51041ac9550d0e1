"""Draw the figures of a report, each as SVG in a light and a dark theme. All rates are in percent."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import hotcoco
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from hotcoco import plot
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pvt_det.evaluation.thresholds import THRESHOLDS, ScoredMatches
from pvt_det.utils.html import Html, drawing, drawings

# Draws on axes whose colors and fonts are those of the theme.
Draw: TypeAlias = Callable[[Axes], None]
Series: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]
# Classes with a color and a name in the legend.
_CURVES = 10
# Figure size in inches. The font size is fixed, so text of small figures appears larger at the same display width.
_SMALL = (5, 3.4)
_SQUARE = (5, 4.2)
# A confusion matrix of more classes is as wide as the page.
_FEW_CLASSES = 12
# A confusion matrix shows at most this many classes, those that are confused most often.
_MOST_CLASSES = 25
# Bars of classes in a comparison: the largest losses and the largest gains.
_BARS = 40
_ERRORS = {
    "Cls": "wrong class",
    "Loc": "poor localization",
    "Both": "wrong class and\npoor localization",
    "Dupe": "duplicate",
    "Bkg": "no object there",
    "Miss": "missed object",
}


def precision_recall(evaluator: hotcoco.COCOeval) -> Html:
    """Draw the precision-recall curves of the best classes, and of the mean at several IoU thresholds.

    Args:
        evaluator: Evaluator with accumulated results.
    """
    result, params = evaluator.eval, evaluator.params
    assert result is not None
    area, limit = list(params.area_rng_lbl).index("all"), int(np.argmax(params.max_dets))
    # IoU × recall × class. Precision is -1 for classes without objects.
    precision = np.ma.masked_less(np.asarray(result["precision"])[:, :, :, area, limit], 0) * 100
    recall = np.asarray(params.rec_thrs) * 100
    names = [evaluator.coco_gt.load_cats(category)[0]["name"] for category in params.cat_ids]
    by_ap = sorted(range(len(names)), key=lambda k: -float(np.ma.filled(precision[0, :, k].mean(), -1)))
    classes = {names[k]: precision[0, :, k] for k in by_ap[:_CURVES] if precision[0, :, k].count()}
    wanted = {f"IoU {iou:.2f}": int(np.abs(np.asarray(params.iou_thrs) - iou).argmin()) for iou in (0.5, 0.75, 0.9)}
    overlaps = {name: precision[number].mean(axis=1) for name, number in wanted.items()}

    def draw(curves: Mapping[str, Any]) -> Draw:
        def draw_curves(axes: Axes) -> None:
            for name, values in curves.items():
                axes.plot(recall, np.ma.filled(values, np.nan), label=name, linewidth=1.5)
            _label(axes, "Recall (%)", "Precision (%)", x=(0, 101), y=(0, 101))

        return draw_curves

    shown = ((classes, _CLASS_CURVES), (overlaps, _MEAN_CURVES))
    return drawings(_both(draw(curves), _SQUARE, caption) for curves, caption in shown)


def threshold_curves(matches: ScoredMatches, threshold: float) -> Html:
    """Draw F1 of each class and its mean over the score threshold, and the mean precision and recall.

    Args:
        matches: Scores of the detections.
        threshold: The score threshold of the report, which is marked.
    """
    rates = matches.rates(THRESHOLDS)
    mean = rates.mean()

    def mark(axes: Axes, y: str) -> None:
        axes.axvline(threshold, linestyle="--", linewidth=1, color=mpl.rcParams["xtick.color"])
        _label(axes, "Score threshold", y, x=(0, 1), y=(0, 101))

    def draw_f1(axes: Axes) -> None:
        few = len(matches.names) <= _CURVES
        if len(matches.names) > 1:
            for name, f1 in zip(matches.names, rates.f1, strict=True):
                color = {} if few else {"color": mpl.rcParams["axes.edgecolor"]}
                axes.plot(THRESHOLDS, f1, linewidth=0.8, label=name if few else None, **color)
        best = f"{mean.f1[0].max():.0f}% at {matches.best:g}"
        label = f"{'mean' if len(matches.names) > 1 else matches.names[0]}: {best}"
        axes.plot(THRESHOLDS, mean.f1[0], linewidth=2.5, label=label, color=mpl.rcParams["text.color"])
        mark(axes, "F1 (%)")

    def draw_rates(axes: Axes) -> None:
        for name, values in (("precision", mean.precision[0]), ("recall", mean.recall[0])):
            axes.plot(THRESHOLDS, values, linewidth=2, label=name)
        mark(axes, "Mean over classes (%)")

    return drawings([_both(draw_f1, _SQUARE, _F1), _both(draw_rates, _SQUARE, _RATES)])


def errors(evaluator: hotcoco.COCOeval, shown: hotcoco.COCOeval) -> Html:
    """Draw the number of errors of each kind, how much AP each kind costs (TIDE), and how well scores are calibrated.

    Args:
        evaluator: Evaluator with accumulated results of all detections.
        shown: Evaluator of the detections that reach the score threshold.
    """
    counts, costs = shown.tide_errors()["counts"], evaluator.tide_errors()["delta_ap"]
    numbers = {name: counts.get(kind, 0) for kind, name in _ERRORS.items()}
    points = {name: 100 * costs.get(kind, 0) for kind, name in _ERRORS.items()}
    parts = [
        _both(lambda axes: _bars(axes, numbers, "{:,.0f}"), _SMALL, _COUNTS),
        _both(lambda axes: _bars(axes, points, "{:.1f}"), _SMALL, _TIDE),
    ]
    bins = [each for each in evaluator.calibration()["bins"] if each["count"]]
    return drawings([*parts, _both(lambda axes: _calibration(axes, bins), _SMALL, _CALIBRATION)])


def _bars(axes: Axes, values: Mapping[str, float], form: str) -> None:
    bars = axes.barh(list(values), list(values.values()), height=0.6)
    axes.bar_label(bars, labels=[form.format(value) for value in values.values()], padding=3, fontsize=9)
    axes.set_xlim(0, 1.15 * max(values.values()) or 1)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def _calibration(axes: Axes, bins: Sequence[Mapping[str, float]]) -> None:
    lower, upper = (np.array([each[name] for each in bins]) * 100 for name in ("bin_lower", "bin_upper"))
    correct = [100 * each["avg_accuracy"] for each in bins]
    axes.bar((lower + upper) / 2, correct, width=(upper - lower) * 0.85)
    axes.plot([0, 100], [0, 100], "--", linewidth=1, color=mpl.rcParams["xtick.color"], label="ideal")
    _label(axes, "Score (%)", "Correct detections (%)", x=(0, 100), y=(0, 101))


def confusion(evaluator: hotcoco.COCOeval, threshold: float) -> Html:
    """Draw the confusion matrix of the classes.

    Args:
        evaluator: Evaluator with accumulated results of all detections.
        threshold: Minimum score of the detections.
    """
    found = evaluator.confusion_matrix(min_score=threshold)
    matrix = np.asarray(found["matrix"], np.int64)
    names = [*found["cat_names"], "background"]
    kept = _most_confused(matrix)
    totals = matrix.sum(axis=1)[kept]
    percent = 100 * matrix[np.ix_(kept, kept)] / np.maximum(totals, 1)[:, None]
    shown = [names[k] for k in kept]
    side = max(5.0, 1.5 + 0.45 * len(shown))
    caption = _CONFUSION.format(threshold=f"{threshold:g}")
    if len(kept) < len(names):
        caption += f" Shown are the {len(kept) - 1} classes that are confused most often."
    drawn = _both(lambda axes: _matrix(axes, percent, shown, totals), (side + 1, side), caption)
    return drawings([drawn]) if len(names) <= _FEW_CLASSES else drawn


def _most_confused(matrix: npt.NDArray[np.int64]) -> list[int]:
    """Return the numbers of the rows to show, in order, with the background last."""
    background = len(matrix) - 1
    classes = matrix[:background, :background]
    mistaken = classes.sum(axis=0) + classes.sum(axis=1) - 2 * classes.diagonal()
    return [*sorted(np.argsort(-mistaken, kind="stable")[:_MOST_CLASSES].tolist()), background]


def _matrix(axes: Axes, percent: npt.NDArray[Any], names: Sequence[str], totals: npt.NDArray[np.int64]) -> None:
    shown = axes.imshow(percent, vmin=0, vmax=100)
    size = max(5.0, min(9.0, 120 / len(names)))
    for (row, column), value in np.ndenumerate(percent):
        if value >= 0.5:
            ink = "white" if np.dot(shown.cmap(shown.norm(value))[:3], (0.3, 0.59, 0.11)) < 0.5 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=size)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), [f"{name} ({total:,})" for name, total in zip(names, totals, strict=True)])
    axes.set_xlabel("Detected as (%)")
    axes.set_ylabel("Ground truth (number)")
    axes.grid(visible=False)


def class_differences(compared: Mapping[str, Any], name: str, other: str) -> Html:
    """Draw the AP of each class in one run minus that in another run.

    Args:
        compared: Result of `hotcoco.compare`, called with the evaluators of the other run and of this run.
        name: Name of this run.
        other: Name of the other run.
    """
    classes = compared["per_category"]
    if len(classes) > _BARS:
        classes = [*classes[: _BARS // 2], *classes[-_BARS // 2 :]]

    def draw(axes: Axes) -> None:
        values = [100 * each["delta"] for each in classes]
        # Numbers, not names, because names may be equal.
        axes.barh(range(len(values)), values, height=0.7, color=["C1" if value < 0 else "C8" for value in values])
        axes.axvline(0, linewidth=0.8, color=mpl.rcParams["axes.edgecolor"])
        axes.set_yticks(range(len(values)), [each["cat_name"] for each in classes])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("Difference in AP (percentage points)")

    size = (_SMALL[0], max(_SMALL[1], 0.28 * len(classes)))
    return drawings([_both(draw, size, f"AP of each class in {name} minus that in {other}.")])


def curves(series: Series, title: str, caption: str, *, log: bool = False) -> Html:
    """Draw one or more curves over iterations.

    Args:
        series: Points (iteration, value) of each curve by its name.
        title: Title of the figure.
        caption: Caption below the figure.
        log: Whether the value axis is logarithmic.
    """

    def draw(axes: Axes) -> None:
        for name, points in series.items():
            x, y = zip(*points, strict=True)
            axes.plot(x, y, label=name, linewidth=1.5, marker="o" if len(points) < 2 else None)
        axes.set_title(title, loc="left")
        axes.set_xlabel("iteration")
        if log:
            axes.set_yscale("log")
        axes.legend(fontsize=9)

    return _both(draw, _SMALL, caption)


def scatter(points: Mapping[str, tuple[float, float, float | None]], x_label: str, y_label: str, caption: str) -> Html:
    """Draw named points with error bars.

    Args:
        points: Position and half the length of the error bar (None for no bar) of each point by its name.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        caption: Caption below the figure.
    """

    def draw(axes: Axes) -> None:
        for name, (x, y, error) in points.items():
            drawn = axes.errorbar([x], [y], yerr=None if error is None else [error], fmt="o", capsize=3)
            axes.annotate(
                name, (x, y), (6, 4), textcoords="offset points", fontsize=8, color=drawn.lines[0].get_color()
            )
        axes.margins(x=0.25, y=0.15)
        axes.set(xlabel=x_label, ylabel=y_label)

    return _both(draw, _SMALL, caption)


def _label(axes: Axes, x_label: str, y_label: str, *, x: tuple[float, float], y: tuple[float, float]) -> None:
    axes.set(xlabel=x_label, ylabel=y_label, xlim=x, ylim=y)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=9)


def _both(draw: Draw, size: tuple[float, float], caption: str) -> Html:
    return drawing(_svg(draw, size, "cyanotype"), _svg(draw, size, "cyanotype-dark"), caption)


def _svg(draw: Draw, size: tuple[float, float], theme: str) -> str:
    # Omit the date and fix the ids of SVG elements, so that the same results give the same page.
    with plot.style(theme), plt.rc_context({"svg.hashsalt": "report"}):
        figure: Figure
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    return buffer.getvalue()


_CLASS_CURVES = f"Precision over recall at IoU 0.5, for the best classes (at most {_CURVES})."
_MEAN_CURVES = (
    "Precision over recall at several IoU thresholds, mean over all classes. A curve that drops early only at a high "
    "IoU shows poor localization."
)
_F1 = "F1 over the score threshold at IoU 0.5. The dashed line is the threshold that this page uses."
_RATES = (
    "Precision and recall over the score threshold. A higher threshold gives fewer false detections, a lower one "
    "misses fewer objects."
)
_COUNTS = "Number of errors of each kind (TIDE) among the detections that reach the score threshold."
_TIDE = (
    "AP50 in percentage points that would be gained by fixing all errors of one kind (TIDE). As for AP, all detections "
    "count, whatever their score is."
)
_CONFUSION = (
    "What the objects of each class (row) were detected as (column), in percent of the row, at IoU 0.5 and a score of "
    "at least {threshold}. The last column is for objects that were not detected, and the last row for detections "
    "where there is no object."
)
_CALIBRATION = (
    "Share of correct detections by score. If the bars end below the dashed line, the scores are too high: the model "
    "is overconfident."
)
