"""ImageNet pretraining: trains and evaluates classifiers. Works without Detectron2."""

from pvt_det.classification.arguments import argument_parser, setup
from pvt_det.classification.config import TrainConfig, load_train_config
from pvt_det.classification.evaluator import Accuracy
from pvt_det.classification.run import evaluate, start_run, train, write_reports
from pvt_det.classification.trainer import Callback, ClassificationTrainer

__all__ = [
    "Accuracy",
    "Callback",
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
