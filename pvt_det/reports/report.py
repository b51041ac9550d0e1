"""The report page of a finished run, from the files in its folder."""

from __future__ import annotations

from pathlib import Path

from detectron2.data import DatasetCatalog

from pvt_det.config import load_config
from pvt_det.data.images import read_image
from pvt_det.data.sets import register_datasets
from pvt_det.errors import DataError, PvtDetError
from pvt_det.reports.page import Background, read_history, report_page
from pvt_det.reports.pictures import ImageFile
from pvt_det.run_folder import CONFIG_NAME, METRICS_NAME, Run, load_run
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import make_place


def write_report(run: Path, output: Path, base: Path | None = None) -> None:
    """Write a page about a run.

    Args:
        run: its output folder.
        output: the page.
        base: the folder of a run to compare it with.

    Raises:
        ConfigError: the page cannot be written there.
        DataError: a file of the run is missing or broken, or it was evaluated on several data sets.
    """
    make_place(output)
    about, other = load_run(run), None if base is None else load_run(base)
    for each in (about, other) if other else (about,):
        _require_one_data_set(each)
    text = report_page(about, _background(about), other)
    write_atomically(output, text)


def _require_one_data_set(run: Run) -> None:
    several = [
        name for name, values in run.metrics.items() if any(isinstance(value, dict) for value in values.values())
    ]
    if several:
        raise DataError(
            f"{run.folder} was evaluated on several data sets ({', '.join(several)}), and a page tells of one: "
            "evaluate on one of them, by DATASETS.TEST."
        )


def _background(run: Run) -> Background:
    config = run.folder / CONFIG_NAME
    images, why = _images(run, config)
    return Background(
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        history=read_history(run.folder / METRICS_NAME),
        images=images,
        read=lambda file: read_image(file, "RGB"),
        without_images=why,
    )


def _images(run: Run, config: Path) -> tuple[dict[int, ImageFile], str]:
    """The evaluated images by id, or why they cannot be had: a page without pictures is better than none."""
    if not run.results_file.is_file():
        return {}, "the run has no detections"
    if not config.is_file():
        return {}, f"{config} is missing"
    try:
        cfg = load_config(config)
        register_datasets(cfg, training=False)
        if run.dataset not in cfg.DATASETS.TEST:
            return {}, f"{config} names no data set {run.dataset}"
        records = DatasetCatalog.get(run.dataset)
    except (PvtDetError, OSError) as error:
        return {}, str(error)
    found = {r["image_id"]: ImageFile(Path(r["file_name"]), r["annotations"]) for r in records}
    missing = next((image.file for image in found.values() if not image.file.is_file()), None)
    return ({}, f"{missing} is missing") if missing else (found, "")
