"""What a classification run tells: a progress bar or plain lines, `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from pvt_det.checkpoint import write_atomically

METRICS_NAME = "metrics.jsonl"
Row = dict[str, float | int]
_log = logging.getLogger(__name__)


class RunLog:
    """Writes the rows of one run; to be entered.

    Args:
        output: The run's folder; None, in processes that do not write, for no log at all.
        total: Updates of the whole run.
        update: Updates already done. Rows of later ones, which a killed run left, are taken back.
    """

    def __init__(self, output: Path | None, total: int, update: int) -> None:
        self._output = output
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if output is None:
            return
        self._keep_rows_until(output / METRICS_NAME, update)
        self._file = (output / METRICS_NAME).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(output / "tensorboard"), purge_step=update + 1)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console)
            self._task = self._bar.add_task("training", total=total, completed=update)

    def __enter__(self) -> RunLog:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if self._output is not None:
            self._file.close()
            self._board.close()

    def advance(self) -> None:
        """Move the bar by one update."""
        if self._bar:
            self._bar.advance(self._task)

    def train(self, row: Row) -> None:
        """Note the figures of the updates since the last such row."""
        text = (
            f"epoch {row['epoch']} update {row['update']} loss {row['loss']:.4f} lr {row['lr']:.3g} "
            f"{row['images_per_s']:.0f} images/s waiting {row['waiting']:.0%}"
        )
        if self._bar:
            self._bar.update(self._task, description=text)
        elif self._output is not None:
            _log.info(text)
        self._write("train", row)

    def evaluation(self, row: Row) -> None:
        """Note the figures of an evaluation."""
        if self._output is None:
            return
        _log.info(
            "epoch %d top-1 %.2f top-5 %.2f loss %.4f (best top-1 %.2f)",
            *(row[name] for name in ("epoch", "top1", "top5", "val_loss", "best_top1")),
        )
        self._write("val", row)

    def _write(self, prefix: str, row: Row) -> None:
        if self._output is None:
            return
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            if name not in ("epoch", "update"):
                self._board.add_scalar(f"{prefix}/{name}", value, row["update"])

    @staticmethod
    def _keep_rows_until(path: Path, update: int) -> None:
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            # A killed run can leave half a line at the end, which lies after the last checkpoint.
            rows = [line for line in lines if line.endswith("\n") and json.loads(line)["update"] <= update]
            write_atomically(path, "".join(rows))
