"""Evaluate a trained detector or segmentor from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from pvt_det import api
from pvt_det.engine.launch import torchrun_group
from pvt_det.engine.run_config import build_run_config, check_run, find_run
from pvt_det.functions.call import Data, PathLike, data_options, library_call, override_words, patterns
from pvt_det.functions.messages import DATA
from pvt_det.results import load_run
from pvt_det.run_folder import evaluation_folder

_NAMES = DATA | dict.fromkeys(("val-json", "val-labels", "val-images"), "data")


@dataclass(frozen=True)
class EvaluationResults:
    """What an evaluation returned.

    Attributes:
        metrics: Metrics in percent by task and name, such as `metrics["bbox"]["AP"]`.
        output: The folder with `evaluation.json`, the detections and the page `report.html`.
    """

    metrics: dict[str, Any]
    output: Path


def evaluate(
    run: PathLike,
    *,
    data: Data | None = None,
    weights: PathLike = "",
    output: PathLike | None = None,
    overrides: Mapping[str, Any] | None = None,
    against: PathLike | None = None,
    allow_partial: Sequence[str] = (),
    public_key: PathLike = "",
) -> EvaluationResults:
    """Evaluate a trained detector or segmentor, and write a report page, as `pvt-det eval` does.

    In a script that `torchrun` starts, every process calls this function. They share the images, and all get the
    results.

    Args:
        run: A run folder, a config file, the name of a recipe, or an exported file, which needs `data`.
        data: Annotations in COCO's format and the folder of their images. For a semantic segmentation model, the folder
            of the label maps and the folder of the images. All can be shards or URLs. None takes the validation data of
            the run.
        weights: Weights of the model, in any form that MODEL.WEIGHTS accepts. "" takes the run's best checkpoint.
        output: Folder for the results. None takes `evaluation/DATASET` in the run folder, and for `mine.onnx` the
            folder `mine_onnx_evaluation` beside it.
        overrides: Values by config key, such as `{"TEST.AUG.ENABLED": True}`.
        against: Run folder or exported file to compare with on the page, or None.
        allow_partial: Patterns of keys that may be missing from or unexpected in the weights, such as "head.*".
        public_key: PEM file with which the signature of the run is verified before anything in it is read. "" verifies
            nothing.

    Returns:
        The metrics and the folder of the results.

    Raises:
        ConfigError: A config key, an argument or the output folder is wrong.
        DataError: The data cannot be used.
        CheckpointError: The weights are missing, damaged or do not fit, or the signature does not match.
    """
    with library_call(_NAMES):
        allow_partial = patterns("allow_partial", allow_partial)
        if against is not None:
            # Fails early: the evaluation may take hours.
            load_run(Path(against))
        words = override_words(overrides)
        path, settings = find_run(os.fspath(run), os.fspath(weights), words, os.fspath(public_key))
        kind = build_run_config(path, {}, words, training=False)
        options = data_options("data", data, "val", kind)
        options |= {} if output is None else {"output": os.fspath(output)}
        cfg = build_run_config(path, options, words, settings=settings, training=False)
        check_run(cfg, path, training=False, resume=False, allow_partial=allow_partial)
        with torchrun_group(cfg.MODEL.DEVICE):
            metrics = api.evaluate(
                cfg,
                config_file=str(path),
                allow_partial=allow_partial,
                page=True,
                against=None if against is None else Path(against),
            )
            metrics = comm.all_gather(metrics)[0]
        return EvaluationResults(metrics, evaluation_folder(cfg, cfg.DATASETS.TEST[0]))
