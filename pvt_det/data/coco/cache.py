"""Cache of parsed and checked annotation files.

A run reads the same file several times: for the check before training, the class names, the records of the data loader,
and the ground truth of every evaluation.
"""

from __future__ import annotations

import copy
from pathlib import Path

from pvt_det.data.coco.annotations import CocoData, read_annotations
from pvt_det.data.coco.findings import Findings
from pvt_det.data.storage.places import local_file

_MAX_FILES = 4
_Key = tuple[str, bool, int, int]
_loaded: dict[_Key, tuple[CocoData, Findings]] = {}


def load_annotations(json_file: str | Path, *, allow_outside: bool = False) -> tuple[CocoData, Findings]:
    """Read and check an annotation file, or return the cached result if the file has not changed.

    Args:
        json_file: Annotation file in COCO's instances format.
        allow_outside: Whether image file names may be absolute or contain `..`.

    Returns:
        The valid annotations, which callers must not modify, and a copy of the problems.

    Raises:
        DataError: The file is missing or not in COCO's format.
    """
    json_file = local_file(json_file)
    key = _key(json_file, allow_outside)
    if key not in _loaded or key[2] < 0:
        findings = Findings()
        data = read_annotations(json_file, findings, allow_outside=allow_outside)
        while len(_loaded) >= _MAX_FILES:
            del _loaded[next(iter(_loaded))]
        _loaded[key] = (data, findings)
    data, findings = _loaded[key]
    return data, copy.deepcopy(findings)


def forget_annotations(json_file: str | Path) -> None:
    """Remove a file from the cache to free memory, for example once a data loader has packed its records.

    Args:
        json_file: Annotation file, given as to `load_annotations`.
    """
    path = str(local_file(json_file))
    for key in [key for key in _loaded if key[0] == path]:
        del _loaded[key]


def _key(json_file: str | Path, allow_outside: bool) -> _Key:
    """Return path, `allow_outside`, size and modification time; the size is -1 if the file is not accessible."""
    try:
        status = Path(json_file).stat()
    except (OSError, ValueError):
        # Reading the file raises an error that says what is wrong.
        return str(json_file), allow_outside, -1, 0
    return str(json_file), allow_outside, status.st_size, status.st_mtime_ns
