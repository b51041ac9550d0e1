"""How far the runs of a study are, and whether a run folder has what the study asks for."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pvt_det.checkpoint import LAST_NAME
from pvt_det.engine.fingerprint import describe_changes
from pvt_det.errors import ConfigError, DataError
from pvt_det.reports.compare import mismatches
from pvt_det.results import FINAL, Run, load_run
from pvt_det.run_folder import (
    EVALUATION_NAME,
    RESULTS_NAME,
    STUDY_NAME,
    folder_kind,
)
from pvt_det.studies.jobs import EVAL, Job
from pvt_det.utils.digest import file_digest, folder_digest
from pvt_det.utils.files import write_atomically
from pvt_det.utils.logs import errors_only
from pvt_det.utils.paths import file_fault
from pvt_det.utils.text import listed

# Further entries of the record, after those of `Job.asked`.
_DATA, _WEIGHTS_DIGEST = "data: {}", "pretrained weights"
# Keys at their default value are not recorded, so that a new key does not make older runs differ.
_DEFAULT = "the default"


class State(enum.Enum):
    """How far a run is. The value is a word for the table."""

    NEW = "not started"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"


def find_state(job: Job) -> State:
    """Return how far a run is, by the files in its folder.

    Args:
        job: The run.

    Raises:
        DataError: Its results are damaged.
    """
    if job.command == EVAL:
        return State.FINISHED if (job.folder / EVALUATION_NAME).is_file() else State.NEW
    if (job.folder / RESULTS_NAME).is_file() and FINAL in _load(job).checkpoints:
        return State.FINISHED
    return State.INTERRUPTED if (job.folder / LAST_NAME).is_file() else State.NEW


def load_results(job: Job) -> Run | None:
    """Read the results of a finished run.

    Args:
        job: The run.

    Returns:
        The results, or None if the run is not finished.

    Raises:
        DataError: They are damaged.
    """
    return _load(job) if find_state(job) is State.FINISHED else None


def _load(job: Job) -> Run:
    # The state says which runs are not finished.
    with errors_only("pvt_det.results"):
        return load_run(job.folder / (EVALUATION_NAME if job.command == EVAL else RESULTS_NAME))


def require_same(jobs: Sequence[Job]) -> None:
    """Check that the folders of runs that were started have what the study asks for.

    Args:
        jobs: The runs.

    Raises:
        ConfigError: A run was started with another config or other data, its files were changed, or its folder belongs
            to something else. The message names all such runs.
    """
    faults = [f"{job.folder}: {fault}" for job in jobs if (fault := find_difference(job))]
    if faults:
        raise ConfigError(
            "These runs are not what the study asks for, and none was started:\n  "
            + "\n  ".join(faults)
            + "\nRemove these folders to run them again, restore the earlier study, or choose another folder with "
            "--output."
        )


def find_difference(job: Job) -> str:
    """Say in what a run differs from what the study asks for.

    Args:
        job: The run.

    Returns:
        The differences, or "" if there are none or the run was not started.
    """
    path = job.folder / STUDY_NAME
    if file_fault(path):
        kind = folder_kind(job.folder)
        return f"it has no {STUDY_NAME}, so the {kind} run in it was not started by a study" if kind else ""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))["asked"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{STUDY_NAME} cannot be read ({error})"
    if folder_kind(job.folder):
        now = record(job)
        changes = [
            {"key": key, "old": saved.get(key, _DEFAULT), "new": now.get(key, _DEFAULT)}
            for key in sorted(saved.keys() | now.keys())
            if saved.get(key) != now.get(key) and (key in saved.keys() & now.keys() or not _is_digest(key))
        ]
        if changes:
            return describe_changes(changes)
        try:
            finished = load_results(job)
        except DataError as error:
            return str(error)
        if finished and (faults := mismatches(finished)):
            return listed(faults, separator=" ")
    return ""


def record(job: Job) -> dict[str, Any]:
    """Return what a study asks for, with the digests of the data and of the pretrained weights that exist.

    Args:
        job: The run.
    """
    found: dict[str, Any] = dict(job.asked)
    for key, path in (job.data or {}).items():
        if digest := _digest(key, Path(path)):
            found[_DATA.format(key)] = digest
    if job.weights is not None and job.weights.is_file():
        found[_WEIGHTS_DIGEST] = file_digest(job.weights)
    # Lists and tuples are equal.
    return json.loads(json.dumps(found))


def write_record(job: Job, study: str) -> None:
    """Create the folder of a run, and write what the study asks for into it.

    Args:
        job: The run.
        study: Name of the study.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    content = {"study": study, "run": job.name, "command": job.shown_command, "asked": record(job)}
    write_atomically(job.folder / STUDY_NAME, json.dumps(content, indent=1))


def _is_digest(key: str) -> bool:
    """Return whether a value can be computed only once the data and the pretrained weights exist."""
    return key == _WEIGHTS_DIGEST or key.startswith(_DATA.format(""))


def _digest(key: str, path: Path) -> str:
    """Return the digest of annotations. The images count by what the annotations say about them."""
    if key.endswith("_json") and path.is_file():
        return file_digest(path)
    return folder_digest(path, ".png") if key.endswith("_labels") and path.is_dir() else ""
