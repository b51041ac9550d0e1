"""What an exported file says about its model: all that is needed to preprocess images and to read its outputs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from pvt_det import __version__
from pvt_det.config.architecture import head_key, is_segmentor
from pvt_det.config.digest import leaves
from pvt_det.config.loader import copy_config, load_config, parse_config
from pvt_det.config.table import get_value
from pvt_det.errors import CheckpointError, ConfigError
from pvt_det.runtimes.backend import damaged
from pvt_det.runtimes.backends import backend_of, is_exported
from pvt_det.runtimes.openvino_folder import fastest_precision
from pvt_det.utils.paths import file_fault

# Increased when older versions of this package cannot use new files.
FORMAT = 1
DETECTION, SEGMENTATION, PANOPTIC, CLASSIFICATION = _TASKS = (
    "detection",
    "semantic segmentation",
    "panoptic segmentation",
    "classification",
)
_INPUT = "image N x 3 x H x W, uint8, RGB"
# Keys that are part of the graph, except for those below them that only say where and how to run it.
_BAKED = ("MODEL.", "INPUT.FORMAT", "TEST.DETECTIONS_PER_IMAGE", "TEST.AUG.ENABLED", "TEST.VALIDATION_LOSS")
_FREE = ("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.PANOPTIC_FPN.COMBINE.")


@dataclass(frozen=True)
class Metadata:
    """What an exported file says about its model.

    Attributes:
        model: Name of the model, such as "RetinaNet pvt_tiny".
        task: "detection", "semantic segmentation", "panoptic segmentation" or "classification".
        outputs: Names of the outputs, in the order of the graph.
        classes: Names of the classes.
        stuff_classes: Names of the semantic labels 1, 2, …, for panoptic segmentation.
        weights_sha256: SHA-256 of the weights that the file was made from, or "" if they are not a file.
        parameters: Number of parameters of the model.
        config: The model's config as YAML, without paths. "" for a classifier.
        short_side: Length in pixels of the short side of the model's images, 0 for a classifier.
        long_side: Largest length in pixels of the other side, 0 for a classifier.
        side: Side in pixels of the square images of a classifier, otherwise 0.
        score_threshold: The graph returns detections with scores above this.
        max_detections: Maximum number of detections per image, 0 if it is not a detector.
        made_by: Name and version of the package that wrote the file.
    """

    model: str
    task: str
    outputs: tuple[str, ...]
    classes: tuple[str, ...]
    weights_sha256: str
    parameters: int
    stuff_classes: tuple[str, ...] = ()
    config: str = ""
    short_side: int = 0
    long_side: int = 0
    side: int = 0
    score_threshold: float = 0.0
    max_detections: int = 0
    made_by: str = f"pvt_det {__version__}"

    def entries(self) -> dict[str, str]:
        """Return the metadata as strings by name, in which every file format stores it."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        strings = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
        return {"format_version": str(FORMAT), "input": _INPUT, **strings}


def read_metadata(path: Path) -> Metadata:
    """Read the metadata of an exported file. Nothing in the file is run.

    Args:
        path: An exported file, as `find_exported` returns it.

    Raises:
        CheckpointError: The file does not exist, is damaged, is of a newer version, or has no valid metadata.
        ConfigError: A package that is needed to read the file is missing.
    """
    if fault := file_fault(path):
        raise CheckpointError(f"{path} {fault}. Expected an exported model.")
    entries = backend_of(path).read_metadata(path)
    version = entries.get("format_version", "")
    if not version:
        raise CheckpointError(
            f"{path} has no metadata of pvt_det, so its image size, classes and outputs are not known. Expected a file "
            "that pvt-det export of this version wrote."
        )
    if not re.fullmatch(r"\d{1,9}", version):
        raise damaged(path, f"its format version is {version[:40]!r}")
    if int(version) > FORMAT:
        raise CheckpointError(
            f"{path} has format version {version}, and this version of pvt_det reads up to {FORMAT}. Update pvt_det, "
            "or export the model again with this version."
        )
    return _parse(path, entries)


def portable_config(
    cfg: CfgNode, classes: Sequence[str] = (), labels: Sequence[str] = (), precision: str = "fp32"
) -> str:
    """Return a config as YAML without the paths and the settings that are not those of an exported model.

    Args:
        cfg: The config of the model.
        classes: Names of the classes of objects, () if there are none or they are not known.
        labels: Names of the classes of label maps, () if there are none or they are not known.
        precision: Number format to compute in, unless users ask for another one. A value of TEST.PRECISION. "bf16" is
            "fp32" on processors without instructions for it.
    """
    kept = cfg.clone()
    kept.defrost()
    kept.OUTPUT_DIR, kept.MODEL.WEIGHTS, kept.MODEL.DEVICE = ".", "", "cpu"
    for part, key in (("TRAIN", "TRAIN"), ("VAL", "TEST")):
        if any(kept.DATASETS[f"{part}_{kind}"] for kind in ("JSON", "LABELS")):
            kept.DATASETS[key] = ()
    for key in kept.DATASETS:
        if key.endswith(("_JSON", "_IMAGES", "_LABELS")):
            kept.DATASETS[key] = ""
        elif key.startswith("PROPOSAL_FILES"):
            kept.DATASETS[key] = ()
    kept.DATASETS.CLASS_NAMES, kept.DATASETS.LABEL_NAMES = list(classes), list(labels)
    kept.TEST.AUG.ENABLED, kept.TEST.VALIDATION_LOSS, kept.TEST.PRECISION = False, False, precision
    text: str = kept.dump()
    return text


def load_model_config(path: str | Path, overrides: Any = (), *, training: bool = True) -> CfgNode:
    """Load the config of a model: a config file, or that of an exported file.

    Args:
        path: A config file or an exported file.
        overrides: Config keys and values, alternating. Those of an exported file cannot change its graph.
        training: Whether the config is for training.

    Returns:
        A config that is not frozen.

    Raises:
        CheckpointError: An exported file cannot be used.
        ConfigError: The config is invalid, or a key cannot be changed.
    """
    if not is_exported(path):
        return load_config(path, overrides, training=training)
    if training:
        raise ConfigError(f"{path} is an exported model, which cannot be trained. Give the run that it was made from.")
    path = Path(path)
    metadata = read_metadata(path)
    own = _own_config(path, metadata)
    cfg = copy_config(own, overrides, training=False)
    require_same_graph(cfg, path, metadata)
    return cfg


def require_same_graph(cfg: CfgNode, path: Path, metadata: Metadata) -> None:
    """Check that a config fits the graph of an exported file.

    Args:
        cfg: The config, with the changes of the user.
        path: The exported file.
        metadata: Its metadata.

    Raises:
        ConfigError: A key differs that is part of the graph, the score threshold is below that of the graph, or the
            runtime does not support the device or the precision.
    """
    own = _own_config(path, metadata)
    threshold_key = "" if is_segmentor(own) else f"MODEL.{head_key(own)}.SCORE_THRESH_TEST"
    for key, value in leaves(own):
        if not key.startswith(_BAKED) or key.startswith(_FREE) or key.endswith("SCORE_THRESH_TEST"):
            continue
        if (given := get_value(cfg, key)) != value:
            raise ConfigError(
                f"{key} = {given!r}: {path} was exported with {value!r}, which cannot be changed. Set it to that, "
                f"or export the model again with --set {key}."
            )
    if threshold_key and (given := get_value(cfg, threshold_key)) < metadata.score_threshold:
        raise ConfigError(
            f"score threshold {given:g}: {path} only returns detections with scores above "
            f"{metadata.score_threshold:g}. Use that or more, or export the model again with --set "
            f"{threshold_key} {given:g}."
        )
    backend = backend_of(path)
    if cfg.MODEL.DEVICE != "cpu":
        raise ConfigError(f"device {cfg.MODEL.DEVICE}: {backend.runtime} runs {path} on the CPU. Use cpu.")
    if cfg.TEST.PRECISION not in backend.precisions:
        raise ConfigError(
            f"TEST.PRECISION = {cfg.TEST.PRECISION}: {backend.runtime} runs {path} in "
            f"{' or '.join(backend.precisions)}. Leave it out, or export the model with --format openvino for bf16."
        )


def _own_config(path: Path, metadata: Metadata) -> CfgNode:
    if metadata.task == CLASSIFICATION:
        raise ConfigError(
            f"{path} is a classifier. Expected a detector or segmentor. tools/run_onnx.py runs the ONNX file of one."
        )
    try:
        cfg = parse_config(metadata.config, f"the config in {path}", training=False)
    except ConfigError as error:
        raise damaged(path, error) from error
    if cfg.TEST.PRECISION == "bf16":
        cfg.TEST.PRECISION = fastest_precision()
    return cfg


def _parse(path: Path, entries: Mapping[str, str]) -> Metadata:
    """Check the types of all entries."""
    values: dict[str, Any] = {}
    for name, field in Metadata.__dataclass_fields__.items():
        text, kind = entries.get(name), str(field.type)
        if text is None:
            raise damaged(path, f"its metadata has no {name}")
        try:
            values[name] = text if kind == "str" else _value(text, kind)
        except (ValueError, RecursionError) as error:
            raise damaged(path, f"{name} in its metadata is {text[:60]!r}") from error
    if values["task"] not in _TASKS:
        raise damaged(path, f"its task is {values['task'][:60]!r}, expected {', '.join(_TASKS)}")
    return Metadata(**values)


def _value(text: str, kind: str) -> Any:
    value = json.loads(text)
    if kind == "tuple[str, ...]" and isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    if kind == "int" and type(value) is int and value >= 0:
        return value
    if kind == "float" and type(value) in (int, float) and 0 <= value <= 1:
        return float(value)
    raise ValueError
