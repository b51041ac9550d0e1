"""The check of a data set before the first step: annotations and image files, all problems in one report."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from pvt_det.config.choices import require_choice
from pvt_det.data.coco.annotations import CocoData, require_masks
from pvt_det.data.coco.cache import load_annotations
from pvt_det.data.coco.findings import Findings, Problem
from pvt_det.data.images import check_size, read_header, read_image
from pvt_det.errors import DataError
from pvt_det.utils.paths import ABSENT, file_fault, folder_fault

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examined:
    """What of a data set can be used, whether or not it is then refused.

    Attributes:
        data: its sound annotations.
        unreadable: ids of images whose file is missing, broken or of another size.
    """

    data: CocoData
    unreadable: frozenset[int]

    @property
    def usable(self) -> CocoData:
        """The sound annotations of readable images."""
        return self.data.without(self.unreadable)


@dataclass(frozen=True)
class CheckReport:
    """What a check found in a data set that can be used.

    Attributes:
        json_file: the annotation file.
        images: number of usable images.
        annotations: number of usable annotations.
        class_names: in the order of the contiguous class numbers.
        problems: by kind, all fixed or left out.
        unreadable: ids of images whose file is missing or broken ("skip" only).
        lines: the problems as text, one a line.
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
            f"{self.json_file}: {self.images} images, {self.annotations} annotations, {len(self.class_names)} classes"
        )
        return "\n  ".join([head + ("; problems fixed or left out:" if self.lines else ""), *self.lines])


def examine(
    json_file: str | Path,
    image_root: str | Path,
    level: str,
    findings: Findings,
    *,
    masks: bool = False,
    allow_outside: bool = False,
) -> Examined:
    """Find everything that is wrong with a COCO-format data set; what is left can be used.

    Args:
        json_file: annotations in COCO's instances format.
        image_root: folder that `file_name` is relative to.
        level: "fast" reads the annotations, every image's header and the last bytes of its file; "full" decodes every
            image; "off" reads the annotations only.
        findings: takes the problems.
        masks: masks are needed.
        allow_outside: file names may lead out of `image_root`.

    Raises:
        ConfigError: unknown `level`.
        DataError: the annotations are no COCO file, or the image folder does not exist.
    """
    require_choice("DATASETS.CHECK", level)
    data, found = load_annotations(json_file, allow_outside=allow_outside)
    findings.problems |= found.problems
    if masks:
        data = require_masks(data, findings)
    unreadable = frozenset[int]()
    if level != "off":
        unreadable = _check_images(data, Path(image_root), level == "full", findings)
        if len(unreadable) == len(data.images) > 0:
            findings.add("no image that can be read", f"looked in {image_root}", fatal=True)
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
    """Check a COCO-format data set; the report is also logged.

    Args:
        json_file: as in `examine`, and so all others but one.
        image_root: folder of the images.
        level: "fast", "full" or "off".
        on_error: "stop", "skip" or "strict", as `pvt_det.data.coco.findings` says.
        masks: masks are needed.
        allow_outside: file names may lead out of `image_root`.

    Raises:
        ConfigError: unknown `level` or `on_error`.
        DataError: the data set cannot be used; the message counts every kind of problem and names its first offenders.
    """
    require_choice("DATASETS.ON_ERROR", on_error)
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


def _check_images(data: CocoData, root: Path, decode: bool, findings: Findings) -> frozenset[int]:
    """Ids of images that are missing, broken, or of another size than annotated."""
    if fault := folder_fault(root):
        raise DataError(f"image folder {root} {fault}: name the folder that the images lie in")
    unreadable = set()
    for image in data.images:
        path = root / image["file_name"]
        try:
            if decode:
                pixels = read_image(path, "RGB")
                size = (pixels.shape[1], pixels.shape[0])
            else:
                size = read_header(path)
            check_size(path, size, (image["width"], image["height"]))
        except DataError as error:
            kind = "image file that is missing" if file_fault(path) == ABSENT else "image file that cannot be used"
            findings.add(kind, f"image {image['id']}: {error}")
            unreadable.add(image["id"])
    return frozenset(unreadable)
