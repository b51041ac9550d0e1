"""Annotation files of this process, parsed and checked once each.

A run needs the same file several times: the check before the first step, the class names, the records of the loader,
and the ground truth of every evaluation.
"""

from __future__ import annotations

import copy
from pathlib import Path

from pvt_det.data.coco.annotations import CocoData, read_annotations
from pvt_det.data.coco.findings import Findings

_MOST_FILES = 4
_Key = tuple[str, bool, int, int]
_loaded: dict[_Key, tuple[CocoData, Findings]] = {}


def load_annotations(json_file: str | Path, *, allow_outside: bool = False) -> tuple[CocoData, Findings]:
    """Read and check an annotation file, or return what an earlier call made of the unchanged file.

    Args:
        json_file: Annotations in COCO's instances format.
        allow_outside: Whether file names may be absolute or climb with `..`.

    Returns:
        The sound annotations, to be read only, and a copy of the problems.

    Raises:
        DataError: The file is missing, or not in COCO's format.
    """
    key = _key(json_file, allow_outside)
    if key not in _loaded or key[2] < 0:
        findings = Findings()
        data = read_annotations(json_file, findings, allow_outside=allow_outside)
        while len(_loaded) >= _MOST_FILES:
            del _loaded[next(iter(_loaded))]
        _loaded[key] = (data, findings)
    data, findings = _loaded[key]
    return data, copy.deepcopy(findings)


def forget_annotations(json_file: str | Path) -> None:
    """Free the memory of a file that is not needed again, such as training data once a loader has packed it."""
    for key in [key for key in _loaded if key[0] == str(json_file)]:
        del _loaded[key]


def _key(json_file: str | Path, allow_outside: bool) -> _Key:
    try:
        status = Path(json_file).stat()
    except (OSError, ValueError):
        # Reading it says what is wrong.
        return str(json_file), allow_outside, -1, 0
    return str(json_file), allow_outside, status.st_size, status.st_mtime_ns
