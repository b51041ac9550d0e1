"""Load the predictor that fits a trained model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

from pvt_det.inference.base import predictor_name
from pvt_det.inference.panoptic import PanopticPredictor
from pvt_det.inference.predictor import Predictor
from pvt_det.inference.segmentor import Segmentor
from pvt_det.run_folder import config_file
from pvt_det.runtimes.metadata import load_model_config

AnyPredictor: TypeAlias = Predictor | Segmentor | PanopticPredictor


def load_predictor(
    config: str | os.PathLike[str],
    weights: str | os.PathLike[str] = "",
    *,
    overrides: Sequence[str] = (),
    **options: Any,
) -> AnyPredictor:
    """Load the predictor of a run or a config, of the class that fits the model.

    Args:
        config: A run folder, a config file, or an exported file.
        weights: Weights of the model, in any form that `MODEL.WEIGHTS` accepts. "" selects those of the run.
        overrides: Config keys and values, alternating.
        options: Further arguments of the predictor. A `score_threshold` is left out for a `Segmentor`, which has none.

    Raises:
        CheckpointError: The weights or the signature are missing, damaged or do not match.
        ConfigError: The config or an option is invalid.
    """
    name = predictor_name(load_model_config(config_file(config), overrides, training=False))
    if name == "Segmentor":
        options.pop("score_threshold", None)
        return Segmentor(config, weights, overrides=overrides, **options)
    chosen = PanopticPredictor if name == "PanopticPredictor" else Predictor
    return chosen(config, weights, overrides=overrides, **options)
