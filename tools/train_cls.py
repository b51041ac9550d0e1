"""Train and evaluate an ImageNet classifier. Copy this script to change the data, the model or the training loop.

    python tools/train_cls.py --model pvt_small --data imagenet
    torchrun --nproc-per-node 8 tools/train_cls.py --model pvt_small --data imagenet

`pvt-det train-cls` does the same without the class below.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import torch

from pvt_det.classification import (
    Accuracy,
    ClassificationTrainer,
    TrainConfig,
    argument_parser,
    evaluate,
    setup,
    start_run,
    write_reports,
)
from pvt_det.data.imagenet.folders import ImageSource
from pvt_det.utils.cli import run_cli
from pvt_det.utils.distributed import Process
from pvt_det.utils.resume import resume_command


class Trainer(ClassificationTrainer):
    """The place for your own parts. Override a method to change the data, the model or the evaluation."""

    @classmethod
    def build_datasets(cls, cfg: TrainConfig, process: Process) -> tuple[ImageSource, ImageSource]:
        """Build the training and validation images."""
        return super().build_datasets(cfg, process)

    @classmethod
    def build_model(cls, cfg: TrainConfig, num_classes: int) -> torch.nn.Module:
        """Build a model that maps images (`N×3×H×W`) to logits (`N×num_classes`)."""
        return super().build_model(cfg, num_classes)

    def evaluate(self) -> Accuracy:
        """Evaluate and log the peak GPU memory. Called every `eval_every` epochs."""
        accuracy = super().evaluate()
        if self.process.device.type == "cuda":
            logging.getLogger("pvt_det").info("peak GPU memory %.1f GiB", torch.cuda.max_memory_allocated() / 2**30)
        return accuracy


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or evaluate with `--eval-only`, and return the exit code."""
    cfg = setup(argument_parser().parse_words(argv))
    with start_run(cfg, resume_command(cfg.resume)) as process:
        if cfg.eval_only:
            evaluate(cfg, process)
            return 0
        trainer = Trainer(cfg, process)
        trainer.train()
        write_reports(trainer)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
