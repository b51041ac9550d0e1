"""Read all label maps of a data set: which values occur, and which files cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pvt_det.data.coco.findings import Findings
from pvt_det.data.images import IMAGE_SUFFIXES, LABEL_MODES, StoredPixels, read_header, read_image, read_stored
from pvt_det.data.segmentation.folders import LabelSource, check_label_size
from pvt_det.errors import DataError

Color = tuple[int, int, int]
_VALUES = 256
_IN_COLOR = "label map in color instead of class numbers"
_BINARY = "label map with 1 bit per pixel"
_TOO_DEEP = "label map with more than 8 bits per pixel"
_BROKEN = "file that cannot be used"
_GRAY = "the three channels are equal: save one of them, as Image.open(file).convert('L')"
# Number of colors that are listed.
_MOST_COLORS = 24
# Number of files whose mode shows that a folder contains images instead of label maps.
_PROBED = 3
_ANNOTATIONS = (".json", ".xml", ".txt", ".yaml")


@dataclass(frozen=True)
class LabelFile:
    """A usable image with its label map.

    Attributes:
        image: Path of the image.
        label: Path of the label map.
        size: Width and height in pixels.
        pixels: Number of pixels of each value, 256 counts.
        palette: Colors `N×3` of the palette, or None without one.
    """

    image: Path
    label: Path
    size: tuple[int, int]
    pixels: npt.NDArray[np.int64]
    palette: npt.NDArray[np.uint8] | None


@dataclass
class LabelScan:
    """The label maps of a data set.

    Attributes:
        files: The usable label maps.
        findings: Problems and how training handles them.
        colors: Colors of label maps that store colors instead of class numbers, with their numbers of pixels.
    """

    files: list[LabelFile] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    colors: Counter[Color] = field(default_factory=Counter)

    @property
    def pixels(self) -> npt.NDArray[np.int64]:
        """Number of pixels of each value, 256 counts."""
        return sum((each.pixels for each in self.files), start=np.zeros(_VALUES, np.int64))

    @property
    def images(self) -> npt.NDArray[np.int64]:
        """Number of images in which each value occurs, 256 counts."""
        return sum((np.sign(each.pixels) for each in self.files), start=np.zeros(_VALUES, np.int64))

    @property
    def palette(self) -> npt.NDArray[np.uint8] | None:
        """Colors `N×3` of the palette that all label maps share, or None."""
        first = self.files[0].palette if self.files else None
        if first is None or not all(each.palette is not None and _is_same(first, each.palette) for each in self.files):
            return None
        return first


def scan_labels(label_root: Path, image_root: Path, *, level: str) -> LabelScan:
    """Read all label maps of a data set.

    Args:
        label_root: Folder of the label maps, PNG files with the names of the images.
        image_root: Folder of the images.
        level: How images are checked, a value of DATASETS.CHECK. Label maps are always decoded.

    Raises:
        DataError: A folder does not exist, the folders are swapped, or no image has a label map.
    """
    found = LabelScan()
    source = LabelSource(str(image_root), str(label_root), ())
    records = source.find(found.findings)
    _check_pairs(label_root, image_root, records)
    with ThreadPoolExecutor() as pool:
        for record, result in zip(records, pool.map(lambda record: _read(record, level), records), strict=True):
            if isinstance(result, LabelFile):
                found.files.append(result)
                continue
            kind, reason, colors = result
            found.findings.add(kind, f"{Path(record['sem_seg_file_name']).name}: {reason}")
            found.colors.update(colors)
    return found


def is_label_folder(annotations: Path, images: Path) -> bool:
    """Return whether a folder contains label maps and not annotations of objects.

    Args:
        annotations: The file or folder that a user gives as annotations.
        images: The folder of the images.

    Returns:
        Whether `annotations` has no JSON, XML, text or YAML files, and both are folders with images of the same names,
        of which one has PNG files. They may be swapped, which `scan_labels` reports.
    """
    if not annotations.is_dir() or not images.is_dir() or annotations.samefile(images):
        return False
    if any(path.suffix.lower() in _ANNOTATIONS for path in annotations.iterdir()):
        return False
    return _has_pairs(annotations, images) or _has_pairs(images, annotations)


def conversion(colors: Counter[Color]) -> str:
    """Return a script that converts label maps in color to class numbers.

    Args:
        colors: The colors with their numbers of pixels.
    """
    listed = ", ".join(str(color) for color, _ in colors.most_common(_MOST_COLORS))
    more = f"  # and {len(colors) - _MOST_COLORS} others" if len(colors) > _MOST_COLORS else ""
    return (
        "# Replaces the files: run it on a copy.\n"
        "import sys, numpy as np\n"
        "from PIL import Image\n"
        "# Class 0, 1, ...: put the colors in your order. Other colors become 255, no class.\n"
        f"colors = [{listed}]{more}\n"
        "for name in sys.argv[1:]:\n"
        "    pixels = np.array(Image.open(name).convert('RGB'))\n"
        "    labels = np.full(pixels.shape[:2], 255, np.uint8)\n"
        "    for number, color in enumerate(colors):\n"
        "        labels[(pixels == color).all(axis=2)] = number\n"
        "    Image.fromarray(labels).save(name)\n"
    )


def _has_pairs(labels: Path, images: Path) -> bool:
    return bool(_stems(labels, (".png",)) & _stems(images, IMAGE_SUFFIXES))


def _check_pairs(label_root: Path, image_root: Path, records: Sequence[dict[str, Any]]) -> None:
    """Raise an error that says what to do if the folders do not belong together."""
    labels, images = _stems(label_root, (".png",)), _stems(image_root, IMAGE_SUFFIXES)
    if _is_swapped(label_root, image_root):
        raise DataError(
            f"{label_root} contains images and {image_root} contains label maps. Expected the label maps first. "
            f"Swap the folders: {image_root} {label_root}"
        )
    for folder, names, what in ((label_root, labels, "PNG files"), (image_root, images, "images")):
        if not names:
            raise DataError(f"{folder} contains no {what}. {_elsewhere(folder, what)}")
    if not records and (affix := _affix(labels, images)):
        raise DataError(
            f"No image has a label map: the names of the label maps have {affix!r} in addition, such as "
            f"{min(labels)}.png. Expected the names of the images, such as {min(images)}.png. Rename the label maps."
        )
    if not records:
        raise DataError(
            f"No image has a label map: {label_root} has {min(labels)}.png, {image_root} has {min(images)}. Expected "
            "equal names, apart from the suffix. Rename the label maps."
        )


def _elsewhere(folder: Path, what: str) -> str:
    suffixes = (".png",) if what == "PNG files" else IMAGE_SUFFIXES
    below = next((path.parent for path in sorted(folder.rglob("*")) if path.suffix.lower() in suffixes), None)
    if below is not None:
        return f"Its subfolder {below} does. Give that folder; subfolders are not searched."
    if what == "PNG files" and _stems(folder, IMAGE_SUFFIXES):
        return "Label maps must be PNG files with one channel, because JPEG changes class numbers. Export them again."
    return "Give the label maps first and the images second."


def _affix(labels: set[str], images: set[str]) -> str:
    """Return what the names of label maps have in addition to the names of images, such as "_L", or ""."""
    name = min(labels)
    image = max((image for image in images if image in name), key=len, default="")
    if not image:
        return ""
    before, _, after = name.partition(image)
    fitting = sum(before + other + after in labels for other in images)
    return before + after if fitting >= min(len(labels), 2) else ""


def _is_swapped(label_root: Path, image_root: Path) -> bool:
    return _modes(image_root) == {True} and _modes(label_root) == {False}


def _modes(folder: Path) -> set[bool]:
    """Return, for some images of a folder, whether they have the mode of a label map."""
    found = set()
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)[:_PROBED]:
        try:
            found.add(read_stored(path).mode in LABEL_MODES and path.suffix.lower() == ".png")
        except DataError:
            continue
    return found


def _stems(folder: Path, suffixes: Sequence[str]) -> set[str]:
    return {path.stem for path in folder.iterdir() if path.suffix.lower() in suffixes}


def _read(record: dict[str, Any], level: str) -> LabelFile | tuple[str, str, Counter[Color]]:
    """Read one label map. Return the kind of problem, the reason and the colors if it cannot be used."""
    image, label = Path(record["file_name"]), Path(record["sem_seg_file_name"])
    try:
        stored = read_stored(label)
        size = read_header(image) if level != "full" else read_image(image, "RGB").shape[1::-1]
        if stored.mode not in LABEL_MODES:
            return _wrong_mode(stored)
        width, height = stored.values.shape[1::-1]
        check_label_size(label, (width, height), (size[0], size[1]))
    except DataError as error:
        return _BROKEN, str(error), Counter()
    pixels = np.bincount(stored.values.ravel(), minlength=_VALUES).astype(np.int64)
    return LabelFile(image, label, (width, height), pixels, stored.palette)


def _wrong_mode(stored: StoredPixels) -> tuple[str, str, Counter[Color]]:
    values, mode = stored.values, stored.mode
    if values.ndim == 3 and mode in ("RGB", "RGBA"):
        rgb = values[:, :, :3]
        if (rgb == rgb[:, :, :1]).all():
            return _IN_COLOR, f"mode {mode}, {_GRAY}", Counter()
        packed, counts = np.unique(rgb @ np.array([65536, 256, 1]), return_counts=True)
        found = Counter(
            {(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255): int(n) for c, n in zip(packed, counts, strict=True)}
        )
        return _IN_COLOR, f"mode {mode}, {len(found)} colors", found
    if mode == "1":
        return _BINARY, "save it with 8 bits: Image.fromarray(np.array(Image.open(file)).astype(np.uint8))", Counter()
    if values.ndim == 2:
        highest = int(values.max(initial=0))
        advice = (
            "save it with 8 bits: Image.fromarray(np.array(Image.open(file)).astype(np.uint8))"
            if highest < _VALUES
            else "these may be ids of instances, such as class * 1000 + number. Expected class numbers up to 255"
        )
        return _TOO_DEEP, f"mode {mode}, values up to {highest}; {advice}", Counter()
    return _IN_COLOR, f"mode {mode}, {values.shape[2]} channels; expected one channel with class numbers", Counter()


def _is_same(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> bool:
    # Files may store only as many entries as they use.
    length = min(len(first), len(second))
    return np.array_equal(first[:length], second[:length])
