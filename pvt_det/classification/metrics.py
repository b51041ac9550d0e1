"""Write the metrics of a classification run to the console, `metrics.json` and TensorBoard."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter

from pvt_det.run_folder import METRICS_NAME, TENSORBOARD_FOLDER
from pvt_det.utils.console import get_console
from pvt_det.utils.files import write_atomically
from pvt_det.utils.logs import OptionalWriters
from pvt_det.utils.progress import ProgressDisplay
from pvt_det.utils.text import counted

Row = dict[str, float | int]
logger = logging.getLogger(__name__)


class _RowWriter(Protocol):
    def write(self, prefix: str, row: Row) -> None: ...
    def close(self) -> None: ...


class _JsonLines:
    """Appends rows to `metrics.json`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, prefix: str, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _TensorBoard:
    """Writes rows as scalars named `PREFIX/NAME`."""

    def __init__(self, folder: Path, update: int) -> None:
        self._board = SummaryWriter(str(folder), purge_step=update + 1)

    def write(self, prefix: str, row: Row) -> None:
        for name, value in row.items():
            if name not in ("epoch", "update"):
                self._board.add_scalar(f"{prefix}/{name}", value, row["update"])

    def close(self) -> None:
        self._board.close()


class MetricsWriter:
    """Writes the metrics of a run row by row. Use it as a context manager, in the main process.

    A file that cannot be written is dropped with a warning, and the run continues.

    Args:
        folder: The run folder.
        total: Number of updates of the whole run.
        update: Number of updates already done. Later rows, left by a killed run, are removed from `metrics.json`.
    """

    def __init__(self, folder: Path, total: int, update: int) -> None:
        _drop_rows_after(folder / METRICS_NAME, update)
        self._writers: OptionalWriters[_RowWriter] = OptionalWriters(
            [
                (str(folder / METRICS_NAME), _JsonLines(folder / METRICS_NAME)),
                (str(folder / TENSORBOARD_FOLDER), _TensorBoard(folder / TENSORBOARD_FOLDER, update)),
            ]
        )
        self._display = ProgressDisplay(get_console(), total, update)

    def __enter__(self) -> MetricsWriter:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()
        self._writers.close()

    def advance(self, update: int) -> None:
        """Advance the progress bar.

        Args:
            update: Number of updates done in the whole run.
        """
        self._display.advance(update)

    def show_first(self, update: int, loss: float) -> None:
        """Show the loss of the first update, so that a run without a terminal is not silent for long.

        Args:
            update: Number of updates done in the whole run.
            loss: The mean loss on this process.
        """
        self._display.show(update, f"loss {loss:.4f}")

    def write_training(self, row: Row) -> None:
        """Write the training metrics since the previous row.

        Args:
            row: The values of "epoch", "update", "loss", "lr", "images_per_s" and "waiting" (a fraction, 0 to 1).
        """
        details = [
            f"epoch {row['epoch']}",
            f"{row['images_per_s']:.0f} images/s",
            f"lr {row['lr']:.3g}",
            f"waiting {row['waiting']:.0%}",
        ]
        self._display.show(int(row["update"]), f"loss {row['loss']:.4f}", details)
        self._writers.each(lambda writer: writer.write("train", row))

    def write_evaluation(self, row: Row) -> None:
        """Write the metrics of an evaluation.

        Args:
            row: The values of "epoch", "update", "top1", "top5", "val_loss" and "best_top1". Accuracies are percent.
        """
        logger.info(
            "epoch %d top-1 %.2f top-5 %.2f loss %.4f (best top-1 %.2f)",
            *(row[name] for name in ("epoch", "top1", "top5", "val_loss", "best_top1")),
        )
        self._writers.each(lambda writer: writer.write("val", row))


def _drop_rows_after(path: Path, update: int) -> None:
    if path.is_file():
        # Split at line feeds only, as the rows were joined.
        *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
        updates = [_update_of(line) for line in lines]
        if damaged := updates.count(None):
            logger.warning("%s: removed %s that cannot be read.", path, counted(damaged, "row"))
        # A killed run can leave an incomplete last line, which is newer than the last checkpoint.
        kept = [line for line, at in zip(lines, updates, strict=True) if at is not None and at <= update]
        write_atomically(path, "".join(f"{line}\n" for line in kept))


def _update_of(line: str) -> int | None:
    """Return the update that a row of `metrics.json` belongs to, or None if the row is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    update = row.get("update") if isinstance(row, dict) else None
    return update if type(update) is int else None
