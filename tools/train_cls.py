"""Train and evaluate an ImageNet classifier. Copy this script to change the data, the network or the loop.

    python tools/train_cls.py --model pvt_small --data imagenet
    torchrun --nproc-per-node 8 tools/train_cls.py --model pvt_small --data imagenet

`pvt-det train-cls` runs the same code without the class below.
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


class Trainer(ClassificationTrainer):
    """Builds what the config says. Return something else from the first two methods to train on that."""

    @classmethod
    def build_datasets(cls, cfg: TrainConfig, process: Process) -> tuple[ImageSource, ImageSource]:
        """Return the training and the validation images."""
        return super().build_datasets(cfg, process)

    @classmethod
    def build_model(cls, cfg: TrainConfig, num_classes: int) -> torch.nn.Module:
        """Return a network that maps N×3×H×W images to N×num_classes logits."""
        return super().build_model(cfg, num_classes)

    def evaluate(self) -> Accuracy:
        """Evaluate, and log how much GPU memory the run has needed; called after every `eval_every` epochs."""
        accuracy = super().evaluate()
        if self.process.device.type == "cuda":
            logging.getLogger("pvt_det").info("peak GPU memory %.1f GiB", torch.cuda.max_memory_allocated() / 2**30)
        return accuracy


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or with `--eval-only` evaluate, and return the exit code."""
    cfg = setup(argument_parser().parse_words(argv))
    with start_run(cfg) as process:
        if cfg.eval_only:
            evaluate(cfg, process)
            return 0
        trainer = Trainer(cfg, process)
        trainer.train()
        write_reports(trainer)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
