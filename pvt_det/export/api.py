"""From a trained model to a file that runs without this package, checked against the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from numpy.typing import NDArray
from torch import nn

from pvt_det import __version__
from pvt_det.config import load_config
from pvt_det.config.architecture import head_key, is_segmentor, model_name
from pvt_det.data.coco.annotations import read_json
from pvt_det.data.imagenet.transforms import EvalTransform
from pvt_det.data.images import read_image
from pvt_det.data.mapper import build_augmentations
from pvt_det.errors import ConfigError, NumericError
from pvt_det.export.check import Parity, compare, medians_ms, run_eager
from pvt_det.export.files import Function, Kind, open_file, trace, write
from pvt_det.export.graphs import Graph, build_graph
from pvt_det.inference.base import class_names
from pvt_det.inference.trunks import trained_classifier
from pvt_det.run_folder import config_file, run_weights
from pvt_det.weights import load_pretrained

# Images that the check looks at, one by one, and its first one also in a batch with its mirror image.
CHECKED = 4
# Of the images that are traced: no stride divides their sides, which differ.
_TRACED_SIZE = (2, 3, 200, 140)


@dataclass(frozen=True)
class Subject:
    """A model to export.

    Attributes:
        name: Such as "RetinaNet pvt_tiny".
        model: It, in evaluation mode, on the CPU.
        graph: It as a function of tensors.
        bgr: Whether it takes blue first.
        prepare: From an image, `H×W×3` RGB uint8, to the size that the model is to see.
        limit: Detections of an image that are kept.
        threshold: Scores above this are kept.
        metadata: What a user of the file has to know.
        images: The files of the run's own validation images; none where they are not there.
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
    """How an export went.

    Attributes:
        parity: How far the file is from the model.
        size: Of the image that was timed, height and width in pixels.
        eager_ms: Median time of the model for it.
        exported_ms: Median time of the file.
    """

    parity: Parity
    size: tuple[int, int]
    eager_ms: float
    exported_ms: float


def load_detector(config: str | Path, weights: str, overrides: Sequence[str], kind: Kind) -> Subject:
    """Load a trained detector or segmentor.

    Args:
        config: A run's output folder, or a config file.
        weights: Its weights; "" takes the best beside the config.
        overrides: Keys of the config and their values.
        kind: Of file that it is to become.

    Raises:
        CheckpointError: The weights do not fit.
        ConfigError: The config is wrong, or no such model can be exported.
    """
    path = config_file(config)
    cfg = load_config(path, ["MODEL.DEVICE", "cpu", *overrides])
    model = build_model(cfg)
    bgr = cfg.INPUT.FORMAT == "BGR"
    graph = build_graph(model, bgr=bgr, kind=kind)
    load_pretrained(model, run_weights(path, weights)).require_whole()
    resize = T.AugmentationList(build_augmentations(cfg, is_train=False))

    def prepare(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        seen = T.AugInput(pixels)
        resize(seen)
        return np.ascontiguousarray(seen.image)

    metadata = {
        "task": "semantic segmentation" if is_segmentor(cfg) else "detection",
        "short_side": str(cfg.INPUT.MIN_SIZE_TEST),
        "long_side": str(cfg.INPUT.MAX_SIZE_TEST),
        "classes": json.dumps(class_names(cfg)),
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
        images=_validation_images(cfg.DATASETS.VAL_JSON, cfg.DATASETS.VAL_IMAGES),
    )


def load_classifier(name: str, weights: str, size: int = 224) -> Subject:
    """Load a trained classifier.

    Args:
        name: Of the model, such as "pvt_tiny".
        weights: Its weights.
        size: Side of the images that it is given, in pixels.

    Raises:
        CheckpointError: The weights do not fit, or have no classifier.
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


def export(subject: Subject, output: Path, kind: Kind, images: Sequence[Path]) -> Report:
    """Write the file, if it does what the model does.

    Args:
        subject: What to export.
        output: The file.
        kind: Its format.
        images: To compare on; none takes the run's own validation images.

    Raises:
        ConfigError: There are no images to compare on, or what the format needs is missing.
        DataError: An image cannot be read.
        NumericError: The file's outputs are not the model's; it is not kept.
    """
    files = _spread(images or subject.images)
    if not files:
        raise ConfigError("there are no images to check the exported model on: name some with --images.")
    pictures = [subject.prepare(read_image(file, "RGB")) for file in files]
    program = trace(subject.graph, torch.zeros(_TRACED_SIZE, dtype=torch.uint8))
    output.parent.mkdir(parents=True, exist_ok=True)
    # The ending stays, since torch looks at it.
    unchecked = output.with_name(f".unchecked-{output.name}")
    try:
        write(program, unchecked, kind, subject.graph.outputs, subject.metadata)
        function = open_file(unchecked, kind, subject.graph.outputs)
        parity = check(subject, function, pictures)
        parity.require(str(output))
        unchecked.replace(output)
    finally:
        unchecked.unlink(missing_ok=True)
    first = _batch(pictures[:1])
    eager_ms, exported_ms = medians_ms(
        lambda: run_eager(subject.model, first, bgr=subject.bgr), lambda: function(first)
    )
    return Report(parity=parity, size=first.shape[2:], eager_ms=eager_ms, exported_ms=exported_ms)


def check(subject: Subject, function: Function, pictures: Sequence[NDArray[np.uint8]]) -> Parity:
    """Compare an exported model with its model.

    Args:
        subject: The model.
        function: The exported one.
        pictures: `H×W×3` RGB, as the model is to see them.

    Raises:
        NumericError: The model finds nothing, so that there is nothing to compare.
    """
    parity = Parity()
    batches = [_batch([picture]) for picture in pictures]
    batches.append(_batch([pictures[0], np.ascontiguousarray(pictures[0][:, ::-1])]))
    for batch in batches:
        expected = run_eager(subject.model, batch, bgr=subject.bgr)
        got = function(batch)
        compare(expected, got, parity, images=len(batch), limit=subject.limit, threshold=subject.threshold)
    if "boxes" in expected and not parity.detections and not parity.missing:
        raise NumericError(
            "the model finds nothing in the images of the check, which so shows nothing: name images with objects by "
            "--images, or lower the score threshold."
        )
    return parity


def _metadata(name: str, of_task: dict[str, str]) -> dict[str, str]:
    return {"model": name, "made_by": f"pvt_det {__version__}", "input": "image N x 3 x H x W, uint8, RGB", **of_task}


def _validation_images(json_file: str, folder: str) -> tuple[Path, ...]:
    if not json_file or not Path(json_file).is_file():
        return ()
    names = [image["file_name"] for image in read_json(json_file)["images"]]
    return tuple(path for name in names if (path := Path(folder) / name).is_file())


def _spread(files: Sequence[Path]) -> list[Path]:
    chosen = np.linspace(0, len(files) - 1, min(CHECKED, len(files))).round().astype(int)
    return [files[number] for number in chosen]


def _batch(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))
