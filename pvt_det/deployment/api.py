"""Export a trained model to a file that runs without this package, and check the file against the model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from numpy.typing import NDArray
from torch import nn

from pvt_det.config import load_config
from pvt_det.config.architecture import has_label_maps, head_key, is_panoptic, is_segmentor, model_name
from pvt_det.data.coco.annotations import read_json
from pvt_det.data.imagenet.transforms import EvalTransform
from pvt_det.data.images import IMAGE_SUFFIXES, read_image
from pvt_det.data.mapper import build_augmentations
from pvt_det.data.storage.places import file_fault, folder_fault, list_folder, local_file
from pvt_det.data.storage.references import Reference, is_url, join
from pvt_det.deployment.accuracy import Validation
from pvt_det.deployment.check import Outputs, Parity, compare, medians_ms, run_eager
from pvt_det.deployment.files import ENDINGS, Format, model_file, trace, unchecked, write
from pvt_det.deployment.graphs import Graph, build_graph
from pvt_det.deployment.int8_export import Int8Options, Int8Report, int8_precision, write_int8
from pvt_det.errors import ConfigError, NumericError
from pvt_det.inference.base import class_names, known_class_names, known_label_names, stuff_names
from pvt_det.inference.trunks import trained_classifier
from pvt_det.models.complexity import count_parameters
from pvt_det.run_folder import config_file, identified_weights
from pvt_det.runtimes.backend import Function
from pvt_det.runtimes.backends import BACKENDS
from pvt_det.runtimes.metadata import CLASSIFICATION, DETECTION, PANOPTIC, SEGMENTATION, Metadata, portable_config
from pvt_det.utils.digest import file_digest
from pvt_det.utils.text import counted
from pvt_det.weights import load_pretrained
from pvt_det.weights.source import locate

# Number of images in the check. Each is run alone; the first one also in a batch with its mirror image.
CHECKED = 4
# Shape of the traced images. The sides differ, and no stride divides them.
TRACED_SIZE = (2, 3, 200, 140)


@dataclass(frozen=True)
class Subject:
    """A model to export.

    Attributes:
        model: The model, in evaluation mode, on the CPU.
        graph: The model as a function of tensors.
        bgr: Whether the model takes BGR images.
        prepare: Resizes an image, `H×W×3` RGB uint8, to the model's image size.
        metadata: What the file will say about the model.
        images: The run's validation images; empty if they are not available.
        cfg: The config of the model; None for a classifier.
    """

    model: nn.Module
    graph: Graph
    bgr: bool
    prepare: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
    metadata: Metadata
    images: tuple[Reference, ...]
    cfg: CfgNode | None = None


@dataclass(frozen=True)
class Report:
    """Result of an export.

    Attributes:
        path: The file or folder.
        name: Name of the model, such as "RetinaNet pvt_tiny".
        outputs: Names of the outputs.
        parity: Differences between the outputs of the file and of the model.
        size: Height and width in pixels of the image used for timing.
        eager_ms: Median time of the model in milliseconds.
        exported_ms: Median time of the exported file in milliseconds.
        int8: What quantization has changed; None for an fp32 model, whose outputs `parity` describes.
    """

    path: Path
    name: str
    outputs: tuple[str, ...]
    parity: Parity
    size: tuple[int, int]
    eager_ms: float
    exported_ms: float
    int8: Int8Report | None = None


def load_detector(config: str | Path, weights: str, overrides: Sequence[str], kind: Format) -> Subject:
    """Load a trained detector or segmentor.

    Args:
        config: A run folder or a config file.
        weights: Weights to load; "" uses the best checkpoint next to the config.
        overrides: Config keys and values, alternating.
        kind: Format to export to.

    Raises:
        CheckpointError: The weights do not fit the model.
        ConfigError: The config is invalid, or models of this kind cannot be exported.
    """
    path = config_file(config)
    cfg = load_config(path, ["MODEL.DEVICE", "cpu", *overrides], training=False)
    model = build_model(cfg)
    bgr = cfg.INPUT.FORMAT == "BGR"
    graph = build_graph(model, bgr=bgr, kind=kind)
    source, digest = identified_weights(path, weights)
    load_pretrained(model, source).require_whole()
    resize = T.AugmentationList(build_augmentations(cfg, is_train=False))

    def prepare(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        augmented = T.AugInput(pixels)
        resize(augmented)
        return np.ascontiguousarray(augmented.image)

    metadata = Metadata(
        model=model_name(cfg),
        task=_task(cfg),
        outputs=tuple(graph.outputs),
        classes=class_names(cfg),
        stuff_classes=stuff_names(cfg) if is_panoptic(cfg) else (),
        weights_sha256=digest or file_digest(locate(source)),
        parameters=count_parameters(model),
        config=_portable(cfg),
        short_side=cfg.INPUT.MIN_SIZE_TEST,
        long_side=cfg.INPUT.MAX_SIZE_TEST,
        score_threshold=0.0 if is_segmentor(cfg) else cfg.MODEL[head_key(cfg)].SCORE_THRESH_TEST,
        max_detections=0 if is_segmentor(cfg) else cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    return Subject(
        model=model,
        graph=graph,
        bgr=bgr,
        prepare=prepare,
        metadata=metadata,
        images=validation_images(cfg),
        cfg=cfg,
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
    metadata = Metadata(
        model=f"{name} classifier",
        task=CLASSIFICATION,
        outputs=graph.outputs,
        classes=(),
        weights_sha256=file_digest(locate(weights)),
        parameters=count_parameters(graph),
        side=size,
    )
    return Subject(
        model=graph,
        graph=graph,
        bgr=False,
        prepare=lambda pixels: np.ascontiguousarray(np.asarray(crop(pixels)).transpose(1, 2, 0)),
        metadata=metadata,
        images=(),
    )


def export(
    subject: Subject,
    output: Path,
    kind: Format,
    images: Sequence[Path],
    show: Callable[[str], object] = lambda step: None,
    int8: Int8Options | None = None,
) -> Report:
    """Export a model, and keep the file only if its outputs match the model's.

    Args:
        subject: The model to export.
        output: Path of the file to write. With "openvino", the folder.
        kind: The format.
        images: Images to compare on; empty uses the run's validation images.
        show: Called with the name of each step before it begins. The whole export takes a minute or more.
        int8: How to quantize the model, for "openvino" and "onnx". The original model is compared with its fp32 form.

    Returns:
        The differences and the timings.

    Raises:
        ConfigError: No images to compare on are available, or a requirement of the file format is missing.
        DataError: An image cannot be read.
        NumericError: The file's outputs differ from the model's, the model detects nothing in the images, or an int8
            model is not accurate enough.
    """
    validation = None if int8 is None or int8.max_drop is None else Validation(subject.cfg)
    files = spread(images or subject.images, CHECKED)
    if not files:
        raise ConfigError("No images to check the exported model on. Add some with --images.")
    prepared = [subject.prepare(read_image(file, "RGB")) for file in files]
    show(f"Running the model on {counted(len(prepared), 'image')} …")
    batches = _batches(prepared)
    expected = [run_eager(subject.model, batch, bgr=subject.bgr) for batch in batches]
    # Before the slow part.
    _require_detections(expected)
    # Also before it, so that an image that cannot be read is found now.
    calibration = [] if int8 is None else [_model_input(subject, file) for file in int8.images]
    show("Tracing the model …")
    program = trace(subject.graph, torch.zeros(TRACED_SIZE, dtype=torch.uint8))
    output.parent.mkdir(parents=True, exist_ok=True)
    with unchecked(output) as path, tempfile.TemporaryDirectory(prefix="pvt_det_") as folder:
        written = path if int8 is None else Path(folder, f"fp32{ENDINGS[kind]}")
        show("Writing the file, which takes a minute or more …")
        write(program, written, kind, subject.graph.outputs, subject.metadata.entries())
        show("Comparing the file with the model …")
        function = _open(written, kind, subject.metadata)
        parity = check(subject.metadata, function, batches, expected)
        parity.require(str(output))
        quantized = None
        if int8 is not None:
            metadata = _int8_metadata(subject, kind)
            quantized = write_int8(
                written, path, calibration, metadata, max_drop=int8.max_drop, validation=validation, show=show
            )
            function = _open(path, kind, metadata, quantized.precision or int8_precision(path))
    first = batches[0]
    eager_ms, exported_ms = medians_ms(
        lambda: run_eager(subject.model, first, bgr=subject.bgr), lambda: function(first)
    )
    return Report(
        path=output,
        name=subject.metadata.model,
        outputs=tuple(subject.graph.outputs),
        parity=parity,
        size=first.shape[2:],
        eager_ms=eager_ms,
        exported_ms=exported_ms,
        int8=quantized,
    )


def _open(path: Path, kind: Format, metadata: Metadata, precision: str = "fp32") -> Function:
    threads = torch.get_num_threads()
    return BACKENDS[kind].open(model_file(path, kind), outputs=metadata.outputs, threads=threads, precision=precision)


def _model_input(subject: Subject, file: Reference) -> NDArray[np.uint8]:
    return _batch([subject.prepare(read_image(file, "RGB"))])[0]


def _int8_metadata(subject: Subject, kind: Format) -> Metadata:
    """Return the metadata of the int8 model. OpenVINO runs its other operators in bf16 where it can."""
    cfg = subject.cfg
    if cfg is None or kind != "openvino":
        return subject.metadata
    return replace(subject.metadata, config=_portable(cfg, "bf16"))


def check(
    metadata: Metadata, function: Function, batches: Sequence[NDArray[np.uint8]], expected: Sequence[Outputs]
) -> Parity:
    """Compare the outputs of an exported file with those of its model.

    Args:
        metadata: Metadata of the file.
        function: The exported file as a function.
        batches: Batches of images `N×3×H×W`, RGB, uint8.
        expected: Outputs of the model for each batch.

    Returns:
        The differences of all images.
    """
    parity, limit, threshold = Parity(), metadata.max_detections, metadata.score_threshold
    for batch, outputs in zip(batches, expected, strict=True):
        compare(outputs, function(batch), parity, images=len(batch), limit=limit, threshold=threshold)
    return parity


def _require_detections(outputs: Sequence[Outputs]) -> None:
    if any("boxes" in each for each in outputs) and not any(len(each["scores"]) for each in outputs):
        raise NumericError(
            "The model detects nothing in the images, so an exported file could not be checked. Train the model first, "
            "add images with objects with --images, or lower the score threshold."
        )


def _task(cfg: CfgNode) -> str:
    if is_panoptic(cfg):
        return PANOPTIC
    return SEGMENTATION if is_segmentor(cfg) else DETECTION


def _portable(cfg: CfgNode, precision: str = "fp32") -> str:
    classes = () if is_segmentor(cfg) else known_class_names(cfg)
    return portable_config(cfg, classes, known_label_names(cfg) if has_label_maps(cfg) else (), precision)


def validation_images(cfg: CfgNode) -> tuple[Reference, ...]:
    """Return the validation images that a config names, as far as they exist.

    Args:
        cfg: A config with DATASETS.VAL_JSON or VAL_LABELS, and VAL_IMAGES.

    Returns:
        Paths or URLs of the images; empty if the config names none or they have moved.
    """
    json_file, folder = cfg.DATASETS.VAL_JSON, cfg.DATASETS.VAL_IMAGES
    if not folder or folder_fault(folder):
        return ()
    if json_file and (is_url(json_file) or not file_fault(local_file(json_file))):
        names = [image["file_name"] for image in read_json(json_file)["images"]]
        return tuple(path for name in names if not file_fault(path := join(folder, name)))
    if cfg.DATASETS.VAL_LABELS:
        return tuple(name for name in list_folder(folder) if Path(name).suffix.lower() in IMAGE_SUFFIXES)
    return ()


def spread(files: Sequence[Reference], count: int) -> list[Reference]:
    """Choose files evenly.

    Args:
        files: All files, in order.
        count: Maximum number of files to choose, at least 1.
    """
    chosen = np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
    return [files[number] for number in chosen]


def _batches(images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Return each image alone, and the first one in a batch with its mirror image."""
    return [*(_batch([image]) for image in images), _batch([images[0], np.ascontiguousarray(images[0][:, ::-1])])]


def _batch(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
