"""What a user sees of a training run: the live line on a terminal, and log lines elsewhere."""

from __future__ import annotations

import io
import logging
import re
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage
from rich.cells import cell_len
from rich.console import Console

from pvt_det.engine.console import ProgressHook

_LOSSES = {"loss_rpn_cls": 0.1, "loss_rpn_loc": 0.2, "loss_cls": 0.3, "loss_box_reg": 0.4, "loss_mask": 0.5}


def train(console, *, losses=_LOSSES, start=0, end=45, max_iter=45) -> None:
    """Run the hook in a loop that ends after `end` iterations."""
    hook = ProgressHook(console)
    cfg = SimpleNamespace(MODEL=SimpleNamespace(DEVICE="cpu"))
    hook.trainer = trainer = SimpleNamespace(iter=start - 1, start_iter=start, max_iter=max_iter, cfg=cfg)
    with EventStorage(start) as trainer.storage:
        hook.before_train()
        for trainer.iter in range(start, end):
            trainer.storage.put_scalars(**losses, total_loss=sum(losses.values()))
            trainer.storage.put_scalar("lr", 1e-4, smoothing_hint=False)
            hook.after_step()
            trainer.storage.step()
        hook.after_train()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_live_line_has_bar_counter_eta_and_total_loss(width):
    shown = io.StringIO()
    train(Console(file=shown, force_terminal=True, force_interactive=True, color_system=None, width=width))
    lines = [line for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", shown.getvalue()) if "45/45" in line]
    assert lines
    for line in lines:
        assert cell_len(line) <= width
        assert re.search(r"━{8,40} 45/45 eta 0:00:00 total_loss 1\.5", line)
    assert ("loss_box_reg 0.4" in lines[-1]) == (width == 120)


@pytest.fixture
def logged(caplog):
    """Runs the hook without a terminal; returns its lines."""
    caplog.set_level(logging.INFO, "pvt_det")

    def run(**options):
        train(Console(file=io.StringIO(), force_terminal=False), **options)
        return [record.getMessage() for record in caplog.records]

    return run


def test_first_line_comes_after_the_first_iteration(logged):
    lines = logged()
    assert [line.split("  ")[0] for line in lines] == [f"iteration {done}/45" for done in (1, 20, 40, 45)]
    assert re.fullmatch(
        r"iteration 1/45  eta \d+:\d\d:\d\d  total_loss 1.5  \S+ s/it  lr 0.0001  loss_box_reg 0.4  loss_cls 0.3  "
        r"loss_mask 0.5  loss_rpn_cls 0.1  loss_rpn_loc 0.2  mem \S+ GiB",
        lines[0],
    )


def test_first_line_of_a_resumed_run_with_one_loss(logged):
    lines = logged(losses={"loss_sem_seg": 0.25}, start=100, end=102, max_iter=200)
    assert [line.split("  ")[0] for line in lines] == ["iteration 101/200"]
    assert "total_loss 0.25" in lines[0]
    assert "loss_sem_seg" not in lines[0]
