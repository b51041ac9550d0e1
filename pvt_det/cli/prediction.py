"""Run a model with the options of `pvt-det predict`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic

from detectron2.config import CfgNode
from rich.progress import Progress

from pvt_det.cli.predict import OVERLAP
from pvt_det.errors import ConfigError, DataError
from pvt_det.inference import SCORE_THRESHOLD
from pvt_det.inference.files import LABELS_NAME, LabelFiles, OutputFiles, Prediction, PredictionFiles
from pvt_det.inference.journal import Journal
from pvt_det.inference.panoptic import PanopticPredictor
from pvt_det.inference.panoptic_files import PanopticFiles
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


@dataclass(frozen=True)
class Task(Generic[Prediction]):
    """A model that is ready to predict with the options of the command.

    Attributes:
        cfg: Config of the model.
        predict: Returns one prediction for each of a list of images.
        prepare: Resizes an image for the model.
        open_files: Returns the output files for a journal, and for the folder of drawings and the like.
        count: Says how much was found, such as "4 objects in 1 image".
        summarize: Says where it was written, for images and videos, as the end of a sentence that says how much.
        classes: Indices of the classes to keep. None keeps all.
        start_tracks: Starts to track the objects of a video. None tracks nothing.
    """

    cfg: CfgNode
    predict: Callable[[Sequence[Any]], Sequence[Prediction]]
    prepare: Prepare
    open_files: Callable[[Journal, Path], OutputFiles[Prediction]]
    count: Callable[[Journal], str]
    summarize: Callable[[OutputFiles[Prediction], Sequence[Source]], str]
    classes: list[int] | None = None
    start_tracks: Callable[[float], Track[Prediction]] | None = None


def detect(args: argparse.Namespace, overrides: list[str]) -> Task[Any]:
    """Load a detector.

    Args:
        args: Parsed options of `pvt-det predict`.
        overrides: Config keys and values, alternating.

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
    formats = sorted({*(args.format or ())} & FORMATS.keys())
    settings = {"model": predictor.fingerprint(), **_settings(args, "classes", "tile", "overlap", "stride")}
    settings |= {"--score-threshold": threshold, "--track": args.track, "--format": formats or None}

    def open_files(journal: Journal, folder: Path) -> PredictionFiles:
        return PredictionFiles(
            journal,
            predictor.class_names,
            pictures=not args.no_pictures,
            crops=args.crops,
            formats=[FORMATS[name]() for name in formats],
            settings=settings,
            folder=folder,
        )

    def summarize(files: OutputFiles[Any], sources: Sequence[Source]) -> str:
        written = "".join(f", {files.folder / name}" for name in formats)
        hint = "" if files.journal.objects or not files.journal.images else _hint(args, threshold)
        return f": {files.table(DETECTIONS_NAME)}{written}{files.drawn(sources)}{hint}"

    def count(journal: Journal) -> str:
        return f"{counted(journal.objects, 'object')} in {counted(journal.images, 'image')}"

    start_tracks = partial(Tracker, score_threshold=threshold) if args.track else None
    classes = _class_indices(args.classes, predictor.class_names)
    return Task(predictor.cfg, model, model.preparation, open_files, count, summarize, classes, start_tracks)


def _hint(args: argparse.Namespace, threshold: float) -> str:
    hint = f"; no object scores above {threshold:g}. Lower --score-threshold to see more"
    if Path(args.config_file, CONFIG_NAME).is_file():
        hint += f"; `pvt-det report {args.config_file}` names the one with the best F1"
    return hint


def segment(args: argparse.Namespace, overrides: list[str]) -> Task[Any]:
    """Load a semantic segmentation model.

    Args:
        args: Parsed options of `pvt-det predict`.
        overrides: Config keys and values, alternating.

    Raises:
        ConfigError: An option or the config is invalid.
        CheckpointError: The weights are missing, damaged, or do not match the config.
    """
    _refuse(args, "semantic", "score_threshold", *_DETECTOR_OPTIONS)
    segmentor = Segmentor(args.config_file, args.weights, **_predictor_options(args, overrides))
    settings = {"model": segmentor.fingerprint(), **_settings(args, "classes", "stride")}

    def open_files(journal: Journal, folder: Path) -> LabelFiles:
        return LabelFiles(
            journal, segmentor.class_names, pictures=not args.no_pictures, settings=settings, folder=folder
        )

    def summarize(files: OutputFiles[Any], sources: Sequence[Source]) -> str:
        return f": {files.folder / LABELS_NAME}{files.drawn(sources)}"

    def count(journal: Journal) -> str:
        return counted(journal.images, "label map")

    classes = _class_indices(args.classes, segmentor.class_names)
    return Task(segmentor.cfg, segmentor, segmentor.preparation, open_files, count, summarize, classes)


def segment_panoptic(args: argparse.Namespace, overrides: list[str]) -> Task[Any]:
    """Load a panoptic segmentation model.

    Args:
        args: Parsed options of `pvt-det predict`.
        overrides: Config keys and values, alternating.

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

    def open_files(journal: Journal, folder: Path) -> PanopticFiles:
        return PanopticFiles(
            journal,
            predictor.class_names,
            predictor.thing_count,
            pictures=not args.no_pictures,
            settings=settings,
            folder=folder,
        )

    def summarize(files: OutputFiles[Any], sources: Sequence[Source]) -> str:
        masks = (files.folder / PANOPTIC_NAME).with_suffix("")
        return f": {files.table(PANOPTIC_NAME)}, {masks}{files.drawn(sources)}"

    def count(journal: Journal) -> str:
        return f"{counted(journal.objects, 'segment')} in {counted(journal.images, 'image')}"

    classes = _class_indices(args.classes, predictor.class_names)
    return Task(predictor.cfg, predictor, predictor.preparation, open_files, count, summarize, classes)


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


def predict_on(
    args: argparse.Namespace,
    task: Task[Any],
    sources: Sequence[Source],
    journal: Journal,
    check: Callable[[], None] = lambda: None,
) -> PredictionRun[Any]:
    """Predict on images, videos and streams, and write the results.

    Args:
        args: Parsed options of `pvt-det predict`.
        task: The model.
        sources: The images, videos and streams.
        journal: The predictions so far, in the folder for the tables.
        check: Called before each batch. It may raise an error.

    Returns:
        The run, which has ended.
    """
    files = task.open_files(journal, args.output)

    def predict(images: Sequence[Any]) -> Sequence[Any]:
        check()
        return task.predict(images)

    with _progress() as progress:
        steps = PredictionRun(
            predict,
            files,
            batch_size=args.batch_size,
            progress=progress,
            classes=task.classes,
            stride=args.stride or 1,
            start_tracks=task.start_tracks,
            quiet=args.quiet,
            resume_command=args.resume_command,
            prepare=task.prepare,
            workers=_worker_count(task.cfg),
        )
        steps.run(sources)
    return steps


def unreadable(count: int, of: int, what: str) -> DataError:
    """Build the error for inputs that could not be read, which ends the command after the results are written.

    Args:
        count: Number of inputs that could not be read.
        of: Number of all inputs.
        what: What they are: "files" or "inputs".
    """
    return DataError(f"{count} of {of} {what} could not be read completely. Each is named above, after 'skipped:'.")


def _worker_count(cfg: CfgNode) -> int:
    return min(cfg.DATALOADER.NUM_WORKERS, available_cores())


def _settings(args: argparse.Namespace, *names: str) -> dict[str, object]:
    return {f"--{name}": getattr(args, name) for name in names}


def _class_indices(names: Sequence[str] | None, known: Sequence[str]) -> list[int] | None:
    if names is None:
        return None
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
