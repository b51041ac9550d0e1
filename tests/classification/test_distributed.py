"""Two processes of a run agree on when to stop, on broken images and on the final result."""

from __future__ import annotations

import json
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from pvt_det.classification import ClassificationTrainer, TrainConfig, start_run, train
from pvt_det.errors import DataError, Interrupted
from tests.data.imagenet.fakes import class_folders

_BROKEN = "train/bee/002.jpg"


class _StoppedAfterOneUpdate(ClassificationTrainer):
    def after_step(self) -> None:
        if self.update == 1 and self.process.rank == 1:
            signal.raise_signal(signal.SIGTERM)
        super().after_step()


def _config(folder: Path, **changes) -> TrainConfig:
    return TrainConfig(
        **{
            "model": "pvt_v2_b0", "data": str(folder / "set"), "output": str(folder), "img_size": 32, "epochs": 3,
            "batch_size": 4, "warmup_epochs": 0.5, "workers": 0, "log_every": 4, "device": "cpu", "amp": "none",
            "repeats": 1, **changes,
        }
    )  # fmt: skip


def _interrupted(cfg: TrainConfig, rank: int) -> ClassificationTrainer:
    with start_run(cfg) as process:
        assert (process.rank, process.world_size) == (rank, 2)
        assert process.sum(torch.tensor([rank + 1.0])).item() == 3
        trainer = _StoppedAfterOneUpdate(cfg, process)
        with pytest.raises(Interrupted, match="after update 10"):
            trainer.train()
    return trainer


def _train(cfg: TrainConfig) -> float:
    with start_run(cfg) as process:
        return train(cfg, process)


def _work(rank: int, ports: list[int], folder: Path) -> None:
    """Run in each process: stop a run with a signal to one process, then resume it until the end."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        for name, value in {**variables, "MASTER_ADDR": "127.0.0.1"}.items():
            patch.setenv(name, str(value))
        # Each run has its own group and port, because the store of the previous run may still be open.
        patch.setenv("MASTER_PORT", str(ports[0]))
        trainer = _interrupted(_config(folder), rank)
        assert [name for name in trainer.progress.broken if _BROKEN in trainer.images.name(name)]
        patch.setenv("MASTER_PORT", str(ports[1]))
        best = _train(_config(folder, resume=True))
        (folder / f"best{rank}").write_text(str(best))
        patch.setenv("MASTER_PORT", str(ports[2]))
        with pytest.raises(DataError, match=_BROKEN):
            _train(_config(folder, output=str(folder / "strict"), max_broken=0))


def _free_ports(number: int) -> list[int]:
    with ExitStack() as sockets:
        reserved = [sockets.enter_context(socket.socket()) for _ in range(number)]
        for each in reserved:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in reserved]


def test_two_processes_agree(tmp_path):
    class_folders(tmp_path / "set", train=8, val=3)
    (tmp_path / "set" / _BROKEN).write_bytes(b"\xff\xd8")
    # Forked for speed. Like loader workers, each process computes with one thread.
    mp.start_processes(_work, (_free_ports(3), tmp_path), nprocs=2, start_method="fork")
    assert (tmp_path / "best0").read_text() == (tmp_path / "best1").read_text()
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [row["update"] for row in rows if "loss" in row] == [4, 6, 8, 12, 16, 18]
    assert torch.load(tmp_path / "model_last.pth", weights_only=True)["iteration"] == 18
