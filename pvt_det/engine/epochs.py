"""Convert a number of epochs to iterations, once the number of training images is known."""

from __future__ import annotations

import logging
import math
from fractions import Fraction

from detectron2.config import CfgNode

from pvt_det.config import validate_config
from pvt_det.config.architecture import is_multi_step
from pvt_det.data.loader import count_training_images
from pvt_det.utils.text import counted

logger = logging.getLogger(__name__)


def resolve_epochs(cfg: CfgNode) -> None:
    """Replace `SOLVER.EPOCHS` by iterations: set `MAX_ITER`, and adapt the keys that are counted in iterations.

    `STEPS` and `TEST.EVAL_PERIOD` keep their share of `MAX_ITER`. `WARMUP_ITERS` becomes at most a tenth of it, and
    `CHECKPOINT_PERIOD` shrinks with it.

    Args:
        cfg: A config whose data sets are registered, changed in place. `SOLVER.EPOCHS` is 0 afterwards.
    """
    solver, epochs = cfg.SOLVER, cfg.SOLVER.EPOCHS
    if not epochs:
        return
    images, batch = count_training_images(cfg), solver.IMS_PER_BATCH * solver.ACCUMULATE_STEPS
    iterations = math.ceil(epochs * images / batch)
    before = solver.MAX_ITER

    def scaled(count: int) -> int:
        return max(1, round(count * iterations / before))

    # A step at the very end would have no effect.
    steps = [step for step in dict.fromkeys(map(scaled, solver.STEPS)) if step < iterations]
    warmup, kept = min(solver.WARMUP_ITERS, iterations // 10), solver.WARMUP_ITERS
    solver.EPOCHS, solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS = 0, iterations, tuple(steps), warmup
    solver.CHECKPOINT_PERIOD = min(solver.CHECKPOINT_PERIOD, scaled(solver.CHECKPOINT_PERIOD))
    # Rounded up, so that the last period does not end shortly before the evaluation at the end.
    cfg.TEST.EVAL_PERIOD = math.ceil(Fraction(cfg.TEST.EVAL_PERIOD * iterations, before))
    validate_config(cfg, where=f"{counted(epochs, 'epoch')} of {counted(images, 'image')}")
    logger.info(
        "%s of %s in batches of %d: SOLVER.MAX_ITER %d%s, WARMUP_ITERS %d%s, CHECKPOINT_PERIOD %d; TEST.EVAL_PERIOD "
        "%s.",
        counted(epochs, "epoch"),
        counted(images, "image"),
        batch,
        iterations,
        f", STEPS {steps}" if is_multi_step(cfg) else "",
        warmup,
        " as before" if warmup == kept else "",
        solver.CHECKPOINT_PERIOD,
        cfg.TEST.EVAL_PERIOD or "0 (only at the end)",
    )
