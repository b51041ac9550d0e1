"""The suite `runtimes`: whole detectors in PyTorch and as exported files, from a resized image to its detections."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from rich.table import Table

from benchmarks.measure import Size, median_ratio, time_interleaved
from benchmarks.stock import AS_DETECTRON2, build_stock_detector, spread_scores
from pvt_det.cli.benchmark import format_time
from pvt_det.config import load_config
from pvt_det.config.architecture import model_name
from pvt_det.deployment.api import TRACED_SIZE, load_detector
from pvt_det.deployment.files import Format, model_file, trace, unchecked, write
from pvt_det.deployment.int8 import quantize
from pvt_det.profiling import resident_memory, run_in_own_process
from pvt_det.run_folder import CONFIG_NAME, FINAL_NAME
from pvt_det.runtimes.backends import backend_of, is_exported
from pvt_det.runtimes.metadata import load_model_config, read_metadata
from pvt_det.runtimes.model import load_model
from pvt_det.runtimes.openvino_folder import fastest_precision
from pvt_det.utils.precision import has_fast_bf16, inference_autocast

CONFIGS = ("configs/retinanet_pvt_small.yaml", "configs/mask_rcnn_pvt_small.yaml")
EAGER = "PyTorch fp32"
STOCK = "stock Detectron2 fp32"
# The file of each implementation below the folder of its model, and the precision that it computes in. "" is
# OpenVINO's fastest one on this processor, in which an int8 model computes what is not int8.
IMPLEMENTATIONS = {
    EAGER: (FINAL_NAME, "fp32"),
    STOCK: (FINAL_NAME, "fp32"),
    "PyTorch bf16": (FINAL_NAME, "bf16"),
    "ONNX Runtime fp32": ("model.onnx", "fp32"),
    "ONNX Runtime int8": ("model_int8.onnx", "fp32"),
    "OpenVINO fp32": ("model_openvino", "fp32"),
    "OpenVINO bf16": ("model_openvino", "bf16"),
    "OpenVINO int8": ("model_int8_openvino", ""),
}
_FORMATS: dict[str, Format] = {
    "model.onnx": "onnx",
    "model_openvino": "openvino",
    "model_int8.onnx": "onnx",
    "model_int8_openvino": "openvino",
}
# The fp32 files of the int8 files.
_SOURCES = {"model_int8.onnx": "model.onnx", "model_int8_openvino": "model_openvino"}


@dataclass(frozen=True)
class RuntimeRow:
    """The result of one implementation.

    Attributes:
        model: Name of the model.
        implementation: A key of `IMPLEMENTATIONS`.
        batch: Number of images.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        seconds: Median time of a batch.
        images_per_s: Images per second at that time.
        speedup: Time of PyTorch in fp32 divided by this one's, as the median of the rounds' ratios.
        peak_mib: Peak memory in MiB of a process that opens the model and runs two batches.
        size_mib: Size of the file or folder in MiB.
    """

    model: str
    implementation: str
    batch: int
    height: int
    width: int
    seconds: float
    images_per_s: float
    speedup: float
    peak_mib: float
    size_mib: float

    def as_dict(self) -> dict[str, object]:
        """Return the attributes by name, for JSON."""
        return asdict(self)


def run_runtimes(
    configs: Iterable[str], sizes: Sequence[Size], folder: Path, repeats: int, overrides: Sequence[str] = ()
) -> Iterator[RuntimeRow]:
    """Compare the time, the memory and the size of all implementations.

    The models are untrained, with scores spread like those of trained ones, so that postprocessing takes as long.

    Args:
        configs: Config files of detectors.
        sizes: Batch size, height and width of the images in pixels.
        folder: Folder for the weights and the exported files, which are used again if they exist.
        repeats: Number of timed rounds.
        overrides: Config keys and values, alternating.

    Yields:
        One row per model, size and implementation that this processor has instructions for.
    """
    missing = unavailable()
    names = [name for name in IMPLEMENTATIONS if name not in missing]
    for config in configs:
        run = folder / Path(config).stem
        _prepare(run, config, sizes[0], overrides)
        for size in sizes:
            steps = {name: build_step(run, name, size) for name in names}
            seconds = time_interleaved(steps, torch.device("cpu"), repeats)
            del steps
            for name in names:
                median = statistics.median(seconds[name])
                yield RuntimeRow(
                    model_name(_config(run, name)),
                    name,
                    *size,
                    seconds=median,
                    images_per_s=size[0] / median,
                    speedup=median_ratio(seconds[EAGER], seconds[name]),
                    peak_mib=run_in_own_process(_peak, run, name, size),
                    size_mib=sum(file.stat().st_size for file in _files(run, name)) / 2**20,
                )


def unavailable() -> tuple[str, ...]:
    """Return the implementations that need bf16 instructions which this processor or its runtime lacks."""
    has_bf16 = {"PyTorch bf16": has_fast_bf16(torch.device("cpu")), "OpenVINO bf16": fastest_precision() == "bf16"}
    return tuple(name for name, available in has_bf16.items() if not available)


def build_step(run: Path, implementation: str, size: Size) -> Callable[[], list[Any]]:
    """Open a model and return a function that runs it on a batch of random images.

    Args:
        run: Folder of the model.
        implementation: A key of `IMPLEMENTATIONS`.
        size: Batch size, height and width of the images in pixels.
    """
    cfg, records = _config(run, implementation), _records(size)
    model = load_model(cfg, str(_path(run, implementation)))
    if implementation == STOCK:
        model = build_stock_detector(cfg, model).eval()

    def step() -> list[Any]:
        with torch.inference_mode(), inference_autocast(cfg):
            outputs: list[Any] = model(records)
        return outputs

    return step


def runtime_table(rows: Sequence[RuntimeRow]) -> Table:
    """Build the table of all implementations.

    Args:
        rows: The results.
    """
    caption = f"speed-up: over {EAGER}; peak memory: of a whole process that opens and runs the model"
    if missing := unavailable():
        caption += f"; left out without bf16 instructions: {', '.join(missing)}"
    table = Table(caption=caption)
    for heading in ("model", "images", "implementation"):
        table.add_column(heading)
    for heading in ("median", "images/s", "speed-up", "peak memory", "file"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.model,
            f"{row.batch}x3x{row.height}x{row.width}",
            row.implementation,
            format_time(row.seconds),
            f"{row.images_per_s:.2f}",
            f"{row.speedup:.2f}x",
            f"{row.peak_mib:.0f} MiB",
            f"{row.size_mib:.0f} MiB",
        )
    return table


def _prepare(run: Path, config: str, size: Size, overrides: Sequence[str]) -> None:
    """Write the weights and the exported files that do not exist yet."""
    run.mkdir(parents=True, exist_ok=True)
    if not (run / FINAL_NAME).is_file():
        cfg = load_config(config, ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", ".", *overrides])
        torch.manual_seed(0)
        model = build_model(cfg)
        spread_scores(model, _records(size))
        (run / CONFIG_NAME).write_text(cfg.dump())
        torch.save({"model": model.state_dict()}, run / FINAL_NAME)
    for name, kind in _FORMATS.items():
        if (run / name).exists():
            continue
        if name in _SOURCES:
            images = [record["image"].numpy() for record in _records((4, *size[1:]))]
            source = run / _SOURCES[name]
            quantize(source, run / name, images, read_metadata(model_file(source, kind)).entries())
        else:
            subject = load_detector(run, "", (), kind)
            program = trace(subject.graph, torch.zeros(TRACED_SIZE, dtype=torch.uint8))
            with unchecked(run / name) as path:
                write(program, path, kind, subject.graph.outputs, subject.metadata.entries())


def _records(size: Size) -> list[dict[str, Any]]:
    batch, height, width = size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
    return [{"image": image, "height": height, "width": width} for image in images]


def _path(run: Path, implementation: str) -> Path:
    name = IMPLEMENTATIONS[implementation][0]
    return model_file(run / name, _FORMATS[name]) if name in _FORMATS else run / name


def _config(run: Path, implementation: str) -> Any:
    path = _path(run, implementation)
    words = ["TEST.PRECISION", IMPLEMENTATIONS[implementation][1] or fastest_precision()]
    words += AS_DETECTRON2 if implementation == STOCK else []
    return load_model_config(path if is_exported(path) else run / CONFIG_NAME, words, training=False)


def _files(run: Path, implementation: str) -> tuple[Path, ...]:
    path = _path(run, implementation)
    return backend_of(path).files(path) if is_exported(path) else (path,)


def _peak(run: Path, implementation: str, size: Size) -> float:
    step = build_step(run, implementation, size)
    for _ in range(2):
        step()
    return resident_memory(peak=True)
