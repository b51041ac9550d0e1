"""Two processes of one run agree: on stopping, on broken images, on the end result."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from pvt_det.classification import run as classification_run
from pvt_det.classification.options import Options
from pvt_det.classification.trainer import Trainer
from pvt_det.errors import DataError, Interrupted
from pvt_det.utils.distributed import start_process
from tests.data.imagenet.fakes import class_folders

_BROKEN = "train/bee/002.jpg"


class _Stop:
    def __init__(self, name: str | None) -> None:
        self.signal_name = name


def _options(folder: Path, **changes) -> Options:
    return Options(
        **{
            "model": "pvt_v2_b0", "data": str(folder / "set"), "output": str(folder), "img_size": 32, "epochs": 3,
            "batch_size": 4, "warmup_epochs": 0.5, "workers": 0, "log_every": 4, "device": "cpu", "amp": "none",
            "repeats": 1, **changes,
        }
    )  # fmt: skip


def _work(rank: int, port: int, folder: Path) -> None:
    """In each process: a run that one of them is asked to stop, and its end."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": 2,
            "LOCAL_WORLD_SIZE": 2,
            "MASTER_PORT": port,
        }.items():
            patch.setenv(name, str(value))
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        with start_process("cpu") as process:
            assert (process.rank, process.world_size) == (rank, 2)
            assert process.sum(torch.tensor([rank + 1.0])).item() == 3
            options = _options(folder)
            images, validation = classification_run._open_data(options, process)
            parts = classification_run.build_parts(options, process, images, validation)
            trainer = Trainer(options, parts, process, _Stop("SIGTERM" if rank == 1 else None), "resume")
            with pytest.raises(Interrupted, match="after update 10"):
                trainer.train()
            assert [name for name in trainer.progress.broken if _BROKEN in images.name(name)]
            best = classification_run.train(_options(folder, resume="auto"), process, "resume")
            (folder / f"best{rank}").write_text(str(best))
            strict = _options(folder, output=str(folder / "strict"), max_broken=0)
            with pytest.raises(DataError, match=_BROKEN):
                classification_run.train(strict, process, "resume")


def test_two_processes_agree(tmp_path):
    class_folders(tmp_path / "set", train=8, val=3)
    (tmp_path / "set" / _BROKEN).write_bytes(b"\xff\xd8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked, for speed: as with loader workers, each computes on one thread.
    mp.start_processes(_work, (port, tmp_path), nprocs=2, start_method="fork")
    assert (tmp_path / "best0").read_text() == (tmp_path / "best1").read_text()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows if "loss" in row] == [4, 6, 8, 12, 16, 18]
    assert torch.load(tmp_path / "model_last.pth", weights_only=True)["iteration"] == 18
