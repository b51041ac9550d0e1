"""What an evaluation of label maps writes: the confusion matrix, and predictions for the worst and best images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table

from pvt_det.errors import DataError
from pvt_det.structures import rle
from pvt_det.utils.files import write_atomically
from pvt_det.utils.tables import render
from pvt_det.utils.text import counted

# Written to the folder of the data set's results.
SEGMENTATION_FILE = "segmentation.json"
# Number of images whose predictions are kept: those with the lowest and the highest IoU.
WORST, BEST = 8, 4
_PAIRS = 5
# Two tables side by side are printed for more classes.
_LONG_TABLE = 40
_NAME_WIDTH = 32
# Size of the confusion matrix in the terminal. With the time of the log line, it fits into 80 columns.
_MATRIX, _MATRIX_NAME_WIDTH = 12, 15


@dataclass(frozen=True)
class ImageResult:
    """Prediction for one image.

    Attributes:
        file_name: Path of the image.
        iou: Mean IoU over the classes that occur in the image, in percent.
        accuracy: Percentage of the labeled pixels that are predicted correctly.
        segments: Predicted classes, each with `category_id` and its run-length mask `segmentation`, as in Detectron2's
            `sem_seg_predictions.json`.
    """

    file_name: str
    iou: float
    accuracy: float
    segments: list[dict[str, Any]]

    def labels(self) -> npt.NDArray[np.uint8]:
        """Return the predicted label map, `H×W`."""
        labels = np.zeros(self.segments[0]["segmentation"]["size"], np.uint8)
        for segment in self.segments:
            labels[rle.decode(segment["segmentation"]) == 1] = segment["category_id"]
        return labels


@dataclass(frozen=True)
class LabelResults:
    """Results of an evaluation of label maps.

    Attributes:
        class_names: Class names by class index.
        ignore_label: Value of pixels without a class.
        confusion: Number of pixels `K×K` of each true class (row) that are predicted as each class (column).
        worst: The images with the lowest IoU, the lowest first.
        best: The other images with the highest IoU, the highest first.
    """

    class_names: tuple[str, ...]
    ignore_label: int
    confusion: npt.NDArray[np.int64]
    worst: tuple[ImageResult, ...]
    best: tuple[ImageResult, ...]


@dataclass(frozen=True)
class ClassResult:
    """Result of one class.

    Attributes:
        name: Name of the class.
        index: Class index.
        iou: IoU in percent, or None without ground truth.
        accuracy: Percentage of the pixels of the class that are predicted correctly, or None without ground truth.
        share: Percentage of all labeled pixels that belong to the class, or None if not recorded.
    """

    name: str
    index: int
    iou: float | None
    accuracy: float | None
    share: float | None


class Confusion(NamedTuple):
    """A class that is taken for another one.

    Attributes:
        truth: Name of the true class.
        predicted: Name of the predicted class.
        percent: Percentage of the pixels of the true class that are predicted as the other class.
        pixels: Number of these pixels.
    """

    truth: str
    predicted: str
    percent: float
    pixels: int


def worst_first(image: ImageResult) -> tuple[float, str]:
    """Sorting key that puts the images with the lowest IoU first. The file name decides between equal ones.

    Args:
        image: The image.
    """
    return image.iou, image.file_name


def best_first(image: ImageResult) -> tuple[float, str]:
    """Sorting key that puts the images with the highest IoU first. The file name decides between equal ones.

    Args:
        image: The image.
    """
    return -image.iou, image.file_name


def select_images(
    worst: Sequence[ImageResult], best: Sequence[ImageResult]
) -> tuple[tuple[ImageResult, ...], tuple[ImageResult, ...]]:
    """Select the images to keep: the worst ones, and the best of the others.

    Args:
        worst: Candidates for the worst images.
        best: Candidates for the best images. They may also be among the worst ones.

    Returns:
        The 8 worst images, the worst first, and the 4 best images, the best first.
    """
    kept = sorted({each.file_name: each for each in worst}.values(), key=worst_first)[:WORST]
    names = {each.file_name for each in kept}
    others = [each for each in best if each.file_name not in names]
    return tuple(kept), tuple(sorted(others, key=best_first)[:BEST])


def segments_of(labels: npt.NDArray[np.integer]) -> list[dict[str, Any]]:
    """Encode a predicted label map, one class after another.

    Args:
        labels: Predicted class index of each pixel, `H×W`.

    Returns:
        Value of `ImageResult.segments`.
    """
    segments = []
    for index in np.unique(labels).tolist():
        mask = rle.encode((labels == index).astype(np.uint8)[None])[0]
        counts = mask["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        segments.append({"category_id": index, "segmentation": {"size": list(labels.shape), "counts": text}})
    return segments


def write_label_results(path: Path, results: LabelResults) -> None:
    """Write the results of an evaluation as JSON.

    Args:
        path: The file to write or replace. Its folder must exist.
        results: The results.
    """
    content = asdict(results) | {"confusion": results.confusion.tolist()}
    write_atomically(path, json.dumps(content, ensure_ascii=False))


def read_label_results(path: Path) -> LabelResults:
    """Read the results that `write_label_results` wrote.

    Args:
        path: The file.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = {name: tuple(ImageResult(**each) for each in content[name]) for name in ("worst", "best")}
        names, confusion = tuple(content["class_names"]), np.array(content["confusion"], dtype=np.int64)
        if confusion.shape != (len(names), len(names)):
            raise ValueError(f"the confusion matrix is {confusion.shape} for {len(names)} classes")
        return LabelResults(names, content["ignore_label"], confusion, **images)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"Results {path} cannot be read ({error}). Evaluate again with pvt-det eval.") from error


def class_results(metrics: Mapping[str, float | None], results: LabelResults | None) -> list[ClassResult]:
    """Collect the results of each class, the highest IoU first and classes without ground truth last.

    Args:
        metrics: Metrics in percent, with `IoU-<class>` and `ACC-<class>`. None and NaN mean "no ground truth".
        results: Results of the evaluation, or None if they were not recorded.

    Returns:
        The results, without the class whose index is the ignored value.
    """
    names = [name.removeprefix("IoU-") for name in metrics if name.startswith("IoU-")]
    areas = None if results is None else results.confusion.sum(axis=1)
    found = []
    for index, name in enumerate(names):
        if results is not None and index == results.ignore_label:
            continue
        share = None if areas is None else 100 * float(areas[index]) / max(1, int(areas.sum()))
        iou, accuracy = (_known(metrics.get(f"{kind}-{name}")) for kind in ("IoU", "ACC"))
        found.append(ClassResult(name, index, iou, accuracy, share))
    return sorted(found, key=lambda each: (each.iou is None, -(each.iou or 0)))


def most_confused(results: LabelResults, most: int = _PAIRS) -> list[Confusion]:
    """Find the pairs of classes that are confused most.

    Args:
        results: Results of the evaluation.
        most: Maximum number of pairs.

    Returns:
        The pairs, sorted by the percentage of the true class's pixels, then by the number of pixels, the highest first.
    """
    percent = row_percent(results.confusion)
    np.fill_diagonal(percent, 0)
    order = np.lexsort((-results.confusion.ravel(), -percent.ravel()))[:most]
    rows, columns = np.unravel_index(order, percent.shape)
    names = results.class_names
    return [
        Confusion(names[i], names[j], float(percent[i, j]), int(results.confusion[i, j]))
        for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
        if percent[i, j] > 0
    ]


def row_percent(confusion: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Divide each row of a confusion matrix by its sum.

    Args:
        confusion: Number of pixels `K×K` of each true class (row) that are predicted as each class (column).

    Returns:
        Percentages `K×K`. Rows of classes without pixels are 0.
    """
    return 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def confusion_line(pair: Confusion) -> str:
    """Describe a confused pair in one line.

    Args:
        pair: The pair.
    """
    pixels = counted(pair.pixels, "pixel")
    return f"{pair.percent:.1f}% of {pair.truth!r} is predicted as {pair.predicted!r} ({pixels})"


def most_involved(results: LabelResults, most: int) -> list[int]:
    """Return the classes with ground truth or predictions, or those with the highest shares of errors if too many.

    Args:
        results: Results of the evaluation.
        most: Maximum number of classes.

    Returns:
        Class indices in ascending order.
    """
    percent = row_percent(results.confusion)
    np.fill_diagonal(percent, 0)
    occurs = np.flatnonzero(results.confusion.sum(axis=0) + results.confusion.sum(axis=1)).tolist()
    involved = percent.max(axis=0) + percent.max(axis=1)
    return sorted(sorted(occurs, key=lambda index: -involved[index])[:most])


def confusion_table(results: LabelResults) -> str:
    """Return a plain-text table with the percentage of each true class (row) that is predicted as each class (column).

    The classes are numbered, because their names would not fit above the columns.

    Args:
        results: Results of the evaluation. Of more than 12 classes, those with the highest shares of errors are shown.
    """
    shown = most_involved(results, _MATRIX)
    percent = row_percent(results.confusion)[np.ix_(shown, shown)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("true class", max_width=_MATRIX_NAME_WIDTH, no_wrap=True)
    for number in range(1, len(shown) + 1):
        table.add_column(str(number), no_wrap=True, justify="right")
    for number, (index, line) in enumerate(zip(shown, percent, strict=True), start=1):
        cells = (f"{value:.0f}" if value >= 0.5 else "" for value in line)
        table.add_row(str(number), results.class_names[index], *cells)
    return f"Percentage of each true class (row) that is predicted as each class (column):\n{render(table)}"


def class_table(classes: Sequence[ClassResult]) -> str:
    """Return a plain-text table of IoU, accuracy and share of the pixels of each class with ground truth.

    Args:
        classes: The classes, in the order of the rows. More than 40 are printed in two columns. Classes without ground
            truth are only counted, below the table.
    """
    known = [each for each in classes if each.iou is not None]
    columns = 2 if len(known) > _LONG_TABLE else 1
    rows = -(-len(known) // columns)
    table = Table(box=box.SIMPLE_HEAD)
    for _ in range(columns):
        table.add_column("class", max_width=_NAME_WIDTH, no_wrap=True)
        for name in ("IoU", "accuracy", "pixels"):
            table.add_column(name, justify="right", no_wrap=True)
    for row in range(rows):
        table.add_row(*(cell for each in known[row::rows] for cell in _cells(each)))
    lines = [render(table)] if known else []
    return "\n".join([*lines, *unknown_classes(classes)])


def unknown_classes(classes: Sequence[ClassResult]) -> list[str]:
    """Return a line with the number of classes without ground truth, or no line if there are none.

    Args:
        classes: The classes.
    """
    unknown = sum(each.iou is None for each in classes)
    return [f"{counted(unknown, 'class', 'classes')} without ground truth left out"] if unknown else []


def _cells(result: ClassResult) -> tuple[str, ...]:
    numbers = ("-" if value is None else f"{value:.2f}" for value in (result.iou, result.accuracy))
    return (result.name, *numbers, "-" if result.share is None else f"{result.share:.2f}%")


def _known(value: float | None) -> float | None:
    return None if value is None or value != value else value
