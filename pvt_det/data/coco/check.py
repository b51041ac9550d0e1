"""Check the annotations and image files of a data set before training, and report all problems at once."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pvt_det.config.table import require_valid
from pvt_det.data.coco.annotations import CocoData, check_not_empty
from pvt_det.data.coco.cache import open_annotations
from pvt_det.data.coco.findings import Findings, Problem
from pvt_det.data.coco.image_files import image_faults
from pvt_det.data.coco.packed import NONE, PackedCoco
from pvt_det.data.formats import find_image_folder
from pvt_det.data.storage.places import attach, file_fault, folder_fault
from pvt_det.data.storage.references import Reference, join
from pvt_det.errors import DataError
from pvt_det.utils.paths import ABSENT
from pvt_det.utils.strict_json import garbage_kept
from pvt_det.utils.text import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examined:
    """The usable part of a data set, which is known even if the data set is refused.

    Attributes:
        packed: Images, annotations and categories that passed the check of the annotation file.
        kept: Which of the annotations are used, M bool.
        unreadable: Ids of images whose file is missing, is broken, or differs in size from its annotation.
    """

    packed: PackedCoco
    kept: npt.NDArray[np.bool_]
    unreadable: frozenset[int]

    @cached_property
    def data(self) -> CocoData:
        """The annotations that are used, also those of unreadable images."""
        with garbage_kept():
            return self.packed.unpack(self.kept)

    @property
    def usable(self) -> CocoData:
        """The annotations that are used, of readable images."""
        return self.data.without(self.unreadable)

    @property
    def annotations(self) -> int:
        """Number of annotations that are used, of readable images."""
        unreadable = np.isin(self.packed.arrays["image_ids"], list(self.unreadable))
        return int((self.kept & ~unreadable[self.packed.image_of_object]).sum())


@dataclass(frozen=True)
class CheckReport:
    """Result of checking a data set that can be used.

    Attributes:
        json_file: Path of the annotation file.
        images: Number of usable images.
        annotations: Number of usable annotations.
        class_names: Class names in the order of the contiguous class ids.
        problems: Problems by kind, all of them fixed or dropped.
        unreadable: Ids of images whose file is missing, is broken, or differs in size from its annotation. Empty unless
            `on_error` is "skip".
        lines: One line per kind of problem, for display.
    """

    json_file: str
    images: int
    annotations: int
    class_names: list[str]
    problems: dict[str, Problem] = field(default_factory=dict)
    unreadable: frozenset[int] = frozenset()
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = (
            f"{self.json_file}: {counted(self.images, 'image')}, {counted(self.annotations, 'annotation')}, "
            f"{counted(len(self.class_names), 'class', 'classes')}"
        )
        return "\n  ".join([head + ("; problems fixed or dropped:" if self.lines else ""), *self.lines])


def examine(
    json_file: str | Path,
    image_root: str | Path,
    level: str,
    findings: Findings,
    *,
    masks: bool = False,
    allow_outside: bool = False,
) -> Examined:
    """Find all problems of a COCO-format data set, and return the part that can be used.

    Args:
        json_file: Annotation file in COCO's instances format.
        image_root: Folder that `file_name` is relative to.
        level: Thoroughness of the check. "fast" reads the annotations, and the header and the last bytes of every image
            file; "full" decodes every image; "off" reads only the annotations.
        findings: Collects all problems.
        masks: Whether annotations without a usable mask are a problem.
        allow_outside: Whether image file names may be absolute or contain `..`.

    Returns:
        The usable part of the data set.

    Raises:
        ConfigError: `level` is unknown.
        DataError: The annotation file is not in COCO's format, or the image folder does not exist or contains none of
            the images.
    """
    require_valid("DATASETS.CHECK", level)
    data = open_annotations(json_file, allow_outside=allow_outside)
    findings.problems |= copy.deepcopy(data.findings.problems)
    kept = _with_masks(data, findings) if masks else np.ones(data.objects, dtype=np.bool_)
    unreadable = frozenset[int]()
    if level != "off":
        unreadable = _check_images(data, image_root, level == "full", findings)
    return Examined(data, kept, unreadable)


def check_dataset(
    json_file: str | Path,
    image_root: str | Path,
    level: str = "fast",
    *,
    on_error: str = "stop",
    masks: bool = False,
    allow_outside: bool = False,
) -> CheckReport:
    """Check a COCO-format data set, and log and return the report.

    Args:
        json_file: Annotation file in COCO's instances format.
        image_root: Folder that `file_name` is relative to.
        level: Thoroughness of the check. "fast" reads the annotations, and the header and the last bytes of every image
            file; "full" decodes every image; "off" reads only the annotations.
        on_error: How to handle problems: "stop", "skip" or "strict". See `pvt_det.data.coco.findings`.
        masks: Whether annotations without a usable mask are a problem.
        allow_outside: Whether image file names may be absolute or contain `..`.

    Returns:
        The report, whose problems are all fixed or dropped.

    Raises:
        ConfigError: `level` or `on_error` is unknown.
        DataError: The data set cannot be used. The message gives the count and the first examples of every kind of
            problem.
    """
    require_valid("DATASETS.ON_ERROR", on_error)
    findings = Findings()
    examined = examine(json_file, image_root, level, findings, masks=masks, allow_outside=allow_outside)
    findings.raise_if_refused(str(json_file), on_error)
    report = CheckReport(
        json_file=str(json_file),
        images=examined.packed.images - len(examined.unreadable),
        annotations=examined.annotations,
        class_names=examined.packed.class_names,
        problems=findings.problems,
        unreadable=examined.unreadable,
        lines=tuple(findings.lines(on_error)),
    )
    logger.log(logging.WARNING if report.lines else logging.INFO, "%s", report)
    return report


def _with_masks(data: PackedCoco, findings: Findings) -> npt.NDArray[np.bool_]:
    """Report annotations without a usable mask, and return which have one; crowd regions do not need it."""
    single, boxes = ~data.arrays["crowds"], data.arrays["boxes"]
    lacking = single & (data.arrays["mask_kinds"] == NONE)
    order = np.argsort(data.arrays["positions"])
    for name in data.entry_names("object", order[lacking[order]].tolist()):
        findings.add("annotation without a usable mask, which MODEL.MASK_ON needs", name)
    if lacking.any():
        left = single & ~lacking
        has_boxes = bool((boxes[left, 2:] > 0).all(axis=1).any())
        counts = (data.images, len(data.categories), int((~lacking).sum()), int(left.sum()))
        check_not_empty(*counts, has_boxes=has_boxes, findings=findings)
    return ~lacking


def _check_images(data: PackedCoco, root: Reference, decode: bool, findings: Findings) -> frozenset[int]:
    """Return the ids of images whose file is missing, is broken, or differs in size from its annotation."""
    if fault := folder_fault(root):
        raise DataError(f"image folder {root} {fault}. Give the folder that contains the images.")
    names = data.file_names
    sizes = list(zip(data.arrays["widths"].tolist(), data.arrays["heights"].tolist(), strict=True))
    faults = image_faults(root, names, sizes, decode=decode)
    missing = 0
    for (index, fault), name in zip(faults.items(), data.entry_names("image", faults), strict=True):
        is_missing = file_fault(join(root, names[index])) == ABSENT
        kind = "image file that is missing" if is_missing else "image file that cannot be used"
        findings.add(kind, f"{name}: {fault}")
        missing += is_missing
    where = _where(names, root, missing) if 2 * missing > len(names) else f"looked in {root}"
    if missing == len(names) > 0:
        # A list of all the missing files would hide what is wrong.
        raise DataError(f"image folder {root} contains none of the images, such as {names[0]}: {where}.")
    if len(faults) == len(names) > 0:
        findings.add("no readable image", where, fatal=True)
    elif 2 * missing > len(names):
        findings.add("image folder without most of the images", where)
    return frozenset(data.arrays["image_ids"][list(faults)].tolist())


def _where(names: list[str], root: Reference, missing: int) -> str:
    """Say how many of the image files exist in the image folder, and where others are."""
    total = len(names)
    text = f"{total - missing} of {total} files exist in {root}"
    found = None if attach(root) else find_image_folder(names, Path(root))
    if found is None or found[1] <= total - missing:
        return f"{text}, and no more in the folders around it. Give the folder of the images"
    return f"{text}, but {found[1]} of {total} in {found[0]}. Give that folder instead"
