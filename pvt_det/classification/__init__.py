"""Train and evaluate image classifiers, for ImageNet pretraining. Works without Detectron2.

Importing the options (`argument_parser`, `TrainConfig`) does not import torch.
"""

from typing import TYPE_CHECKING

from pvt_det.classification.config import TrainConfig, argument_parser, load_train_config, setup
from pvt_det.utils.lazy import lazy_names

if TYPE_CHECKING:
    from pvt_det.classification.evaluator import Accuracy as Accuracy
    from pvt_det.classification.run import evaluate as evaluate
    from pvt_det.classification.run import start_run as start_run
    from pvt_det.classification.run import train as train
    from pvt_det.classification.run import write_reports as write_reports
    from pvt_det.classification.trainer import ClassificationTrainer as ClassificationTrainer

__all__ = [
    "Accuracy",
    "ClassificationTrainer",
    "TrainConfig",
    "argument_parser",
    "evaluate",
    "load_train_config",
    "setup",
    "start_run",
    "train",
    "write_reports",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Accuracy": "pvt_det.classification.evaluator",
        "ClassificationTrainer": "pvt_det.classification.trainer",
        "evaluate": "pvt_det.classification.run",
        "start_run": "pvt_det.classification.run",
        "train": "pvt_det.classification.run",
        "write_reports": "pvt_det.classification.run",
    },
)
