"""Evaluation during training: the best checkpoint, early stopping, failures and resuming."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from pvt_det.engine import hooks
from pvt_det.engine.hooks import EvaluationHook, UsageHook
from pvt_det.errors import ConfigError


class Trainer(SimpleNamespace):
    """Runs a hook whose evaluations return the given values of bbox/AP, or raise the given exceptions."""

    def run(self, hook, values, max_iter=100, start=0, steps=None):
        self.saved, self.iter, self.max_iter, self.start_iter = [], start - 1, max_iter, start
        self.values = iter(values)
        hook.trainer = self
        with EventStorage() as self.storage:
            hook.before_train()
            for self.iter in range(start, start + (len(values) if steps is None else steps)):
                if hook.is_exhausted:
                    break
                hook.after_step()
        return self

    def save_weights(self, name):
        self.saved.append((name, self.iter + 1))

    def write_metrics(self):
        pass

    def write_interim_results(self):
        self.saved.append(("results", self.iter + 1))

    def save_once(self):
        self.saved.append(("periodic", self.iter + 1))

    def evaluate(self):
        value = next(self.values)
        if isinstance(value, Exception):
            raise value
        return {"bbox": {"AP": value, "APs": float("nan")}}


def build(patience=0, metric="bbox/AP", stop_on_error=True):
    return EvaluationHook(1, metric, patience, stop_on_error=stop_on_error)


def best_saves(trainer):
    return [iteration for name, iteration in trainer.saved if name == "model_best.pth"]


def test_best_checkpoint_is_saved_only_on_improvement():
    hook = build()
    trainer = Trainer().run(hook, [1.0, 3.0, 2.0, 3.0, 4.0])
    assert best_saves(trainer) == [1, 2, 5]
    assert (hook.metric, hook.best, hook.best_iteration) == ("bbox/AP", 4.0, 5)


def test_state_is_saved_before_each_evaluation_and_results_are_written_after_it():
    trainer = Trainer().run(build(), [1.0, 2.0])
    assert [name for name, _ in trainer.saved] == ["periodic", "model_best.pth", "results"] * 2


def test_lower_loss_is_better():
    class Losses(Trainer):
        def evaluate(self):
            return {"validation": {"total_loss": next(self.values)}}

    trainer = Losses().run(build(metric="validation/total_loss"), [3.0, 2.0, 2.5])
    assert best_saves(trainer) == [1, 2]


def test_nonfinite_metric_is_never_best():
    hook = build()
    assert best_saves(Trainer().run(hook, [float("nan"), 0.0])) == [2]


def test_early_stopping_counts_across_resume():
    hook = build(patience=3)
    Trainer().run(hook, [5.0, 1.0, 1.0])
    assert not hook.is_exhausted
    resumed = build(patience=3)
    resumed.load_state_dict(hook.state_dict())
    trainer = Trainer().run(resumed, [2.0, 9.0], start=3)
    assert resumed.is_exhausted
    assert trainer.iter == 4
    assert best_saves(trainer) == []
    assert resumed.best == 5.0


def test_resumed_run_catches_up_on_evaluation():
    hook = build()
    Trainer().run(hook, [1.0])
    late = build()
    late.load_state_dict(hook.state_dict())
    # The state was saved after 2 iterations, before their evaluation.
    trainer = Trainer().run(late, [7.0, 8.0], start=2, steps=1)
    assert best_saves(trainer) == [2, 3]


def test_unknown_metric_lists_known_metrics():
    with pytest.raises(ConfigError, match=r"bbox/ap.*Expected one of bbox/AP, bbox/APs"):
        Trainer().run(build(metric="bbox/ap"), [1.0])


def test_last_iteration_is_evaluated_once_by_finish():
    hook = build()
    trainer = Trainer().run(hook, [1.0, 2.0], max_iter=2)
    assert best_saves(trainer) == [1]
    with EventStorage() as trainer.storage:
        hook.finish(2)
        hook.finish(2)
    assert best_saves(trainer) == [1, 2]


class Clock:
    """A clock that the test sets, in seconds."""

    now = 100.0

    def perf_counter(self):
        return self.now


def usage_of(clock, seconds, state=None, start=0):
    """Run a `UsageHook` for some seconds, possibly resumed from a state."""
    hook = UsageHook("cpu")
    if state is not None:
        hook.load_state_dict(state)
    hook.trainer = SimpleNamespace(start_iter=start)
    hook.before_train()
    clock.now += seconds
    return hook


def test_training_time_of_a_resumed_run_adds_up(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(hooks, "time", clock)
    memory = iter([2.0, 2.0, 1.5])
    monkeypatch.setattr(hooks, "peak_memory_gib", lambda device: next(memory))
    first = usage_of(clock, 60)
    assert first.measured() == {"training_seconds": 60, "peak_memory_gib": 2.0}
    state = first.state_dict()
    clock.now += 1000  # The run is stopped. What it did after its last checkpoint is repeated.
    assert usage_of(clock, 30, state, start=10).measured() == {"training_seconds": 90, "peak_memory_gib": 2.0}


def test_training_time_is_unknown_if_a_part_was_not_measured():
    """A checkpoint of an earlier version has no state of the hook."""
    resumed = usage_of(Clock(), 30, start=10)
    assert resumed.measured()["training_seconds"] is None
    assert usage_of(Clock(), 30, resumed.state_dict(), start=20).measured()["training_seconds"] is None
