"""Labels of ILSVRC2012's validation images, which come as a list instead of class folders."""

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
    """Find the list of the validation images' classes.

    Args:
        root: Folder of the data set.
        given: Path of the list. By default the usual lists are searched for in `root` and its parent folder.

    Returns:
        Path of the list.

    Raises:
        DataError: The list does not exist.
    """
    places = [Path(given)] if given else [folder / place for folder in (root, root.parent) for place in _KNOWN_PLACES]
    for place in places:
        if place.is_file():
            return place
    searched = str(given) if given else f"{root}/" + f", {root}/".join(_KNOWN_PLACES)
    raise DataError(
        f"{root}: all validation images are in one folder, and the list of their classes is missing. Searched for "
        f"{searched}. Set --val-labels to the devkit's {_DEVKIT_LIST} (with meta.mat in the same folder) or to a list "
        "of `file class` lines."
    )


def read_val_labels(path: Path, names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Read the labels of the validation images from a list.

    Three formats are supported:

    - the devkit's: one number from 1 to 1000 per line, with the classes in `meta.mat` in the same folder;
    - one class name per line;
    - a file name and a class name at the start of each line, separated by spaces or a comma, as in
      `LOC_val_solution.csv`.

    If the lines contain no file names, line n belongs to the image whose name ends with the number n.

    Args:
        path: The list.
        names: Names of the image files, without folders.
        classes: Class names in the order of the labels. For ImageNet these are WordNet identifiers such as n01440764.

    Returns:
        Label of each image.

    Raises:
        DataError: The list cannot be read, lacks an image, or contains an unknown class.
    """
    try:
        rows = [re.split(r"[,\s]+", line.strip()) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a text file ({error}).") from error
    if not rows:
        raise DataError(f"{path}: is empty. Expected one line per validation image.")
    if len(rows[0]) == 1:
        by_number = _devkit_classes(path, rows) if all(row[0].isdigit() for row in rows) else [row[0] for row in rows]
        class_of = {name: _class_at_line(path, by_number, name) for name in names}
    else:
        by_stem = {Path(row[0]).stem: row[1] for row in rows if len(row) > 1}
        class_of = {name: _class_of_file(path, by_stem, name) for name in names}
    to_label = {name: label for label, name in enumerate(classes)}
    for name, wnid in class_of.items():
        if wnid not in to_label:
            raise DataError(
                f"{path}: class {wnid!r} of {name} is not among the classes of the training images or the model, "
                f"{listed(classes)}."
            )
    return [to_label[class_of[name]] for name in names]


def _class_at_line(path: Path, lines: Sequence[str], name: str) -> str:
    number = re.search(r"(\d+)$", Path(name).stem)
    if number is None or not 1 <= int(number[1]) <= len(lines):
        raise DataError(
            f"{path}: has {len(lines)} lines without file names, so the image name {name} must end with a number from "
            f"1 to {len(lines)}."
        )
    return lines[int(number[1]) - 1]


def _class_of_file(path: Path, by_stem: dict[str, str], name: str) -> str:
    if (found := by_stem.get(Path(name).stem)) is None:
        raise DataError(f"{path}: has no line for the validation image {name}.")
    return found


def _devkit_classes(path: Path, rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the class name of each line of the devkit's list, using the class table in `meta.mat`."""
    meta = path.with_name("meta.mat")
    if not meta.is_file():
        raise DataError(f"{meta}: is missing. It defines the class numbers of {path.name}.")
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError(
            f"{meta}: needs SciPy to be read. Run `pip install scipy`, or set --val-labels to a list of `file class` "
            "lines."
        ) from error
    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        by_number = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets.ravel()}
    except Exception as error:
        raise DataError(f"{meta}: is not the devkit's class table ({error}).") from error
    if unknown := sorted({int(row[0]) for row in rows} - set(by_number)):
        raise DataError(f"{path}: class number {unknown[0]} is not in {meta.name}.")
    return [by_number[int(row[0])] for row in rows]
