"""Train a detector or segmentor from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from pvt_det import api
from pvt_det.engine.launch import torchrun_group
from pvt_det.engine.run_config import build_run_config, check_run
from pvt_det.functions.call import Data, PathLike, data_options, library_call, override_words, patterns
from pvt_det.inference.load import load_predictor
from pvt_det.inference.panoptic import PanopticPredictor
from pvt_det.inference.predictor import Predictor
from pvt_det.inference.segmentor import Segmentor

_RESUME = "the same call with resume=True"


@dataclass(frozen=True)
class TrainingResults:
    """What a training run returned.

    Attributes:
        metrics: Final metrics in percent by task and name, such as `metrics["bbox"]["AP"]`. Empty without validation
            data.
        output: The run folder, with checkpoints, logs and the model card.
    """

    metrics: dict[str, Any]
    output: Path

    @cached_property
    def predictor(self) -> Predictor | Segmentor | PanopticPredictor:
        """A `Predictor`, `Segmentor` or `PanopticPredictor` with the best weights of the run.

        It is built when it is first used.
        """
        return load_predictor(self.output)


def train(
    config: PathLike | CfgNode,
    *,
    train: Data | Sequence[Data] | None = None,
    val: Data | None = None,
    output: PathLike | None = None,
    overrides: Mapping[str, Any] | None = None,
    hooks: Sequence[HookBase] = (),
    writers: Sequence[EventWriter] = (),
    augmentations: Sequence[Any] = (),
    resume: bool = False,
    allow_partial: Sequence[str] = (),
    allow_change: Sequence[str] = (),
) -> TrainingResults:
    """Train a detector or segmentor, evaluate it, and write its model card, as `pvt-det train` does.

    In a script that `torchrun` starts, every process calls this function. They train together, and all get the results.

    Args:
        config: Name of a recipe, such as "retinanet_pvt_small", path of a config file, or a config, which is not
            changed.
        train: Annotations in COCO's format and the folder of their images, to train on. For a semantic segmentation
            model, the folder of the label maps and the folder of the images. All can be shards or URLs. A list of such
            pairs trains on several data sets; DATASETS.TRAIN_WEIGHTS sets their shares. None takes what the config
            names.
        val: The same for the data to evaluate on. None takes what the config names; without any, nothing is evaluated.
        output: Folder for everything that the run writes. None takes OUTPUT_DIR of the config.
        overrides: Values by config key, such as `{"SOLVER.MAX_ITER": 1000}`.
        hooks: Detectron2's hooks, called in every process after the hooks of the trainer. Their exceptions end the run.
        writers: Detectron2's writers of metrics, which the main process uses in addition to `metrics.json` and
            TensorBoard. They are closed when training ends.
        augmentations: Augmentations of Detectron2 or transforms of `torchvision.transforms.v2`, applied to training
            images before the recipe's own flipping, cropping and resizing.
        resume: Whether to resume from the last checkpoint in the output folder, if there is one.
        allow_partial: Patterns of keys that may be missing from or unexpected in MODEL.WEIGHTS, such as "head.*".
        allow_change: With `resume`, config keys that may differ from the checkpoint's, or patterns such as "INPUT.*".
            The key "augmentations" is for the argument `augmentations`.

    Returns:
        The metrics, the run folder and a predictor.

    Raises:
        ConfigError: A config key, an argument or the output folder is wrong.
        DataError: The data cannot be used.
        CheckpointError: Weights or a checkpoint are missing, damaged or do not fit.
        NumericError: The run diverged.
        Interrupted: Ctrl-C or SIGTERM stopped the run. It is saved, and the same call with `resume=True` continues it.
    """
    with library_call():
        allow_partial, allow_change = patterns("allow_partial", allow_partial), patterns("allow_change", allow_change)
        source = config if isinstance(config, CfgNode) else os.fspath(config)
        words = override_words(overrides)
        kind = build_run_config(source, {}, words)
        options = data_options("train", train, "train", kind) | data_options("val", val, "val", kind)
        cfg = build_run_config(source, {**options, "output": None if output is None else os.fspath(output)}, words)
        file = "" if isinstance(source, CfgNode) else source
        check_run(cfg, file, training=True, resume=resume, allow_partial=allow_partial, allow_change=allow_change)
        with torchrun_group(cfg.MODEL.DEVICE):
            metrics = api.train(
                cfg,
                config_file=file,
                resume=resume,
                allow_partial=allow_partial,
                allow_change=allow_change,
                resume_command=_RESUME,
                hooks=hooks,
                writers=writers,
                augmentations=augmentations,
            )
            metrics = comm.all_gather(metrics)[0]
    return TrainingResults(metrics, Path(cfg.OUTPUT_DIR))
