"""Export the model of a run or a classifier to a file: what `pvt-det export` and `pvt_det.export` do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pvt_det.deployment.api import Report, export, load_classifier, load_detector, spread
from pvt_det.deployment.files import ENDINGS, Format, require_free_folder, require_writer
from pvt_det.deployment.int8 import CALIBRATION_IMAGES, require_nncf
from pvt_det.deployment.int8_export import Int8Options
from pvt_det.errors import ConfigError
from pvt_det.inference.sources import find_sources
from pvt_det.run_folder import config_file, named_weights
from pvt_det.utils.logs import errors_only
from pvt_det.utils.paths import make_folder, make_parent_folder
from pvt_det.utils.signing import verify_signed

# Default side of a classifier's images in pixels.
SIDE = 224


@dataclass(frozen=True)
class Int8Request:
    """What a user says about quantization to int8.

    Attributes:
        calibrate: Calibration images, folders or patterns.
        images: Maximum number of calibration images, chosen evenly.
        max_drop: Largest accepted loss in percentage points of AP, mask AP, mIoU or PQ; None does not measure it.
    """

    calibrate: Sequence[str]
    images: int = CALIBRATION_IMAGES
    max_drop: float | None = None


def export_run(
    run: str,
    output: Path,
    *,
    weights: str = "",
    images: Sequence[str] = (),
    kind: Format | None = None,
    overrides: Sequence[str] = (),
    public_key: str = "",
    int8: Int8Request | None = None,
    show: Callable[[str], object] = lambda step: None,
) -> Report:
    """Export a trained detector or segmentor to a file, and compare the file with the model.

    Args:
        run: A run folder or a config file.
        output: File to write, or the folder of an OpenVINO model.
        weights: Weights to load; "" uses the run's best checkpoint.
        images: Images, folders or patterns to compare on; empty uses the run's validation images.
        kind: The format. None takes that of the name: .onnx, .pt2 ("torch"), or a folder name that ends in _openvino.
        overrides: Config keys and values, alternating.
        public_key: PEM file with which the signature of the run is verified; "" verifies nothing.
        int8: How to quantize an OpenVINO model or an ONNX file; None does not.
        show: Called with the name of each step before it begins. The whole export takes a minute or more.

    Returns:
        The differences and the timings.

    Raises:
        CheckpointError: The weights do not fit the model, or the signature does not match.
        ConfigError: The config or the name of the file is invalid, or a requirement of the file format is missing.
        DataError: An image cannot be read.
        NumericError: The file's outputs differ from the model's.
    """
    kind, files = _prepare(output, images, kind)
    options = None if int8 is None else _int8_options(int8, kind)
    weights = str(named_weights(weights, overrides))
    verify_signed(public_key, config_file(run), *([Path(weights)] if weights else []))
    show("Loading the model …")
    with errors_only("torch.onnx"):
        return export(load_detector(run, weights, overrides, kind), output, kind, files, show, options)


def export_classifier(
    name: str,
    output: Path,
    *,
    weights: str,
    images: Sequence[str] = (),
    kind: Format | None = None,
    side: int = SIDE,
    public_key: str = "",
    int8: Int8Request | None = None,
    show: Callable[[str], object] = lambda step: None,
) -> Report:
    """Export a trained classifier to a file, and compare the file with the model.

    Args:
        name: Name of the model, such as "pvt_tiny".
        output: File to write, or the folder of an OpenVINO model.
        weights: Weights to load.
        images: Images, folders or patterns to compare on.
        kind: The format. None takes that of the name: .onnx, .pt2 ("torch"), or a folder name that ends in _openvino.
        side: Side of the model's square images in pixels, at least 32.
        public_key: PEM file with which the signature of the weights is verified; "" verifies nothing.
        int8: How to quantize an OpenVINO model or an ONNX file; None does not.
        show: Called with the name of each step before it begins. The whole export takes a minute or more.

    Returns:
        The differences and the timings.

    Raises:
        CheckpointError: The weights do not fit the model, or the signature does not match.
        ConfigError: No weights are given, the name of the file is invalid, or a requirement of its format is missing.
        DataError: An image cannot be read.
        NumericError: The file's outputs differ from the model's.
    """
    kind, files = _prepare(output, images, kind)
    options = None if int8 is None else _int8_options(int8, kind)
    if options is not None and options.max_drop is not None:
        raise ConfigError("--max-drop is for detectors and segmentors. Leave it out for a classifier.")
    if not weights:
        raise ConfigError("--classifier needs trained weights. Add --weights FILE.")
    verify_signed(public_key, Path(weights))
    show("Loading the model …")
    with errors_only("torch.onnx"):
        return export(load_classifier(name, weights, side), output, kind, files, show, options)


def _prepare(output: Path, images: Sequence[str], kind: Format | None) -> tuple[Format, list[Path]]:
    """Return the format and the images, and check what can be checked before the model is loaded and traced."""
    kind = _format(output, kind)
    require_writer(kind)
    if kind == "openvino":
        require_free_folder(output)
        make_folder(output.parent)
    else:
        make_parent_folder(output)
    return kind, _image_files("--images", images, "the check")


def _int8_options(request: Int8Request, kind: Format) -> Int8Options:
    if kind == "torch":
        raise ConfigError(
            "--int8 with --format torch: expected openvino or onnx. Give an --output that ends in _openvino or .onnx."
        )
    require_nncf()
    if not request.calibrate:
        raise ConfigError("--int8 needs images like those the model will see. Add --calibrate FOLDER.")
    if request.images < 1:
        raise ConfigError(f"--calibrate-images {request.images}: expected 1 or more.")
    if request.max_drop is not None and not request.max_drop >= 0:
        raise ConfigError(f"--max-drop {request.max_drop:g}: expected 0 or more percentage points.")
    files = _image_files("--calibrate", request.calibrate, "calibration")
    return Int8Options(tuple(spread(files, request.images)), request.max_drop)


def _image_files(option: str, images: Sequence[str], purpose: str) -> list[Path]:
    sources = find_sources(images)
    if others := [source.shown for source in sources if source.is_video or isinstance(source.path, str)]:
        raise ConfigError(f"{option} {', '.join(others)}: {purpose} needs image files. Leave everything else out.")
    return [Path(source.path) for source in sources]


def _format(output: Path, kind: Format | None) -> Format:
    """Return the format, and check that the name of the output agrees with it."""
    named = next((each for each, ending in ENDINGS.items() if output.name.endswith(ending)), None)
    if kind is None and named is None:
        raise ConfigError(
            f"--output {output}: expected a name that ends in .onnx, .pt2 or _openvino (a folder), or --format."
        )
    if kind is not None and named != kind and (named or kind != "openvino"):
        raise ConfigError(
            f"--output {output} and --format {kind} contradict each other: expected a name that ends in "
            f"{ENDINGS[kind]}. Change one of them."
        )
    # Only the name of a folder is free.
    return kind or named  # type: ignore[return-value]
