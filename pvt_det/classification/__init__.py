"""Train and evaluate image classifiers, for ImageNet pretraining. Works without Detectron2."""

from pvt_det.classification.config import TrainConfig, argument_parser, load_train_config, setup
from pvt_det.classification.evaluator import Accuracy
from pvt_det.classification.run import evaluate, start_run, train, write_reports
from pvt_det.classification.trainer import ClassificationTrainer

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
