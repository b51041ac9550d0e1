"""Write the results of a run, which `pvt-det compare`, `report` and `card` read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from pvt_det.config.architecture import model_name
from pvt_det.evaluation.coco import RESULTS_FILE
from pvt_det.models.complexity import count_parameters
from pvt_det.run_folder import inference_folder, save_results
from pvt_det.utils.environment import environment
from pvt_det.utils.files import write_atomically


def write_results(
    cfg: CfgNode, model: nn.Module, metrics: dict[str, Any], *, config_file: str, iterations: int, best: dict[str, Any]
) -> Path:
    """Write `results.json`: the model, the recipe, the data set and the metrics.

    Metrics without a value (no ground truth of a class or size) are null, because JSON has no NaN.

    Args:
        cfg: The run's config.
        model: The model, for its number of parameters.
        metrics: Metrics in percent by task, as returned by `pvt_det.engine.evaluate.evaluate`.
        config_file: Path of the config file that the run was started with.
        iterations: Number of optimizer steps, or 0 if unknown.
        best: Name, value and iteration of the best metric. Empty if there is none.

    Returns:
        Path of the file.
    """
    dataset = cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else ""
    results = {
        "config_file": config_file,
        "model": model_name(cfg),
        "recipe": recipe(cfg),
        "dataset": dataset,
        "parameters": count_parameters(model),
        "metrics": metrics,
        "best": best,
        "results_file": _relative_detections(cfg, dataset),
        "annotations": MetadataCatalog.get(dataset).get("json_file", "") if dataset else "",
        "iterations": iterations,
        "seed": cfg.SEED,
        "environment": environment(torch.device(cfg.MODEL.DEVICE)),
    }
    return save_results(Path(cfg.OUTPUT_DIR), results)


def recipe(cfg: CfgNode) -> str:
    """Describe the training recipe: optimizer, batch size, schedule and image sizes.

    Two runs can be compared if their recipes are equal.

    Args:
        cfg: The run's config.

    Returns:
        The recipe in one line.
    """
    solver, size = cfg.SOLVER, cfg.INPUT
    short = "-".join(str(side) for side in sorted({min(size.MIN_SIZE_TRAIN), max(size.MIN_SIZE_TRAIN)}))
    return (
        f"{solver.OPTIMIZER} lr {solver.BASE_LR:g}, batch {solver.IMS_PER_BATCH * solver.ACCUMULATE_STEPS}, "
        f"{solver.MAX_ITER} iterations, short side {short}"
    )


def trim_metrics(path: Path, start_iteration: int) -> None:
    """Remove the lines of `metrics.json` that a resumed run will write again, and incomplete lines.

    Args:
        path: Path of `metrics.json`. It may not exist.
        start_iteration: The first iteration of the resumed run. Its line and later ones are removed.
    """
    if not path.exists():
        return
    kept = [
        line
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if _before(line, start_iteration)
    ]
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def _before(line: str, start_iteration: int) -> bool:
    try:
        return int(json.loads(line)["iteration"]) < start_iteration
    except (ValueError, KeyError, TypeError):
        return False


def _relative_detections(cfg: CfgNode, dataset: str) -> str:
    if not dataset:
        return ""
    path = inference_folder(cfg.OUTPUT_DIR, dataset) / RESULTS_FILE
    return str(path.relative_to(cfg.OUTPUT_DIR)) if path.exists() else ""
