"""Classes of ILSVRC2012's validation images, which come as a list and not as folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pvt_det.errors import DataError
from pvt_det.utils.text import listed

_DEVKIT_LIST = "ILSVRC2012_validation_ground_truth.txt"
_KNOWN_PLACES = (
    f"ILSVRC2012_devkit_t12/data/{_DEVKIT_LIST}",
    f"devkit/data/{_DEVKIT_LIST}",
    "LOC_val_solution.csv",
    "val.txt",
)


def find_val_labels(root: Path, given: str | Path | None) -> Path:
    """The list of validation classes: the file given, or the devkit's in or beside `root`.

    Raises:
        DataError: There is none.
    """
    places = [Path(given)] if given else [folder / place for folder in (root, root.parent) for place in _KNOWN_PLACES]
    for place in places:
        if place.is_file():
            return place
    looked = str(given) if given else f"{root}/" + f", {root}/".join(_KNOWN_PLACES)
    raise DataError(
        f"the validation images of {root} lie in one folder, and the list of their classes is missing: looked for "
        f"{looked}. Give the devkit's {_DEVKIT_LIST} (meta.mat beside it) or a list of `file class` with --val-labels."
    )


def read_val_labels(path: Path, names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Labels of the validation images.

    Three kinds of list are read: the devkit's (a number from 1 to 1000 a line, whose classes `meta.mat` beside it
    names), one class name a line, and lines that begin with file name and class name, separated by spaces or a comma
    (`LOC_val_solution.csv` is one). Where the lines name no files, line n is the image whose name ends in the number n.

    Args:
        path: The list.
        names: Image files without folder.
        classes: Class names (for ImageNet, WordNet identifiers such as n01440764), label by label.

    Raises:
        DataError: The list cannot be read, or an image or class in it is unknown.
    """
    try:
        rows = [re.split(r"[,\s]+", line.strip()) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a text list ({error}).") from error
    if not rows:
        raise DataError(f"{path}: is empty, expected a line for each validation image.")
    if len(rows[0]) == 1:
        by_number = _devkit_classes(path, rows) if all(row[0].isdigit() for row in rows) else [row[0] for row in rows]
        wanted = {name: _at_line(path, by_number, name) for name in names}
    else:
        by_stem = {Path(row[0]).stem: row[1] for row in rows if len(row) > 1}
        wanted = {name: _of_file(path, by_stem, name) for name in names}
    to_label = {name: label for label, name in enumerate(classes)}
    for name, wnid in wanted.items():
        if wnid not in to_label:
            raise DataError(
                f"{path}: class {wnid!r} of {name} is not among the classes of the training images or the model, "
                f"{listed(classes)}."
            )
    return [to_label[wanted[name]] for name in names]


def _at_line(path: Path, lines: Sequence[str], name: str) -> str:
    number = re.search(r"(\d+)$", Path(name).stem)
    if number is None or not 1 <= int(number[1]) <= len(lines):
        raise DataError(
            f"{path}: has {len(lines)} lines and names no files, so that {name} needs a number from 1 to {len(lines)} "
            "at its end."
        )
    return lines[int(number[1]) - 1]


def _of_file(path: Path, by_stem: dict[str, str], name: str) -> str:
    if (found := by_stem.get(Path(name).stem)) is None:
        raise DataError(f"{path}: has no line for the validation image {name}.")
    return found


def _devkit_classes(path: Path, rows: Sequence[Sequence[str]]) -> list[str]:
    """Class names of the devkit's numbers, from `meta.mat`: (number, WordNet identifier, words, …) by class."""
    meta = path.with_name("meta.mat")
    if not meta.is_file():
        raise DataError(f"{meta}: is missing; it says which classes the numbers in {path.name} stand for.")
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError(
            f"reading {meta} needs SciPy: pip install scipy, or give a list of `file class` with --val-labels."
        ) from error
    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        by_number = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets.ravel()}
    except Exception as error:
        raise DataError(f"{meta}: is not the devkit's table of classes ({error}).") from error
    if unknown := sorted({int(row[0]) for row in rows} - set(by_number)):
        raise DataError(f"{path}: class number {unknown[0]} is not in {meta.name}.")
    return [by_number[int(row[0])] for row in rows]
