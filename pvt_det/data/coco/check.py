"""Check the annotations and image files of a data set before training, and report all problems at once."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from pvt_det.config.table import require_valid
from pvt_det.data.coco.annotations import CocoData, entry_name, require_masks
from pvt_det.data.coco.cache import load_annotations
from pvt_det.data.coco.findings import Findings, Problem
from pvt_det.data.coco.stored_images import stored_faults
from pvt_det.data.formats import find_image_folder
from pvt_det.data.storage.places import attach, file_fault, folder_fault
from pvt_det.data.storage.references import Reference, join
from pvt_det.errors import DataError
from pvt_det.utils.paths import ABSENT
from pvt_det.utils.text import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examined:
    """The usable part of a data set, which is known even if the data set is refused.

    Attributes:
        data: Images, annotations and categories that passed the check of the annotation file.
        unreadable: Ids of images whose file is missing, is broken, or differs in size from its annotation.
    """

    data: CocoData
    unreadable: frozenset[int]

    @property
    def usable(self) -> CocoData:
        """Return the valid annotations of readable images."""
        return self.data.without(self.unreadable)


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
    data, found = load_annotations(json_file, allow_outside=allow_outside)
    findings.problems |= found.problems
    if masks:
        data = require_masks(data, findings)
    unreadable = frozenset[int]()
    if level != "off":
        unreadable = _check_images(data, image_root, level == "full", findings)
    return Examined(data, unreadable)


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
    usable = examined.usable
    report = CheckReport(
        json_file=str(json_file),
        images=len(usable.images),
        annotations=len(usable.annotations),
        class_names=usable.class_names,
        problems=findings.problems,
        unreadable=examined.unreadable,
        lines=tuple(findings.lines(on_error)),
    )
    logger.log(logging.WARNING if report.lines else logging.INFO, "%s", report)
    return report


def _check_images(data: CocoData, root: Reference, decode: bool, findings: Findings) -> frozenset[int]:
    """Return the ids of images whose file is missing, is broken, or differs in size from its annotation."""
    if fault := folder_fault(root):
        raise DataError(f"image folder {root} {fault}. Give the folder that contains the images.")
    names = [image["file_name"] for image in data.images]
    sizes = [(image["width"], image["height"]) for image in data.images]
    faults = stored_faults(root, names, sizes, decode=decode)
    missing = 0
    for index, fault in faults.items():
        is_missing = file_fault(join(root, names[index])) == ABSENT
        kind = "image file that is missing" if is_missing else "image file that cannot be used"
        findings.add(kind, f"{entry_name('image', data.images[index], index)}: {fault}")
        missing += is_missing
    where = _where(data, root, missing) if 2 * missing > len(data.images) else f"looked in {root}"
    if missing == len(data.images) > 0:
        # A list of all the missing files would hide what is wrong.
        first = data.images[0]["file_name"]
        raise DataError(f"image folder {root} contains none of the images, such as {first}: {where}.")
    if len(faults) == len(data.images) > 0:
        findings.add("no readable image", where, fatal=True)
    elif 2 * missing > len(data.images):
        findings.add("image folder without most of the images", where)
    return frozenset(data.images[index]["id"] for index in faults)


def _where(data: CocoData, root: Reference, missing: int) -> str:
    """Say how many of the image files exist in the image folder, and where others are."""
    total = len(data.images)
    text = f"{total - missing} of {total} files exist in {root}"
    found = None if attach(root) else find_image_folder([image["file_name"] for image in data.images], Path(root))
    if found is None or found[1] <= total - missing:
        return f"{text}, and no more in the folders around it. Give the folder of the images"
    return f"{text}, but {found[1]} of {total} in {found[0]}. Give that folder instead"
