"""Training hooks: metrics, time and memory, checkpoints, and evaluation with the best one and early stopping."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from pvt_det.engine.console import peak_memory_gib
from pvt_det.errors import ConfigError, Interrupted, NumericError, PvtDetError
from pvt_det.run_folder import BEST_NAME
from pvt_det.utils.logs import OptionalWriters
from pvt_det.utils.rng import preserve_random_state
from pvt_det.utils.text import listed

logger = logging.getLogger(__name__)


class MetricsHook(HookBase):
    """Writes metrics like Detectron2's `PeriodicWriter`. A writer that fails is dropped, and training continues.

    Args:
        writers: Detectron2's writers.
        period: Number of iterations between writes. Metrics are also written at each evaluation.
    """

    def __init__(self, writers: Sequence[EventWriter], period: int) -> None:
        self._writers = OptionalWriters([(f"Metrics ({type(writer).__name__})", writer) for writer in writers])
        self._period = period

    def after_step(self) -> None:
        """Write the metrics if they are due."""
        done = self.trainer.iter + 1
        # Detectron2's writers write an iteration only once, so the last one waits for the final evaluation.
        if done % self._period == 0 and done < self.trainer.max_iter:
            self.write()

    def after_train(self) -> None:
        """Write what is left, and close the writers."""
        self.write()
        self.close()

    def write(self) -> None:
        """Write the metrics now."""
        self._writers.each(lambda writer: writer.write())

    def close(self) -> None:
        """Close the writers, also after an error in training. Closing them again has no effect."""
        self._writers.close()


class UsageHook(HookBase):
    """Measures the training time and the peak memory of a run. The parts of a resumed run add up.

    Work that was lost and repeated after a crash does not count, because the checkpoint does not contain it.

    Args:
        device: Value of `MODEL.DEVICE`, which decides what memory is measured: that of the GPU or of the process.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        # Of the earlier parts of a resumed run. The time is None if their checkpoint did not record it.
        self._earlier_seconds: float | None = None
        self._earlier_peak = 0.0
        self._started = time.perf_counter()

    def before_train(self) -> None:
        """Start the clock."""
        if self.trainer.start_iter == 0:
            self._earlier_seconds = 0.0
        self._started = time.perf_counter()

    def measured(self) -> dict[str, float | None]:
        """Return `training_seconds`, which includes evaluations, and `peak_memory_gib` of the largest process.

        Call it on all processes. The time is None if the run was started by a version that did not measure it. The
        memory is None if the system does not report it.
        """
        peaks = comm.all_gather(self._peak())
        return {"training_seconds": self._seconds(), "peak_memory_gib": None if None in peaks else max(peaks)}

    def _seconds(self) -> float | None:
        earlier = self._earlier_seconds
        return None if earlier is None else earlier + time.perf_counter() - self._started

    def _peak(self) -> float | None:
        peak = peak_memory_gib(self._device)
        return None if peak is None else max(self._earlier_peak, peak)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs: time and peak memory so far."""
        return {"seconds": self._seconds(), "peak_memory_gib": self._peak()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Args:
            state: The result of `state_dict`.
        """
        self._earlier_seconds, self._earlier_peak = state["seconds"], state["peak_memory_gib"] or 0.0


class CheckpointHook(HookBase):
    """Saves a checkpoint every `period` iterations.

    Args:
        period: Number of iterations between checkpoints.
    """

    def __init__(self, period: int) -> None:
        self._period = period

    def after_step(self) -> None:
        """Save a checkpoint if one is due. The trainer itself saves the last iteration, as `model_final.pth`."""
        done = self.trainer.iter + 1
        if done % self._period == 0 and done < self.trainer.max_iter:
            self.trainer.save()


class EvaluationHook(HookBase):
    """Evaluates the model, keeps the best checkpoint, and stops a run that no longer improves.

    The state is saved before every evaluation, so that a failed evaluation loses no training. If the run is interrupted
    before an evaluation, the resumed run catches up on it.

    Args:
        period: Number of iterations between evaluations. 0 evaluates at the end only.
        metric: The metric to optimize, `task/name`, on the first test data set. A metric with "loss" in its name is
            better when lower.
        patience: Number of evaluations without improvement after which the run stops. 0 never stops.
        stop_on_error: Whether a failed evaluation during training ends the run. Otherwise it is logged and skipped.
    """

    def __init__(self, period: int, metric: str, patience: int, *, stop_on_error: bool) -> None:
        self._period = period
        self._metric = metric
        self._patience = patience
        self._stop_on_error = stop_on_error
        self.best: float | None = None
        self.best_iteration = 0
        self.best_results: dict[str, Any] = {}
        self._without_improvement = 0
        self._evaluated_at = 0
        self.results: dict[str, Any] = {}

    def before_train(self) -> None:
        """Run the evaluation that was due when the run was stopped."""
        done = self.trainer.start_iter
        if self._is_due(done) and self._evaluated_at < done:
            self._run(done)

    def after_step(self) -> None:
        """Evaluate if an evaluation is due."""
        done = self.trainer.iter + 1
        if self._is_due(done):
            self._run(done)

    def finish(self, done: int) -> None:
        """Evaluate the final weights, unless this was done before.

        Args:
            done: Number of finished iterations.
        """
        if self._evaluated_at < done or not self.results:
            self._run(done, is_final=True)

    @property
    def is_exhausted(self) -> bool:
        """Whether the metric has not improved for `patience` evaluations."""
        return 0 < self._patience <= self._without_improvement

    def _is_due(self, done: int) -> bool:
        return self._period > 0 and 0 < done < self.trainer.max_iter and done % self._period == 0

    def _run(self, done: int, *, is_final: bool = False) -> None:
        self.trainer.save_once()
        try:
            with preserve_random_state():
                results = self.trainer.evaluate()
        except (Interrupted, NumericError, ConfigError):
            raise
        except Exception as error:
            # With several processes, the others would wait for this one.
            if self._stop_on_error or is_final or comm.get_world_size() > 1:
                raise
            is_bug = not isinstance(error, PvtDetError)
            logger.error("Evaluation after iteration %d failed (%s). Training continues.", done, error, exc_info=is_bug)
            self._evaluated_at = done
            return
        self.results = comm.all_gather(results)[0]
        self._evaluated_at = done
        flat = {name: float(value) for name, value in flatten_results_dict(self.results).items()}
        self.trainer.storage.put_scalars(
            smoothing_hint=False, cur_iter=done - 1, **{n: v for n, v in flat.items() if math.isfinite(v)}
        )
        self.trainer.write_metrics()
        self._compare(flat, done)
        if not is_final:
            self.trainer.write_interim_results()

    def _compare(self, metrics: dict[str, float], done: int) -> None:
        # The names of several test data sets precede those of their metrics. The first data set counts.
        key = next((name for name in metrics if f"/{name}".endswith(f"/{self._metric}")), None)
        if key is None:
            known = listed(sorted(metrics), 20)
            raise ConfigError(f"Unknown metric TEST.BEST_METRIC = {self._metric!r}. Expected one of {known}.")
        value = metrics[key]
        sign = -1 if "loss" in self._metric else 1
        if math.isfinite(value) and (self.best is None or sign * value > sign * self.best):
            self.best, self.best_iteration, self._without_improvement = value, done, 0
            self.best_results = self.results
            self.trainer.save_weights(BEST_NAME)
            logger.info(
                "%s %.4f after iteration %d, the best so far: saved as %s", self._metric, value, done, BEST_NAME
            )
        else:
            self._without_improvement += 1
            best = "none so far" if self.best is None else f"{self.best:.4f} after iteration {self.best_iteration}"
            logger.info("%s %.4f after iteration %d (best: %s)", self._metric, value, done, best)

    @property
    def metric(self) -> str:
        """Name of the metric that selects the best checkpoint, `task/name`."""
        return self._metric

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs: the best and the last metrics, and the evaluations so far."""
        return {
            "best": self.best,
            "best_iteration": self.best_iteration,
            "without_gain": self._without_improvement,
            "evaluated_at": self._evaluated_at,
            "results": {task: dict(values) for task, values in self.results.items()},
            "best_results": {task: dict(values) for task, values in self.best_results.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Args:
            state: The result of `state_dict`.
        """
        self.best, self.best_iteration = state["best"], state["best_iteration"]
        self._without_improvement, self._evaluated_at = state["without_gain"], state["evaluated_at"]
        self.results = state["results"]
        self.best_results = state.get("best_results") or self._from_value()

    def _from_value(self) -> dict[str, Any]:
        """Return what a checkpoint of an earlier version recorded about the best one: the value of the metric."""
        task, _, name = self._metric.partition("/")
        return {} if self.best is None else {task: {name: self.best}}
