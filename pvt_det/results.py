"""Results of a run or an evaluation: written with the digests of everything that they depend on, read and verified.

`results.json` belongs to a training run, and `evaluation.json` to an evaluation of some weights. Both record which
metrics belong to which checkpoint, by the checkpoint's SHA-256.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pvt_det.data.coco.cache import load_annotations
from pvt_det.data.storage.references import is_url
from pvt_det.errors import DataError
from pvt_det.evaluation.ground_truth import COCO_MAX_DETECTIONS, GroundTruth, read_ground_truth
from pvt_det.evaluation.label_results import LabelResults, read_label_results
from pvt_det.run_folder import (
    BEST_NAME,
    CLASSIFIER_BEST_NAME,
    CONFIG_NAME,
    EVALUATION,
    EVALUATION_FOLDER,
    EVALUATION_NAME,
    FINAL_NAME,
    OPTIONS_NAME,
    RESULTS_NAME,
    TRAINING,
    folder_kind,
    results_path,
    run_root,
)
from pvt_det.utils.digest import file_digest, value_digest
from pvt_det.utils.environment import code_version
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import similar_path
from pvt_det.utils.plain_yaml import read_plain_yaml

# The main metric of each task, by which runs are compared.
TASKS = {"bbox": "AP", "segm": "AP", "sem_seg": "mIoU", "panoptic_seg": "PQ", "classification": "top1"}
# Names of checkpoints in the results: of a finished run, of an unfinished run, and of an evaluation.
BEST, FINAL, LAST, EVALUATED = "best", "final", "last", "evaluated"
_NAMES = {TRAINING: RESULTS_NAME, EVALUATION: EVALUATION_NAME}
_COMMON: dict[str, type] = {"config_file": str, "model": str, "recipe": str, "dataset": str, "parameters": int}
_FIELDS = _COMMON | {"checkpoints": dict, "shown": str, "data": list}
# Fields of `results.json` in earlier versions, which recorded no digests.
_OLD_FIELDS = _COMMON | {"metrics": dict, "results_file": str, "annotations": str}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint and the metrics of its weights.

    Attributes:
        file: File name in the run folder, or the path or name of evaluated weights from elsewhere.
        sha256: Digest of the file, or "" if it was not recorded.
        iteration: Number of optimizer steps that it was trained for (classifiers: epochs), or None if unknown.
        metrics: Metrics in percent by task and name. None for metrics without ground truth. Empty if it was not
            evaluated.
        selected_by: Name of the metric, `task/name`, for which it was kept as the best. "" for other checkpoints.
    """

    file: str
    sha256: str
    iteration: int | None = None
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    selected_by: str = ""

    def __str__(self) -> str:
        return self.file if self.iteration is None else f"{self.file} (iteration {self.iteration})"


@dataclass(frozen=True)
class RecordedFile:
    """A file in a run folder with the digest that it had when the results were written.

    Attributes:
        file: Path relative to the run folder.
        sha256: Digest of the file, or "" if it was not recorded.
    """

    file: str
    sha256: str


@dataclass(frozen=True)
class DataRecord:
    """A data set that a run was trained or evaluated on.

    Attributes:
        role: "train" or "test".
        what: "objects" (an annotation file), "labels" (label maps), "panoptic" (an annotation file) or "images".
        dataset: Name of the data set.
        path: Annotation file, or folder of label maps or images.
        sha256: Digest of the annotations, or "" if it was not recorded.
        images: Number of images, or None if it was not recorded.
        objects: Number of annotated objects, or None if it was not recorded.
        left_out: What DATASETS.ON_ERROR skip left out: the number of annotations or images by kind of problem.
    """

    role: str
    what: str
    dataset: str
    path: str
    sha256: str
    images: int | None = None
    objects: int | None = None
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """The results of a training run or an evaluation.

    Attributes:
        folder: The folder that contains the results file.
        kind: "training" or "evaluation". "" for a file of an earlier version, which did not record it.
        config_file: The config that the run was started with. For a classifier, the name of the model. Relative to the
            run folder if it is in it.
        model: Name of the head and the backbone.
        recipe: Optimizer, batch size, schedule and image sizes. Runs with equal recipes can be compared.
        dataset: Name of the evaluated data set.
        parameters: Number of parameters.
        checkpoints: The recorded checkpoints by name, see `BEST`, `FINAL`, `LAST` and `EVALUATED`.
        shown: Name of the checkpoint that reports and comparisons show. The detections in the folder are its own.
        data: The data sets of the run.
        detections: Detections on the evaluated data set, in COCO's results format. None if there are none.
        ground_truth: The checked annotations that the detections were evaluated with. None if there are none, or if
            they were not recorded.
        segmentation: Confusion matrix of the label maps, and predictions for some images. None if there are none.
        config_sha256: Digest of the effective config, or "" if it was not recorded.
        recipe_sha256: Digest of the recipe, which selects the published result. "" if it was not recorded.
        version: Version of pvt_det that wrote the results, or "" if it was not recorded.
        gmacs: Billions of multiply-accumulates for one image, with the image size. None if not recorded.
        seed: The run's seed, or None if not recorded.
        environment: Versions and hardware by name. Empty if not recorded.
        training_seconds: Time of the training with its evaluations, in seconds, or None if not recorded.
        peak_memory_gib: Peak memory of a process in GiB, on a GPU that of PyTorch. None if not recorded.
    """

    folder: Path
    kind: str
    config_file: str
    model: str
    recipe: str
    dataset: str
    parameters: int
    checkpoints: dict[str, Checkpoint]
    shown: str
    data: tuple[DataRecord, ...] = ()
    detections: RecordedFile | None = None
    ground_truth: RecordedFile | None = None
    segmentation: RecordedFile | None = None
    config_sha256: str = ""
    recipe_sha256: str = ""
    version: str = ""
    gmacs: str | None = None
    seed: int | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    training_seconds: float | None = None
    peak_memory_gib: float | None = None

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint that reports and comparisons show. None if the run was not evaluated."""
        return self.checkpoints.get(self.shown)

    @property
    def metrics(self) -> dict[str, dict[str, float | None]]:
        """Metrics in percent of the shown checkpoint, by task and name."""
        return self.checkpoint.metrics if self.checkpoint else {}

    def value(self, task: str) -> float | None:
        """Return the main metric of a task.

        Args:
            task: A key of `TASKS`, such as "bbox".

        Returns:
            The metric in percent, or None if it was not measured.
        """
        return self.metrics.get(task, {}).get(TASKS[task])

    @property
    def max_detections(self) -> int:
        """Largest number of detections per image that counted, read from the recall's name: 300 from "AR300"."""
        limits = [int(name[2:]) for name in self.metrics.get("bbox", {}) if re.fullmatch(r"AR\d+", name)]
        return max([COCO_MAX_DETECTIONS, *limits])

    @property
    def data_digest(self) -> str:
        """Digest of what the run was evaluated on. "" if it was not recorded."""
        if self.ground_truth:
            return self.ground_truth.sha256
        digests = sorted(record.sha256 for record in self.data if record.role == "test")
        return value_digest(digests) if digests and all(digests) else ""

    @property
    def mismatches(self) -> list[str]:
        """A sentence for each file in the folder that differs from what the results record. A file may be missing."""
        found = [
            f"{file} is not the file that {self.results_file.name} describes: its SHA-256 differs. The {what} changed "
            "after the evaluation. Evaluate again with pvt-det eval."
            for what, (file, is_intact) in self._files.items()
            if is_intact is False
        ]
        if not self.ground_truth and self.annotations and not self.annotations.is_file():
            found.append(
                f"the annotations {self.annotations} do not exist, and {self.results_file.name} is of an earlier "
                f"version, which kept no copy. If they have moved, evaluate again: {evaluation_command(self.folder)}."
            )
        return found

    @property
    def has_detections(self) -> bool:
        """Whether the detections and their ground truth can be read and are those of the recorded metrics."""
        if self.ground_truth:
            has_truth = self._is_intact("ground truth")
        else:
            has_truth = self.annotations is not None and self.annotations.is_file()
        return self._is_intact("detections") and has_truth

    def read_segmentation(self) -> LabelResults | None:
        """Read the confusion matrix and the predictions for label maps.

        Returns:
            The results, or None if there are none or they are not those of the recorded metrics.

        Raises:
            DataError: If the file cannot be read.
        """
        if self.segmentation is None or not self._is_intact("segmentation"):
            return None
        return read_label_results(self.folder / self.segmentation.file)

    def _is_intact(self, what: str) -> bool:
        return self._files.get(what, ("", None))[1] is True

    @cached_property
    def _files(self) -> dict[str, tuple[str, bool | None]]:
        """Each recorded file with whether it has the recorded digest, or None if it is missing. Each is read once."""
        recorded = {
            "detections": self.detections,
            "ground truth": self.ground_truth,
            "segmentation": self.segmentation,
        }
        if self.kind == TRAINING and self.checkpoint:
            recorded["weights"] = RecordedFile(self.checkpoint.file, self.checkpoint.sha256)
        return {what: (each.file, self._compare(each)) for what, each in recorded.items() if each}

    def _compare(self, recorded: RecordedFile) -> bool | None:
        path = self.folder / recorded.file
        if not path.is_file():
            return None
        return not recorded.sha256 or file_digest(path) == recorded.sha256

    @property
    def annotations(self) -> Path | None:
        """The annotation file that the run was evaluated with. None for label maps and images. It may have changed."""
        found = (each for each in self.data if (each.role, each.what) == ("test", "objects"))
        return next((Path(each.path) for each in found), None)

    @property
    def detections_file(self) -> Path | None:
        """Path of the detections, or None if there are none."""
        return self.folder / self.detections.file if self.detections else None

    @property
    def results_file(self) -> Path:
        """Path of the file that these results were read from."""
        return self.folder / _NAMES.get(self.kind, RESULTS_NAME)

    def read_ground_truth(self) -> GroundTruth:
        """Read the ground truth that the detections were evaluated with.

        Raises:
            DataError: If there is none, or it cannot be read.
        """
        if self.ground_truth:
            return read_ground_truth(self.folder / self.ground_truth.file)
        if self.annotations is None:
            raise DataError(f"{self.results_file} names no annotation file. Evaluate again with pvt-det eval.")
        # Results of an earlier version. The annotations are checked as for an evaluation, but may have changed since.
        data, _ = load_annotations(self.annotations, allow_outside=True)
        return GroundTruth(data.images, data.annotations, data.categories)


def save_results(
    folder: Path,
    kind: str,
    checkpoints: Mapping[str, Checkpoint],
    data: list[DataRecord],
    fields: Mapping[str, Any],
    files: Mapping[str, Path] | None = None,
) -> Path:
    """Write `results.json` or `evaluation.json`, which `load_run` reads.

    Args:
        folder: The folder of the run or the evaluation.
        kind: "training" or "evaluation".
        checkpoints: The checkpoints with their metrics, by name. NaN and infinity become null: JSON has neither.
        data: The data sets of the run.
        fields: The other fields of `Run` except `folder` and the recorded files, plus any others.
        files: Paths of the files to record in `folder`, by the field's name. Files that do not exist are left out.

    Returns:
        Path of the file.
    """
    recorded = {
        name: asdict(RecordedFile(os.path.relpath(path, folder), file_digest(path)))
        for name, path in (files or {}).items()
        if path.is_file()
    }
    content = {
        "kind": kind,
        "code": code_version(),
        **fields,
        "checkpoints": {name: asdict(checkpoint) for name, checkpoint in checkpoints.items()},
        "data": [asdict(record) for record in data],
        **recorded,
    }
    path = folder / _NAMES[kind]
    write_atomically(path, json.dumps(_without_nan(content), indent=1, allow_nan=False))
    return path


def load_run(path: str | Path) -> Run:
    """Read the results of a training run or an evaluation.

    An unfinished run has the results of its last evaluation, if there was one. A run that has only been evaluated by
    `pvt-det eval` has the newest of these results. Both are logged.

    Args:
        path: The folder, its `results.json` or `evaluation.json`, or an exported file.

    Returns:
        The run.

    Raises:
        DataError: If the file is missing or broken, or lacks a field. If the run was not evaluated, the message says
            how to do that.
    """
    path = results_path(path)
    file = _results_file(path) if path.is_dir() else path
    raw = _read(file)
    if "kind" not in raw:
        _require(file, raw, _OLD_FIELDS)
        raw = _from_old(raw)
        logger.warning(
            "%s was written by an earlier version and does not record its weights, data and config. They cannot be "
            "verified. Evaluate again with pvt-det eval.",
            file,
        )
    elif raw["kind"] not in _NAMES:
        raise DataError(f"{file} has the kind {raw['kind']!r}. Expected {' or '.join(_NAMES)}.")
    _require(file, raw, _FIELDS)
    try:
        run = Run(
            folder=file.parent,
            kind=raw.get("kind", ""),
            config_file=raw["config_file"],
            model=raw["model"],
            recipe=raw["recipe"],
            dataset=raw["dataset"],
            parameters=raw["parameters"],
            shown=raw["shown"],
            checkpoints={name: Checkpoint(**value) for name, value in raw["checkpoints"].items()},
            data=tuple(DataRecord(**record) for record in raw["data"]),
            detections=_recorded_file(raw.get("detections")),
            ground_truth=_recorded_file(raw.get("ground_truth")),
            segmentation=_recorded_file(raw.get("segmentation")),
            config_sha256=raw.get("config_sha256", ""),
            recipe_sha256=raw.get("recipe_sha256", ""),
            version=raw.get("code", {}).get("version", ""),
            gmacs=raw.get("gmacs"),
            seed=raw.get("seed"),
            environment=raw.get("environment", {}),
            training_seconds=raw.get("training_seconds"),
            peak_memory_gib=raw.get("peak_memory_gib"),
        )
    except (TypeError, AttributeError) as error:
        raise DataError(f"{file} is not valid: {error}. Expected the results of this version of pvt_det.") from error
    if run.shown == LAST:
        logger.warning("%s is not finished. These are the results of %s.", run.folder, run.checkpoint)
    return run


def evaluation_command(folder: Path) -> str:
    """Return the command that evaluates a run.

    Args:
        folder: The folder of the run, or of an evaluation in it.

    Returns:
        The command. It has options for the data if the run's own validation data does not exist.
    """
    root = run_root(folder)
    command = f"pvt-det eval --config-file {shlex.quote(str(root))}"
    try:
        data = read_plain_yaml(root / CONFIG_NAME, DataError)["DATASETS"]
        truth = "LABELS" if data["VAL_LABELS"] or data["TRAIN_LABELS"] else "JSON"
        given, is_registered = [data[f"VAL_{truth}"], data["VAL_IMAGES"]], bool(data["TEST"])
    except (DataError, KeyError, TypeError):
        return command
    if all(path and (is_url(path) or Path(path).exists()) for path in given) or (is_registered and not any(given)):
        return command
    return f"{command} --val-{truth.lower()} {'FILE' if truth == 'JSON' else 'DIR'} --val-images DIR"


def find_metrics(run: Run, sha256: str) -> tuple[Run, Checkpoint] | None:
    """Find the evaluation of some weights: in the training run, or else in an evaluation below its folder.

    Args:
        run: The training run.
        sha256: Digest of the weights.

    Returns:
        The results that contain the metrics, and the checkpoint. None if the weights were not evaluated.
    """
    for results in (run, *_evaluations(run.folder)):
        for checkpoint in results.checkpoints.values():
            if checkpoint.sha256 == sha256 != "" and checkpoint.metrics:
                return results, checkpoint
    return None


def _recorded_file(raw: dict[str, str] | None) -> RecordedFile | None:
    return RecordedFile(**raw) if raw else None


def _evaluations(folder: Path) -> list[Run]:
    return [load_run(file) for file in sorted((folder / EVALUATION_FOLDER).glob(f"*/{EVALUATION_NAME}"))]


def _results_file(folder: Path) -> Path:
    """Return the results file of a folder: its own, or else that of the newest evaluation of the run."""
    if own := next((folder / name for name in _NAMES.values() if (folder / name).is_file()), None):
        return own
    if evaluations := list((folder / EVALUATION_FOLDER).glob(f"*/{EVALUATION_NAME}")):
        newest = max(evaluations, key=lambda file: file.stat().st_mtime)
        logger.warning("%s has no results of its own. Using those in %s.", folder, newest.parent)
        return newest
    if (folder / OPTIONS_NAME).is_file():
        raise DataError(f"{folder} is a run of train-cls that is not finished, and has no results yet. Use --resume.")
    if folder_kind(folder) == TRAINING:
        raise DataError(f"{folder} is a run that was not evaluated yet. Evaluate it with {evaluation_command(folder)}")
    return folder / RESULTS_NAME


def _read(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror}. Expected the output folder of an evaluated run."
            f"{similar_path(file)}"
        ) from error
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON: {error}.") from error
    if isinstance(raw, list):
        raise DataError(f"{file} contains detections of pvt-det predict. Expected the results of a run.")
    return raw if isinstance(raw, dict) else {}


def _require(file: Path, raw: dict[str, Any], fields: Mapping[str, type]) -> None:
    for name, kind in fields.items():
        if not isinstance(raw.get(name), kind):
            raise DataError(f"{file} has no {name!r} of type {kind.__name__}. Expected the {RESULTS_NAME} of a run.")


def _from_old(raw: dict[str, Any]) -> dict[str, Any]:
    """Convert the results of an earlier version, which recorded the last metrics and the best value only."""
    best, iterations, metrics = raw.get("best") or {}, raw.get("iterations"), raw["metrics"]
    is_classifier = "classification" in metrics
    checkpoints = {} if is_classifier else {FINAL: Checkpoint(FINAL_NAME, "", iterations, metrics)}
    if is_classifier:
        checkpoints[BEST] = Checkpoint(CLASSIFIER_BEST_NAME, "", None, metrics)
    elif best:
        task, name = best["metric"].split("/", 1)
        known = metrics if best["iteration"] == iterations else {task: {name: best["value"]}}
        checkpoints[BEST] = Checkpoint(BEST_NAME, "", best["iteration"], known, best["metric"])
    record = DataRecord("test", "objects", raw["dataset"], raw["annotations"], "")
    return {
        **{name: raw[name] for name in _COMMON},
        **{name: raw[name] for name in ("gmacs", "seed", "environment") if name in raw},
        "checkpoints": {name: asdict(checkpoint) for name, checkpoint in checkpoints.items()},
        "shown": BEST if is_classifier else FINAL,
        "data": [asdict(record)] if raw["annotations"] else [],
        "detections": {"file": raw["results_file"], "sha256": ""} if raw["results_file"] else None,
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
