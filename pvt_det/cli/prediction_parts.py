"""Predict on parts of the images with the options of `pvt-det predict`, and merge them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pvt_det.cli.prediction import Task, predict_on, unreadable
from pvt_det.errors import ConfigError, DataError, Interrupted
from pvt_det.inference.journal import Journal
from pvt_det.inference.merging import merge_parts
from pvt_det.inference.parts import PartsResult, open_plan, predict_parts
from pvt_det.inference.sources import Source
from pvt_det.run_folder import DETECTIONS_NAME, PANOPTIC_NAME
from pvt_det.utils.lock import FolderLock
from pvt_det.utils.paths import folder_fault, similar_path
from pvt_det.utils.signals import termination_reported
from pvt_det.utils.text import counted, listed


def predict_in_parts(args: argparse.Namespace, load: Callable[[], Task[Any]], sources: Sequence[Source]) -> int:
    """Predict on one part of the inputs, or on each that no other process has claimed.

    Args:
        args: Parsed options of `pvt-det predict`, with `part` or `parts`.
        load: Loads the model.
        sources: All inputs.

    Returns:
        The exit code.
    """
    if Journal(args.output).path.exists():
        raise ConfigError(
            f"{args.output} contains an unfinished prediction that is not divided. Leave out --part and --parts to "
            "continue with it, or choose another folder with --output."
        )
    number, count = args.part or (0, args.parts)
    with termination_reported(args.resume_command):
        task = load()
        settings = task.open_files(Journal(args.output), args.output).settings
        plan = open_plan(args.output, sources, count, settings, args.batch_size)
        signal: str | None = None

        def predict(folder: Path, part: Sequence[Source], check: Callable[[], None]) -> tuple[list[str], str]:
            nonlocal signal
            journal = Journal(folder)
            if journal.images:
                print(f"continuing after {counted(journal.images, 'image')}")
            run = predict_on(args, task, part, journal, check)
            signal = run.stop_signal
            return run.errors, task.count(journal)

        def check_stop() -> None:
            if signal is not None:  # it came when the last batch of a part was under way
                raise Interrupted(f"by {signal}, after a part. Continue with: {args.resume_command}")

        numbers = [number] if number else range(1, count + 1)
        done = predict_parts(plan, numbers, sources, predict, check_stop=check_stop)
    _report(args, number, count, done)
    if done.errors:
        raise unreadable(len(done.errors), sum(len(plan.parts[part - 1]) for part in done.finished), "files")
    return 0


def _report(args: argparse.Namespace, number: int, count: int, done: PartsResult) -> None:
    if number and done.busy:
        raise ConfigError(f"part {number} of {count}: {done.busy[number]} is working on it. Wait for it to end.")
    if number and done.skipped:
        print(f"part {number} of {count} was finished before")
    elif done.busy:
        others = [f"{part} ({holder})" for part, holder in done.busy.items()]
        print(f"no part is left; other processes are working on {listed(others)}")
    elif not number:
        print(f"all {counted(count, 'part')} are finished. Merge them with: pvt-det predict --merge {args.output}")


def merge(args: argparse.Namespace) -> int:
    """Merge the parts of a prediction.

    Args:
        args: Parsed options of `pvt-det predict`, with `merge`.

    Returns:
        The exit code.
    """
    if fault := folder_fault(args.merge):
        raise DataError(f"{args.merge} {fault}.{similar_path(args.merge)} Expected the --output of --part or --parts.")
    with FolderLock(args.merge):
        merged = merge_parts(args.merge)
    for error in merged.errors:
        print(f"skipped: {error}", file=sys.stderr)
    noun = {DETECTIONS_NAME: "object", PANOPTIC_NAME: "segment"}.get(merged.tables[0].name)
    counts = f"{counted(merged.objects, noun)} in " if noun else ""
    print(f"{counts}{counted(merged.images, 'image')}: {', '.join(map(str, merged.tables))}")
    if merged.errors:
        raise unreadable(len(merged.errors), merged.files, "files")
    return 0
