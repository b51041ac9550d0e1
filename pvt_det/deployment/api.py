"""Export a trained model to a file that runs without this package, and check the file against the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from numpy.typing import NDArray
from torch import nn

from pvt_det import __version__
from pvt_det.config import load_config
from pvt_det.config.architecture import head_key, is_panoptic, is_segmentor, model_name
from pvt_det.data.coco.annotations import read_json
from pvt_det.data.imagenet.transforms import EvalTransform
from pvt_det.data.images import IMAGE_SUFFIXES, read_image
from pvt_det.data.mapper import build_augmentations
from pvt_det.deployment.check import Parity, compare, medians_ms, run_eager
from pvt_det.deployment.files import Function, Kind, open_file, trace, write
from pvt_det.deployment.graphs import Graph, build_graph
from pvt_det.errors import ConfigError, NumericError
from pvt_det.inference.base import class_names, stuff_names
from pvt_det.inference.trunks import trained_classifier
from pvt_det.run_folder import config_file, run_weights
from pvt_det.utils.text import counted
from pvt_det.weights import load_pretrained

# Number of images in the check. Each is run alone; the first one also in a batch with its mirror image.
CHECKED = 4
# Shape of the traced images. The sides differ, and no stride divides them.
_TRACED_SIZE = (2, 3, 200, 140)


@dataclass(frozen=True)
class Subject:
    """A model to export.

    Attributes:
        name: Name of the model, such as "RetinaNet pvt_tiny".
        model: The model, in evaluation mode, on the CPU.
        graph: The model as a function of tensors.
        bgr: Whether the model takes BGR images.
        prepare: Resizes an image, `H×W×3` RGB uint8, to the model's image size.
        limit: Maximum number of detections per image.
        threshold: Detections with scores above this are kept.
        metadata: Information that users of the file need, as strings by name.
        images: The run's validation images; empty if they are not available.
    """

    name: str
    model: nn.Module
    graph: Graph
    bgr: bool
    prepare: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
    limit: int
    threshold: float
    metadata: dict[str, str]
    images: tuple[Path, ...]


@dataclass(frozen=True)
class Report:
    """Result of an export.

    Attributes:
        path: The file.
        name: Name of the model, such as "RetinaNet pvt_tiny".
        outputs: Names of the outputs.
        parity: Differences between the outputs of the file and of the model.
        size: Height and width in pixels of the image used for timing.
        eager_ms: Median time of the model in milliseconds.
        exported_ms: Median time of the exported file in milliseconds.
    """

    path: Path
    name: str
    outputs: tuple[str, ...]
    parity: Parity
    size: tuple[int, int]
    eager_ms: float
    exported_ms: float


def load_detector(config: str | Path, weights: str, overrides: Sequence[str], kind: Kind) -> Subject:
    """Load a trained detector or segmentor.

    Args:
        config: A run folder or a config file.
        weights: Weights to load; "" uses the best checkpoint next to the config.
        overrides: Config keys and values, alternating.
        kind: Kind of file to export to.

    Raises:
        CheckpointError: The weights do not fit the model.
        ConfigError: The config is invalid, or models of this kind cannot be exported.
    """
    path = config_file(config)
    cfg = load_config(path, ["MODEL.DEVICE", "cpu", *overrides], training=False)
    model = build_model(cfg)
    bgr = cfg.INPUT.FORMAT == "BGR"
    graph = build_graph(model, bgr=bgr, kind=kind)
    load_pretrained(model, run_weights(path, weights)).require_whole()
    resize = T.AugmentationList(build_augmentations(cfg, is_train=False))

    def prepare(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        augmented = T.AugInput(pixels)
        resize(augmented)
        return np.ascontiguousarray(augmented.image)

    metadata = {
        "task": _task(cfg),
        "short_side": str(cfg.INPUT.MIN_SIZE_TEST),
        "long_side": str(cfg.INPUT.MAX_SIZE_TEST),
        "classes": json.dumps(class_names(cfg)),
    }
    if is_panoptic(cfg):
        combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
        metadata |= {
            # Those of the semantic labels 1, 2, …
            "stuff_classes": json.dumps(stuff_names(cfg)),
            "score_threshold": str(combine.INSTANCES_CONFIDENCE_THRESH),
            "overlap_threshold": str(combine.OVERLAP_THRESH),
            "stuff_area_limit": str(combine.STUFF_AREA_LIMIT),
        }
    return Subject(
        name=model_name(cfg),
        model=model,
        graph=graph,
        bgr=bgr,
        prepare=prepare,
        limit=cfg.TEST.DETECTIONS_PER_IMAGE,
        threshold=cfg.MODEL[head_key(cfg)].SCORE_THRESH_TEST,
        metadata=_metadata(model_name(cfg), metadata),
        images=validation_images(cfg),
    )


def load_classifier(name: str, weights: str, size: int = 224) -> Subject:
    """Load a trained classifier.

    Args:
        name: Name of the model, such as "pvt_tiny".
        weights: Weights to load: a file, or any other value of `MODEL.WEIGHTS`.
        size: Side of the model's square images in pixels.

    Raises:
        CheckpointError: The weights do not fit the model, or have no classification head.
    """
    graph = build_graph(trained_classifier(name, weights, size))
    crop = EvalTransform(size, size / round(size * 256 / 224), "bicubic")
    return Subject(
        name=f"{name} classifier",
        model=graph,
        graph=graph,
        bgr=False,
        prepare=lambda pixels: np.ascontiguousarray(np.asarray(crop(pixels)).transpose(1, 2, 0)),
        limit=0,
        threshold=0.0,
        metadata=_metadata(f"{name} classifier", {"task": "classification", "side": str(size), "classes": "[]"}),
        images=(),
    )


def export(
    subject: Subject,
    output: Path,
    kind: Kind,
    images: Sequence[Path],
    show: Callable[[str], object] = lambda step: None,
) -> Report:
    """Export a model to a file, and keep the file only if its outputs match the model's.

    Args:
        subject: The model to export.
        output: Path of the file to write.
        kind: Kind of file.
        images: Images to compare on; empty uses the run's validation images.
        show: Called with the name of each step before it begins. The whole export takes a minute or more.

    Returns:
        The differences and the timings.

    Raises:
        ConfigError: No images to compare on are available, or a requirement of the file format is missing.
        DataError: An image cannot be read.
        NumericError: The file's outputs differ from the model's.
    """
    files = _spread(images or subject.images)
    if not files:
        raise ConfigError("No images to check the exported model on. Add some with --images.")
    prepared = [subject.prepare(read_image(file, "RGB")) for file in files]
    show("Tracing the model …")
    program = trace(subject.graph, torch.zeros(_TRACED_SIZE, dtype=torch.uint8))
    output.parent.mkdir(parents=True, exist_ok=True)
    # Keep the suffix, because torch checks it.
    unchecked = output.with_name(f".unchecked-{output.name}")
    try:
        show("Writing the file, which takes a minute or more …")
        write(program, unchecked, kind, subject.graph.outputs, subject.metadata)
        show(f"Comparing the file with the model on {counted(len(prepared), 'image')} …")
        function = open_file(unchecked, kind, subject.graph.outputs)
        parity = check(subject, function, prepared)
        parity.require(str(output))
        unchecked.replace(output)
    finally:
        unchecked.unlink(missing_ok=True)
    first = _batch(prepared[:1])
    eager_ms, exported_ms = medians_ms(
        lambda: run_eager(subject.model, first, bgr=subject.bgr), lambda: function(first)
    )
    return Report(
        path=output,
        name=subject.name,
        outputs=tuple(subject.graph.outputs),
        parity=parity,
        size=first.shape[2:],
        eager_ms=eager_ms,
        exported_ms=exported_ms,
    )


def check(subject: Subject, function: Function, images: Sequence[NDArray[np.uint8]]) -> Parity:
    """Compare the outputs of an exported file with those of its model.

    Args:
        subject: The exported model.
        function: The exported file as a function.
        images: Images `H×W×3`, RGB, uint8, in the model's image size.

    Returns:
        The differences of all images.

    Raises:
        NumericError: The model detects nothing, so there is nothing to compare.
    """
    parity = Parity()
    batches = [_batch([image]) for image in images]
    batches.append(_batch([images[0], np.ascontiguousarray(images[0][:, ::-1])]))
    for batch in batches:
        expected = run_eager(subject.model, batch, bgr=subject.bgr)
        got = function(batch)
        compare(expected, got, parity, images=len(batch), limit=subject.limit, threshold=subject.threshold)
    if "boxes" in expected and not parity.detections and not parity.missing:
        raise NumericError(
            "The model detects nothing in the images, so the exported file cannot be checked. Add images with objects "
            "with --images, or lower the score threshold."
        )
    return parity


def _task(cfg: CfgNode) -> str:
    if is_panoptic(cfg):
        return "panoptic segmentation"
    return "semantic segmentation" if is_segmentor(cfg) else "detection"


def _metadata(name: str, of_task: dict[str, str]) -> dict[str, str]:
    return {"model": name, "made_by": f"pvt_det {__version__}", "input": "image N x 3 x H x W, uint8, RGB", **of_task}


def validation_images(cfg: CfgNode) -> tuple[Path, ...]:
    """Return the validation images that a config names, as far as they exist.

    Args:
        cfg: A config with DATASETS.VAL_JSON or VAL_LABELS, and VAL_IMAGES.

    Returns:
        Paths of the images; empty if the config names none or they have moved.
    """
    json_file, folder = cfg.DATASETS.VAL_JSON, Path(cfg.DATASETS.VAL_IMAGES)
    if json_file and Path(json_file).is_file():
        names = [image["file_name"] for image in read_json(json_file)["images"]]
        return tuple(path for name in names if (path := folder / name).is_file())
    if cfg.DATASETS.VAL_LABELS and folder.is_dir():
        return tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES))
    return ()


def _spread(files: Sequence[Path]) -> list[Path]:
    chosen = np.linspace(0, len(files) - 1, min(CHECKED, len(files))).round().astype(int)
    return [files[number] for number in chosen]


def _batch(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
