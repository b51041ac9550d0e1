"""The trainer: Detectron2's training loop, with runs that can be stopped and resumed exactly."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import Augmentation
from detectron2.engine import hooks as detectron2_hooks
from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter, JSONWriter
from rich.console import Console
from torch import nn

from pvt_det.checkpoint import CheckpointStore
from pvt_det.config.architecture import model_name
from pvt_det.data.augmentation.torchvision import as_augmentations
from pvt_det.data.loader import build_detection_test_loader, build_detection_train_loader
from pvt_det.engine.batch_picture import save_batch_picture
from pvt_det.engine.console import PERIOD, ProgressHook
from pvt_det.engine.evaluate import evaluate
from pvt_det.engine.fingerprint import describe_changes, find_changes, training_fingerprint
from pvt_det.engine.hooks import CheckpointHook, EvaluationHook, MetricsHook, UsageHook
from pvt_det.engine.loggers.find import build_writers
from pvt_det.engine.results import describe_data, recipe, trim_metrics, write_results
from pvt_det.engine.step import TrainStep
from pvt_det.errors import CheckpointError, ConfigError, DataError, Interrupted
from pvt_det.evaluation.build import build_evaluator
from pvt_det.models.complexity import count_parameters
from pvt_det.results import BEST, FINAL, LAST, Checkpoint, DataRecord
from pvt_det.run_folder import (
    BATCH_PICTURE_NAME,
    BEST_NAME,
    CHANGES_NAME,
    FINAL_NAME,
    LOGGER_RUNS_NAME,
    METRICS_NAME,
    TRAINING,
    write_config,
)
from pvt_det.solver.build import build_lr_scheduler
from pvt_det.utils.agreement import check_agreement
from pvt_det.utils.console import get_console
from pvt_det.utils.digest import weights_digest
from pvt_det.utils.files import write_atomically
from pvt_det.utils.rank_watch import count_batches
from pvt_det.utils.rng import preserve_random_state, random_state, set_random_state
from pvt_det.utils.signals import StopRequest
from pvt_det.utils.text import listed
from pvt_det.utils.torchrun import restarts
from pvt_det.weights import load_pretrained

__all__ = ["PVTTrainer"]

logger = logging.getLogger(__name__)


class PVTTrainer(TrainerBase):
    """Trains the model of a config.

    An iteration is one optimizer step over `SOLVER.ACCUMULATE_STEPS` batches. A resumed run continues as if it had not
    been stopped: the weights, optimizer, schedule, moving average, random states and position in the data are saved.

    Override a `build_*` method to change a part, as with Detectron2's `DefaultTrainer`. Use `register_hooks` to add
    hooks.

    Args:
        cfg: A complete, frozen config, set up by `pvt_det.engine.defaults.default_setup`.
        config_file: Path of the config file, recorded in `results.json`.
        console: Where to show the progress. A terminal shows a live bar. None takes the one
            that `default_setup` logs to, on standard output.
        hooks: Hooks that are called after those of `build_hooks`, in every process.
        writers: Writers that are added to those of `build_writers`. The main process writes; `train` closes them.
        augmentations: Augmentations of Detectron2 or transforms of `torchvision.transforms.v2`, applied to training
            images before the augmentations of the config.

    Raises:
        ConfigError: If the processes have different configs, data or code, or a hook, writer or augmentation is not an
            object of the expected class.
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        config_file: str = "",
        console: Console | None = None,
        hooks: Sequence[HookBase] = (),
        writers: Sequence[EventWriter] = (),
        augmentations: Sequence[Any] = (),
    ) -> None:
        super().__init__()
        _require_objects("hooks", hooks, HookBase)
        _require_objects("writers", writers, EventWriter)
        self.cfg = cfg
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.iter: int = 0
        self.start_iter: int = 0
        self.augmentations = as_augmentations(augmentations, cfg.INPUT.FORMAT)
        self.fingerprint = training_fingerprint(cfg, self.augmentations)
        # Before the model is built: processes with different models would wait for each other.
        check_agreement(self.fingerprint, comm.all_gather)
        # What was changed in earlier resumed runs and in this one.
        self.changes: list[dict[str, Any]] = []
        self.model: nn.Module = self.build_model(cfg)
        self.model.train()
        self._step = TrainStep.from_config(cfg, self.model)
        self.optimizer = self._step.optimizer
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        self.store = CheckpointStore(Path(cfg.OUTPUT_DIR), cfg.SOLVER.CHECKPOINT_KEEP)
        self.last_saved: Path | None = None
        self._saved_at = -1
        self._config_file = config_file
        self._console = console or get_console()
        self._stop = StopRequest("iteration" if comm.is_main_process() else "")
        self._stop_agreed = False
        self._restored_random: dict[str, Any] | None = None
        self._evaluation = self._build_evaluation()
        self._usage = UsageHook(cfg.MODEL.DEVICE)
        self._data: list[DataRecord] = []
        self._writers = list(writers)
        self._metrics = MetricsHook(self._writers, PERIOD)
        self.register_hooks([*self.build_hooks(), *hooks])

    # --- parts to override ---------------------------------------------------------------------------------------

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model with random weights, on its device.

        Args:
            cfg: The run's config.

        Returns:
            The model.
        """
        return build_model(cfg)

    @classmethod
    def build_train_loader(
        cls, cfg: CfgNode, start_batch: int = 0, augmentations: Sequence[Augmentation] = ()
    ) -> Iterable[list[dict[str, Any]]]:
        """Build the training loader, which yields batches forever.

        Args:
            cfg: The run's config.
            start_batch: Number of batches that a resumed run has already trained on.
            augmentations: Augmentations to apply before those of the config. Only given if there are any.

        Returns:
            An iterable of batches. Each is a list with a dictionary per image.
        """
        return build_detection_train_loader(cfg, start_batch=start_batch, augmentations=augmentations)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """Build the test loader, which yields this process's part of a data set.

        Args:
            cfg: The run's config.
            dataset_name: Registered name of the data set.

        Returns:
            An iterable of batches with one image each.
        """
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: Path) -> DatasetEvaluator:
        """Build the evaluator of a data set.

        Args:
            cfg: The run's config.
            dataset_name: Registered name of the data set.
            output_folder: Folder for the detections.

        Returns:
            The evaluator.
        """
        return build_evaluator(cfg, dataset_name, output_folder)

    def build_hooks(self) -> list[HookBase]:
        """Build the training hooks, in the order in which they are called."""
        hooks: list[HookBase] = [
            self._usage,
            detectron2_hooks.IterationTimer(),
            detectron2_hooks.LRScheduler(),
            CheckpointHook(self.cfg.SOLVER.CHECKPOINT_PERIOD),
            self._evaluation,
        ]
        if comm.is_main_process():
            hooks.append(ProgressHook(self._console))
        return hooks

    def build_writers(self) -> list[EventWriter]:
        """Build the writers of `metrics.json` and of the loggers in `LOGGERS`."""
        folder = self.store.folder
        return [JSONWriter(str(folder / METRICS_NAME)), *build_writers(self.cfg, folder)]

    # --- starting ------------------------------------------------------------------------------------------------

    def resume_or_load(
        self, resume: bool = True, allow_partial: Sequence[str] = (), allow_change: Sequence[str] = ()
    ) -> None:
        """Resume from the last checkpoint of the output folder, or else start from `MODEL.WEIGHTS` if set.

        Args:
            resume: Whether to look for a checkpoint in the output folder. A restart by `torchrun` always does.
            allow_partial: Patterns of keys that may be missing from or unexpected in `MODEL.WEIGHTS`.
            allow_change: Config keys that may differ from the checkpoint's, or patterns such as `INPUT.*`. See
                `pvt_det.engine.fingerprint` for the keys that may never differ, or always.

        Raises:
            CheckpointError: If the checkpoint or the weights are missing or damaged, or belong to a different model.
            ConfigError: If the checkpoint was trained with a different config or different data, or for more than
                `MAX_ITER` iterations, or if the processes have different weights.
            DataError: If the checkpoint was trained on different classes.
        """
        resume = resume or any(comm.all_gather(restarts()))
        path = comm.all_gather(self.store.latest() if resume and comm.is_main_process() else None)[0]
        if resume and path is None:
            logger.info("%s holds no checkpoint to resume from. Starting from iteration 0.", self.store.folder)
        if path is not None:
            self._restore(path, allow_change)
        elif self.cfg.MODEL.WEIGHTS:
            load_pretrained(self.model, self.cfg.MODEL.WEIGHTS, allow_partial=allow_partial)
            self._step.sync_average()
        else:
            logger.info("MODEL.WEIGHTS is empty: training starts from random weights.")
        if comm.get_world_size() > 1:
            weights = {"weights": weights_digest(self.model.state_dict()), "iteration": self.start_iter}
            check_agreement(weights, comm.all_gather)

    def _restore(self, path: Path, allow_change: Sequence[str]) -> None:
        state = self.store.load(path)
        self._check_resumable(path, state)
        base_rates = list(self.scheduler.base_lrs)
        try:
            self._step.load_state_dict(state)
            # In Detectron2, `iteration` is the index of the last finished iteration.
            super().load_state_dict(state)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} does not fit the model or optimizer of this config: {_first_lines(error)}. Resume with the "
                "config of the run (config.yaml in the same folder), or choose another folder with --output."
            ) from error
        self.start_iter = self.iter + 1
        self._record_changes(path, state, allow_change)
        self._apply_config_learning_rates(base_rates)
        self.last_saved = path
        # The `model_final.pth` of an earlier version holds a training state, which the end of this run replaces by
        # weights. Such a state is therefore saved again under its own name.
        self._saved_at = self.iter if path.name == self._state_file().name else -1
        if len(state["random"]) == comm.get_world_size():
            self._restored_random = state["random"][comm.get_rank()]
        else:
            logger.warning(
                "%s was written by %d processes and is resumed by %d. The results will not be bit-identical.",
                path.name,
                len(state["random"]),
                comm.get_world_size(),
            )
        logger.info("Resumed from %s. Continuing with iteration %d of %d.", path, self.start_iter, self.max_iter)

    def _check_resumable(self, path: Path, state: dict[str, Any]) -> None:
        cfg, alternative = self.cfg, "or choose another folder with --output."
        if state["seed"] != cfg.SEED:
            raise ConfigError(
                f"{path} was trained with SEED {state['seed']}, but SEED is {cfg.SEED}, which would change the order "
                f"of the data. Resume with SEED {state['seed']}, {alternative}"
            )
        if state["iteration"] >= self.max_iter:
            raise ConfigError(
                f"{path} was trained for {state['iteration'] + 1} iterations, but SOLVER.MAX_ITER is {self.max_iter}. "
                f"Set it to at least as many, {alternative}"
            )
        trained, given = state.get("classes", cfg.DATASETS.CLASS_NAMES), cfg.DATASETS.CLASS_NAMES
        if list(trained) != list(given):
            raise DataError(
                f"{path} was trained on the classes {listed(trained)}, but the data has "
                f"{listed(given)}. Resume with the data that the run was started with, {alternative}"
            )

    def _record_changes(self, path: Path, state: dict[str, Any], allow_change: Sequence[str]) -> None:
        """Compare the checkpoint's fingerprint with this run's, and add the changes to the history."""
        self.changes = list(state.get("changes", []))
        if "fingerprint" not in state:
            logger.warning(
                "%s is from a version that did not record the config and data of a run, so it is not known whether "
                "they have changed. Continuing with those of this config.",
                path.name,
            )
            return
        if new := find_changes(path, state["fingerprint"], self.fingerprint, allow_change):
            logger.warning(
                "Changed after iteration %d: %s. Continuing with those of this config; recorded in %s.",
                self.start_iter,
                describe_changes(new),
                CHANGES_NAME,
            )
            self.changes += [{"iteration": self.start_iter, **change} for change in new]

    def _apply_config_learning_rates(self, base_rates: list[Any]) -> None:
        """Use the learning rates of the config, which the user may have changed to resume the run."""
        self.scheduler.base_lrs = base_rates
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = rate

    # --- the loop ------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Train to the end, evaluate, save, and write `results.json`.

        Returns:
            The final metrics in percent by task, as from `pvt_det.engine.evaluate.evaluate`. Empty without test data.

        Raises:
            Interrupted: If a signal such as SIGTERM requested to stop. The training state is saved.
            NumericError: If the run diverged. The last checkpoint is from before.
            CheckpointError: If a checkpoint cannot be written.
        """
        try:
            return self._train()
        finally:
            # Hooks may have failed before this one was called.
            self._metrics.close()

    def _train(self) -> dict[str, Any]:
        self._open_folder()
        self.iter = self.start_iter - 1
        with EventStorage(self.start_iter) as self.storage, self._stop:
            batches = self._open_data()
            try:
                self.before_train()
                for iteration in range(self.start_iter, self.max_iter):
                    if self._evaluation.is_exhausted:
                        patience = self.cfg.TEST.EARLY_STOP_PATIENCE
                        logger.info("No improvement in %d evaluations. Stopped early.", patience)
                        break
                    self.iter = iteration
                    self.before_step()
                    self._run_step(batches)
                    self.after_step()
                    if self._stop_agreed:
                        self.save_once()
                        raise self._interrupted()
                self._finish()
            finally:
                self.after_train()
        return self._evaluation.results

    def _open_folder(self) -> None:
        """Write the config, and prepare the output folder for checkpoints and metrics."""
        if not comm.is_main_process():
            return
        folder = self.store.folder
        self._data = describe_data(self.cfg)
        self.store.clean()
        write_config(folder, self.cfg)
        # An existing history may contain a change that was taken back before anything was saved with it.
        if self.changes or (folder / CHANGES_NAME).exists():
            write_atomically(folder / CHANGES_NAME, json.dumps(self.changes, indent=1))
        self.store.check_space(self.checkpoint_bytes())
        trim_metrics(folder / METRICS_NAME, self.start_iter)
        if self.start_iter == 0:
            # A run that stopped before its first checkpoint is not continued.
            (folder / LOGGER_RUNS_NAME).unlink(missing_ok=True)
        self._metrics = MetricsHook([*self.build_writers(), *self._writers], PERIOD)
        self.register_hooks([self._metrics])
        logger.info(
            "%s, %.1f M parameters, on %s; %s; data: %s; output: %s",
            model_name(self.cfg),
            count_parameters(self.model) / 1e6,
            self.cfg.MODEL.DEVICE,
            recipe(self.cfg),
            ", ".join(self.cfg.DATASETS.TRAIN),
            folder,
        )
        period = self.cfg.TEST.EVAL_PERIOD
        if self.cfg.DATASETS.TEST and period > self.max_iter:
            logger.info(
                "TEST.EVAL_PERIOD %d is beyond SOLVER.MAX_ITER %d: this run is evaluated at its end only.",
                period,
                self.max_iter,
            )

    def _open_data(self) -> Iterator[Any]:
        start_batch = self.start_iter * self.cfg.SOLVER.ACCUMULATE_STEPS
        # A subclass whose `build_train_loader` has no such argument works as long as there are none.
        added: dict[str, Any] = {"augmentations": self.augmentations} if self.augmentations else {}
        batches: Iterator[Any] = count_batches(self.build_train_loader(self.cfg, start_batch, **added))
        if self.start_iter == 0 and comm.is_main_process():
            batches = self._draw_first_batch(batches)
        # Last, because opening the data may draw random numbers.
        if self._restored_random is not None:
            set_random_state(self._restored_random)
        return batches

    def _draw_first_batch(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Save a drawing of the first batch, and return all batches."""
        first = next(batches)
        data = MetadataCatalog.get(self.cfg.DATASETS.TRAIN[0])
        with preserve_random_state():
            path = self.store.folder / BATCH_PICTURE_NAME
            try:
                save_batch_picture(
                    first,
                    path,
                    class_names=data.get("thing_classes", []),
                    image_format=self.cfg.INPUT.FORMAT,
                    label_names=data.get("stuff_classes", []),
                    ignore_value=self.cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
                )
                logger.info("Saved the first training images with their labels to %s.", path)
            except OSError as error:
                logger.warning("%s cannot be written: %s. Training continues without it.", path, error.strerror)
        return chain([first], batches)

    def _run_step(self, batches: Iterator[Any]) -> None:
        report = self._step(batches, stop_requested=lambda: self._stop.signal_name is not None)
        self._stop_agreed = report.stop
        finite = {name: value for name, value in report.losses.items() if math.isfinite(value)}
        if len(finite) == len(report.losses):
            finite["total_loss"] = sum(report.losses.values())
        if math.isfinite(report.gradient_norm):
            finite["gradient_norm"] = report.gradient_norm
        self.storage.put_scalars(data_time=report.data_seconds, **finite)
        self.storage.put_scalar("skipped_steps", self._step.skipped, smoothing_hint=False)

    def _finish(self) -> None:
        self.save_once()
        self.save_weights(FINAL_NAME)
        if self.cfg.DATASETS.TEST:
            self._evaluation.finish(self.iter + 1)
        if self._step.skipped:
            logger.warning(
                "%d iterations were skipped because their loss or gradient was not finite.", self._step.skipped
            )
        usage = self._usage.measured()
        if comm.is_main_process():
            path = self._write_results({FINAL: FINAL_NAME}, usage)
            logger.info("Weights: %s. Metrics: %s.", self.store.folder / FINAL_NAME, path)
            logger.info("To try it on images: pvt-det predict IMAGES --config-file %s", self.store.folder)

    def write_metrics(self) -> None:
        """Write the metrics so far to all writers. Only the main process writes."""
        if comm.is_main_process():
            self._metrics.write()

    def write_interim_results(self) -> None:
        """Write `results.json` after an evaluation during training, so that an unfinished run can be reported on."""
        usage = self._usage.measured()
        if comm.is_main_process():
            self._write_results({LAST: self._state_file().name}, usage)

    def _write_results(self, shown: Mapping[str, str], usage: Mapping[str, float | None]) -> Path:
        """Write `results.json` with the checkpoint of this iteration, given as its file by name, and the best one."""
        evaluation, digest = self._evaluation, self.store.saved_digest
        found = {
            name: Checkpoint(file, digest(file), self.iter + 1, evaluation.results) for name, file in shown.items()
        }
        if evaluation.best is not None:
            kept = (BEST_NAME, digest(BEST_NAME), evaluation.best_iteration, evaluation.best_results)
            found[BEST] = Checkpoint(*kept, evaluation.metric)
        return write_results(
            self.cfg,
            TRAINING,
            count_parameters(self.model),
            found,
            config_file=self._config_file,
            data=self._data,
            usage=usage,
            augmentations=self.fingerprint["augmentations"],
        )

    def _interrupted(self) -> Interrupted:
        name = self._stop.signal_name or "a signal to another process"
        return Interrupted(f"by {name} after iteration {self.iter + 1}; everything is saved in {self.last_saved}.")

    # --- evaluation ----------------------------------------------------------------------------------------------

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, before_image: Callable[[], None] = lambda: None
    ) -> dict[str, dict[str, Any]]:
        """Evaluate a model on `DATASETS.TEST` with this class's loader and evaluator.

        Args:
            cfg: A config whose data sets are registered.
            model: The model, not wrapped in `DistributedDataParallel`. Its training mode is restored afterwards.
            before_image: Called before every image. It may raise an exception to stop the evaluation.

        Returns:
            On the main process, the metrics in percent by task. On other processes, an empty dictionary.
        """
        return evaluate(cfg, model, before_image, cls.build_test_loader, cls.build_evaluator)

    def evaluate(self) -> dict[str, Any]:
        """Evaluate the weights, or their moving average if there is one.

        Returns:
            On the main process, the metrics in percent by task. On other processes, an empty dictionary.

        Raises:
            Interrupted: If a signal requested to stop.
        """

        def check() -> None:
            if self._stop.signal_name is not None:
                raise self._interrupted()

        return self.test(self.cfg, self._step.evaluated_model, check)

    # --- saving --------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Save a checkpoint with everything that a resumed run needs. Call it on all processes.

        Raises:
            NumericError: If the weights are not finite. Nothing is written.
            CheckpointError: If the file cannot be written.
        """
        self._step.check_finite()
        state = self.state_dict() | {"random": comm.all_gather(random_state())}
        path = self._state_file()
        if comm.is_main_process():
            self.store.save(path.name, state, self.iter)
        self.last_saved, self._saved_at = path, self.iter
        comm.synchronize()

    def save_weights(self, name: str) -> None:
        """Save the weights that are evaluated, without the training state. Call it on all processes.

        Args:
            name: File name in the output folder, such as `model_best.pth`.

        Raises:
            NumericError: If the weights are not finite. Nothing is written.
            CheckpointError: If the file cannot be written.
        """
        self._step.check_finite()
        if comm.is_main_process():
            self.store.save_weights(name, self._step.evaluated_model.state_dict(), self.iter)
        comm.synchronize()

    def save_once(self) -> None:
        """Save a checkpoint, unless this iteration is already saved."""
        if self._saved_at != self.iter:
            self.save()

    def _state_file(self) -> Path:
        """Return the path of this iteration's training state."""
        return self.store.folder / f"model_{self.iter:07d}.pth"

    def checkpoint_bytes(self) -> int:
        """Estimate the size of a checkpoint in bytes."""
        # The weights and the two moments of AdamW, plus the moving average.
        copies = 3 + (self._step.ema is not None)
        return copies * sum(p.nbytes for p in self.model.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the step, Detectron2's `iteration` and `hooks`, and what the run was trained with."""
        return {
            **super().state_dict(),
            **self._step.state_dict(),
            "seed": self.cfg.SEED,
            "classes": list(self.cfg.DATASETS.CLASS_NAMES),
            "fingerprint": self.fingerprint,
            "changes": self.changes,
        }

    def _build_evaluation(self) -> EvaluationHook:
        test = self.cfg.TEST
        period = test.EVAL_PERIOD if self.cfg.DATASETS.TEST else 0
        return EvaluationHook(
            period,
            test.BEST_METRIC or ("segm/AP" if self.cfg.MODEL.MASK_ON else "bbox/AP"),
            test.EARLY_STOP_PATIENCE,
            stop_on_error=test.ON_ERROR == "stop",
        )


def _first_lines(error: Exception, count: int = 3) -> str:
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    rest = f"; … and {len(lines) - count} more" if len(lines) > count else ""
    return "; ".join(lines[:count]) + rest


def _require_objects(name: str, values: Sequence[Any], kind: type) -> None:
    for value in values:
        if not isinstance(value, kind):
            is_class = isinstance(value, type) and issubclass(value, kind)
            raise ConfigError(
                f"{name}: {value!r} is not an instance of Detectron2's {kind.__name__}. Expected a list of objects"
                f"{f', such as {value.__name__}(): add the brackets' if is_class else ''}."
            )
