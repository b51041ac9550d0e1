"""Inspect images and label maps: check them as training would, describe them, and collect advice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pvt_det.data.coco.findings import Findings
from pvt_det.inspection.files import FileFacts, read_facts, same_files, shared_images
from pvt_det.inspection.inspect import Advice
from pvt_det.inspection.semantic.scan import LabelFile, LabelScan, scan_labels
from pvt_det.inspection.semantic.values import LabelScheme, check_scheme, find_scheme, value_list

_UNKNOWN = "label map with a value that is not a class"
# Classes with fewer images or a smaller share of the labeled pixels are rare.
_FEW_IMAGES, _SMALL_SHARE = 10, 0.001


class ClassPixels(NamedTuple):
    """How often a class occurs.

    Attributes:
        value: Value in the label maps.
        name: Class name.
        share: Share of the labeled pixels, from 0 to 1.
        images: Number of images with such a pixel.
    """

    value: int
    name: str
    share: float
    images: int


@dataclass(frozen=True)
class LabelInspection:
    """Result of inspecting a data set with label maps.

    Attributes:
        label_root: Folder of the label maps.
        image_root: Folder of the images.
        scan: The label maps and the problems.
        scheme: Meaning of the values.
        advice: What else to review.
        facts: Facts about the image files, by the index in `scan.files`.
    """

    label_root: Path
    image_root: Path
    scan: LabelScan
    scheme: LabelScheme
    advice: list[Advice]
    facts: dict[int, FileFacts]

    @property
    def files(self) -> list[LabelFile]:
        """The usable label maps."""
        return self.scan.files

    @property
    def findings(self) -> Findings:
        """Problems and how training handles them."""
        return self.scan.findings

    @property
    def class_names(self) -> list[str]:
        """The class names, by class index."""
        return [each.name for each in self.classes]

    @cached_property
    def classes(self) -> list[ClassPixels]:
        """All classes, in the order of their values."""
        pixels, images = self.scan.pixels, self.scan.images
        labeled = max(1, int(sum(pixels[value] for value in self.scheme.classes)))
        return [
            ClassPixels(value, self.scheme.class_names[value], float(pixels[value]) / labeled, int(images[value]))
            for value in self.scheme.classes
        ]

    @property
    def void_share(self) -> float:
        """Share of all pixels that have no class, from 0 to 1."""
        pixels = self.scan.pixels
        return float(pixels[self.scheme.ignore_value]) / max(1, int(pixels.sum()))

    @property
    def sizes(self) -> list[tuple[tuple[int, int], int]]:
        """Pairs of image size (width, height) and number of images, the most frequent size first."""
        return Counter(each.size for each in self.files).most_common()

    def is_refused(self, on_error: str) -> bool:
        """Whether training refuses the data.

        Args:
            on_error: Value of DATASETS.ON_ERROR. "strict" also refuses data with any advice.
        """
        return self.scan.findings.refused(on_error) or (on_error == "strict" and bool(self.advice))


def inspect_labels(
    label_root: Path,
    image_root: Path,
    *,
    names: Mapping[int, str] | None = None,
    ignore_value: int | None = None,
    level: str = "fast",
    perceptual_hashes: bool = False,
    train: LabelInspection | None = None,
) -> LabelInspection:
    """Read label maps and images, check them as training would, and describe them.

    Args:
        label_root: Folder of the label maps, PNG files with the names of the images.
        image_root: Folder of the images.
        names: Class names by value, or None if they are not known.
        ignore_value: Value of pixels without a class, or None to find it.
        level: How the images are checked, a value of DATASETS.CHECK. Label maps are always decoded.
        perceptual_hashes: Whether to compute perceptual hashes, which `find_label_leakage` needs.
        train: Inspection of the training data if this is the validation data. Its scheme is used.

    Raises:
        DataError: The folders cannot be read, or no image has a label map.
    """
    scan = scan_labels(label_root, image_root, level=level)
    scheme = train.scheme if train else find_scheme(scan.pixels, names, ignore_value, scan.palette)
    advice = [] if train else check_scheme(scheme, scan.pixels, scan.findings, has_names=names is not None)
    _drop_unknown(scan, scheme)
    if not scan.files:
        scan.findings.add("no usable label map", str(label_root), fatal=True)
    facts = read_facts(
        {index: each.image for index, each in enumerate(scan.files)}, perceptual_hashes=perceptual_hashes
    )
    found = LabelInspection(label_root, image_root, scan, scheme, advice, facts)
    if not any(problem.fatal for problem in scan.findings.problems.values()):
        advice += _balance(found)
    advice += _files(found)
    return found


def _drop_unknown(scan: LabelScan, scheme: LabelScheme) -> None:
    """Move label maps with values that are neither classes nor void to the problems."""
    number = len(scheme.class_names)
    kept = []
    for each in scan.files:
        values = np.flatnonzero(each.pixels)
        unknown = values[(values >= number) & (values != scheme.ignore_value)].tolist()
        if unknown:
            expected = f"expected 0 to {number - 1}, or {scheme.ignore_value} for void"
            scan.findings.add(_UNKNOWN, f"{each.label.name}: {value_list(unknown)}, {expected}")
        else:
            kept.append(each)
    scan.files[:] = kept


def find_label_leakage(train: LabelInspection, val: LabelInspection) -> list[Advice]:
    """Find validation images that are also training images, and classes that only one of the data sets has.

    Args:
        train: Inspection of the training data.
        val: Inspection of the validation data.
    """
    pairs = shared_images(train.facts, val.facts)
    found = []
    for is_same, text in (
        (True, "images that are also in the training data"),
        (False, "images that look like a training image"),
    ):
        names = [f"{val.files[v].image.name} is {train.files[t].image.name}" for t, v, same in pairs if same == is_same]
        if names:
            found.append(Advice(text, len(names), names=names))
    for text, first, second in (
        ("training classes without pixels in the validation data", train, val),
        ("validation classes without pixels in the training data", val, train),
    ):
        seen = {each.value for each in second.classes if each.images}
        missing = [each.name for each in first.classes if each.images and each.value not in seen]
        if missing:
            found.append(Advice(text, len(missing), names=missing))
    return found


def _balance(found: LabelInspection) -> list[Advice]:
    classes = [each for each in found.classes if each.images]
    groups = (
        ("classes without pixels", [each.name for each in found.classes if not each.images]),
        (f"classes in fewer than {_FEW_IMAGES} images", [c.name for c in classes if c.images < _FEW_IMAGES]),
        (
            f"classes with less than {_SMALL_SHARE:.1%} of the pixels",
            [c.name for c in classes if c.share < _SMALL_SHARE],
        ),
        ("images whose pixels are all void", _void_images(found)),
    )
    return [Advice(text, len(names), names=names) for text, names in groups if names]


def _void_images(found: LabelInspection) -> list[str]:
    void = found.scheme.ignore_value
    return [each.image.name for each in found.files if each.pixels[void] == each.pixels.sum()]


def _files(found: LabelInspection) -> list[Advice]:
    files, facts = found.files, found.facts
    palettes = {None if each.palette is None else each.palette.tobytes() for each in files}
    rotated = [files[index].image.name for index, fact in facts.items() if fact.is_rotated]
    identical = [files[index].image.name for group in same_files(facts) for index in group]
    groups: tuple[tuple[str, Sequence[str]], ...] = (
        ("images rotated by their EXIF tag; label maps must match the rotated image, which most viewers show", rotated),
        ("images with identical files", identical),
    )
    advice = [Advice(text, len(names), names=list(names)) for text, names in groups if names]
    if len(palettes) > 1 and found.scan.palette is None:
        text = "palettes in the label maps; only the indices count, so check that an index is the same class everywhere"
        advice.append(Advice(text, len(palettes)))
    return advice
