"""Start the processes of a distributed command without a launcher."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pvt_det.utils.cli import run_cli
from tests.classification.test_distributed import _free_ports
from tests.command_line import run_command
from tests.faults.conftest import Ending

# Maximum seconds that the processes may take.
TIMEOUT = 240.0


class Ranks:
    """Processes as `torchrun` would start them, one for each command line."""

    def __init__(
        self, folder: Path, command: str, words: Sequence[Sequence[object]], prepare: Callable = lambda rank: None
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._files = [(folder / f"rank{rank}.out", folder / f"rank{rank}.err") for rank in range(len(words))]
        port = _free_ports(1)[0]
        # Forked for speed, like the processes of tests/classification/test_distributed.py.
        context = multiprocessing.get_context("fork")
        self.processes = [
            context.Process(target=self._run, args=(rank, len(words), port, command, given, prepare))
            for rank, given in enumerate(words)
        ]
        for process in self.processes:
            process.start()

    def _run(self, rank, size, port, command, words, prepare) -> None:
        for stream, path in zip((1, 2), self._files[rank], strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        torch.set_num_threads(1)
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in variables.items()})
        prepare(rank)
        code = run_cli(lambda: run_command(command, words))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def wait(self) -> list[Ending]:
        deadline = time.monotonic() + TIMEOUT
        for process in self.processes:
            process.join(max(0, deadline - time.monotonic()))
        alive = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for rank in alive:
            self.processes[rank].kill()
        texts = [(error.read_text(), output.read_text()) for output, error in self._files]
        assert not alive, texts
        return [Ending(p.exitcode, *text) for p, text in zip(self.processes, texts, strict=True)]
