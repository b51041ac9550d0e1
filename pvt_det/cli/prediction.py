"""Run a model with the options of `pvt-det predict`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from rich.progress import Progress

from pvt_det.cli.predict import OVERLAP
from pvt_det.errors import ConfigError
from pvt_det.inference import SCORE_THRESHOLD
from pvt_det.inference.files import LABELS_NAME, LabelFiles, OutputFiles, Prediction, PredictionFiles
from pvt_det.inference.panoptic import PanopticPredictor
from pvt_det.inference.panoptic_files import PanopticFiles
from pvt_det.inference.part import Part
from pvt_det.inference.predictor import Predictor
from pvt_det.inference.reading import Prepare
from pvt_det.inference.run import PredictionRun, Track
from pvt_det.inference.segmentor import Segmentor
from pvt_det.inference.sources import Source
from pvt_det.inference.tiling import TiledPredictor
from pvt_det.inference.tracking import LOWEST_SCORE, Tracker, require_tracking
from pvt_det.interop.formats import FORMATS
from pvt_det.run_folder import CONFIG_NAME, DETECTIONS_NAME, PANOPTIC_NAME
from pvt_det.utils.console import Console
from pvt_det.utils.environment import available_cores
from pvt_det.utils.progress import Bars
from pvt_det.utils.text import counted, did_you_mean

# Options of `pvt-det predict` that only detectors have.
_DETECTOR_OPTIONS = ("crops", "tile", "overlap", "format", "track")


def detect(
    args: argparse.Namespace, overrides: list[str], sources: Sequence[Source], part: Part
) -> tuple[list[str], str]:
    """Detect objects.

    Args:
        args: Parsed options of `pvt-det predict`.
        overrides: Config keys and values, alternating.
        sources: The images, videos and streams.
        part: What an unfinished run has written to the output folder.

    Returns:
        An error message for each source that could not be read, and a summary to print.

    Raises:
        ConfigError: An option or the config is invalid.
        CheckpointError: The weights are missing, damaged, or do not match the config.
    """
    if args.overlap is not None and args.tile is None:
        raise ConfigError("--overlap has no effect without --tile PIXELS. Add --tile, or leave --overlap out.")
    if args.track:
        require_tracking()
    threshold = SCORE_THRESHOLD if args.score_threshold is None else args.score_threshold
    lowest = min(threshold, LOWEST_SCORE) if args.track else threshold
    predictor = Predictor(
        args.config_file,
        args.weights,
        score_threshold=lowest,
        **_predictor_options(args, overrides),
    )
    if predictor.score_threshold != lowest:  # by an override
        threshold = predictor.score_threshold
    model: Predictor | TiledPredictor = predictor
    if args.tile is not None:
        model = TiledPredictor(predictor, args.tile, OVERLAP if args.overlap is None else args.overlap)
    settings = {"model": predictor.fingerprint(), **_settings(args, "classes", "tile", "overlap", "stride")}
    formats = sorted({*(args.format or ())} & FORMATS.keys())
    # The model does not depend on the threshold if it also returns lower scores.
    settings |= {"--track": threshold if args.track else None, "--format": formats or None}
    files = PredictionFiles(
        part,
        predictor.class_names,
        pictures=not args.no_pictures,
        crops=args.crops,
        formats=[FORMATS[name]() for name in formats],
        settings=settings,
    )
    start_tracks = partial(Tracker, score_threshold=threshold) if args.track else None
    faults = _predict(args, predictor.cfg, model, model.preparation, files, sources, start_tracks)
    hint = f"; no object scores above {threshold:g}. Lower --score-threshold to see more"
    if Path(args.config_file, CONFIG_NAME).is_file():
        hint += f"; `pvt-det report {args.config_file}` names the one with the best F1"
    counts = f"{counted(part.objects, 'object')} in {counted(part.images, 'image')}"
    written = "".join(f", {files.folder / name}" for name in formats)
    summary = f"{counts}: {files.folder / DETECTIONS_NAME}{written}{files.drawn(sources)}"
    return faults, summary + ("" if part.objects or not part.images else hint)


def segment(
    args: argparse.Namespace, overrides: list[str], sources: Sequence[Source], part: Part
) -> tuple[list[str], str]:
    """Segment images.

    Args:
        args: Parsed options of `pvt-det predict`.
        overrides: Config keys and values, alternating.
        sources: The images, videos and streams.
        part: What an unfinished run has written to the output folder.

    Returns:
        An error message for each source that could not be read, and a summary to print.

    Raises:
        ConfigError: An option or the config is invalid.
        CheckpointError: The weights are missing, damaged, or do not match the config.
    """
    _refuse(args, "semantic", "score_threshold", *_DETECTOR_OPTIONS)
    segmentor = Segmentor(args.config_file, args.weights, **_predictor_options(args, overrides))
    settings = {"model": segmentor.fingerprint(), **_settings(args, "classes", "stride")}
    files = LabelFiles(part, segmentor.class_names, pictures=not args.no_pictures, settings=settings)
    faults = _predict(args, segmentor.cfg, segmentor, segmentor.preparation, files, sources)
    return faults, f"{counted(part.images, 'label map')}: {files.folder / LABELS_NAME}{files.drawn(sources)}"


def segment_panoptic(
    args: argparse.Namespace, overrides: list[str], sources: Sequence[Source], part: Part
) -> tuple[list[str], str]:
    """Divide images into objects and the pixels of other classes.

    Args:
        args: Parsed options of `pvt-det predict`.
        overrides: Config keys and values, alternating.
        sources: The images, videos and streams.
        part: What an unfinished run has written to the output folder.

    Returns:
        An error message for each source that could not be read, and a summary to print.

    Raises:
        ConfigError: An option or the config is invalid.
        CheckpointError: The weights are missing, damaged, or do not match the config.
    """
    _refuse(args, "panoptic", *_DETECTOR_OPTIONS)
    predictor = PanopticPredictor(
        args.config_file,
        args.weights,
        score_threshold=args.score_threshold,
        **_predictor_options(args, overrides),
    )
    settings = {"model": predictor.fingerprint(), **_settings(args, "classes", "stride")}
    files = PanopticFiles(
        part, predictor.class_names, predictor.thing_count, pictures=not args.no_pictures, settings=settings
    )
    faults = _predict(args, predictor.cfg, predictor, predictor.preparation, files, sources)
    counts = f"{counted(part.objects, 'segment')} in {counted(part.images, 'image')}"
    return faults, f"{counts}: {files.folder / PANOPTIC_NAME}, {files.masks}{files.drawn(sources)}"


def _predictor_options(args: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    return {
        "overrides": overrides,
        "batch_size": args.batch_size,
        "device": args.device,
        "public_key": args.public_key,
    }


def _refuse(args: argparse.Namespace, kind: str, *names: str) -> None:
    """Raise `ConfigError` if an option is given that is for detectors only."""
    for name in names:
        given = getattr(args, name)
        if given is not None and given is not False:
            raise ConfigError(
                f"--{name.replace('_', '-')} is for detectors, but {args.config_file} is a {kind} segmentation model. "
                "Leave it out."
            )


def _predict(
    args: argparse.Namespace,
    cfg: CfgNode,
    predict: Callable[[Sequence[Any]], Sequence[Prediction]],
    prepare: Prepare,
    files: OutputFiles[Prediction],
    sources: Sequence[Source],
    start_tracks: Callable[[float], Track[Prediction]] | None = None,
) -> list[str]:
    classes = _class_indices(args.classes, files.class_names) if args.classes else None
    with _progress() as progress:
        steps = PredictionRun(
            predict,
            files,
            batch_size=args.batch_size,
            progress=progress,
            classes=classes,
            stride=args.stride or 1,
            start_tracks=start_tracks,
            quiet=args.quiet,
            resume_command=args.resume_command,
            prepare=prepare,
            workers=_worker_count(cfg),
        )
        return steps.run(sources)


def _worker_count(cfg: CfgNode) -> int:
    return min(cfg.DATALOADER.NUM_WORKERS, available_cores())


def _settings(args: argparse.Namespace, *names: str) -> dict[str, object]:
    return {f"--{name}": getattr(args, name) for name in names}


def _class_indices(names: Sequence[str], known: Sequence[str]) -> list[int]:
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(
                f"--classes {name}: unknown class.{hint} The classes of the model are {', '.join(known)}."
            )
    # An object class and another class of a panoptic model may have the same name.
    return [index for index, name in enumerate(known) if name in names]


def _progress() -> Progress:
    console = Console(stderr=True)
    return Bars(console, lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
