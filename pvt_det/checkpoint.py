"""Checkpoints of a run: written whole or not at all, and verified before they are read.

A save goes to a temporary name, is flushed to disk and renamed; `checkpoints.json` lists the SHA-256 of every
checkpoint and `last_checkpoint` names the one to resume from. A process that dies at any moment leaves the previous
state readable.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pvt_det.errors import CheckpointError, NumericError
from pvt_det.utils.files import TEMPORARY_SUFFIX, sync_folder, write_atomically
from pvt_det.weights.reader import read_file

MANIFEST_NAME = "checkpoints.json"
LAST_NAME = "last_checkpoint"
# Periodic checkpoints that stay; the best and the final one stay besides.
KEEP_PERIODIC = 3
_PERIODIC = re.compile(r"model_\d{7,}\.pth")
_SPARE_BYTES = 16 * 2**20
# What the parts of a training state are.
_COUNTS = ("iteration", "skipped", "skipped_in_row", "ema_updates")
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys((*_COUNTS, "seed"), (int,)),
    **dict.fromkeys(("model", "training_model", "optimizer", "scaler", "hooks"), (dict, OrderedDict)),
    **dict.fromkeys(("random", "classes"), (list,)),
}
logger = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints in one output folder. Only one process may write; see `pvt_det.utils.lock`.

    Args:
        folder: An existing folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def clean(self) -> None:
        """Remove what a killed save left behind."""
        for path in self.folder.glob(f".*{TEMPORARY_SUFFIX}"):
            path.unlink()

    def check_space(self, needed: int) -> None:
        """Check that `needed` bytes and a little more are free.

        Raises:
            CheckpointError: They are not.
        """
        free = shutil.disk_usage(self.folder).free
        if free < needed + _SPARE_BYTES:
            raise CheckpointError(
                f"Not enough room in {self.folder}: a checkpoint takes {needed / 2**20:,.0f} MiB and "
                f"{free / 2**20:,.0f} MiB are free. Free some, or choose another folder with --output."
            )

    def save(self, name: str, state: dict[str, Any], iteration: int, *, is_last: bool = True) -> Path:
        """Write `state` under `name`, whole or not at all.

        Args:
            name: File name; an existing file is replaced.
            state: Tensors, numbers, texts and containers of them.
            iteration: Index of the last finished iteration; resuming takes the highest where `last_checkpoint` is lost.
            is_last: Whether `last_checkpoint` shall name it.

        Raises:
            CheckpointError: No room, or the folder cannot be written. The previous file of that name is untouched.
        """
        path = self.folder / name
        temporary = self._temporary(name)
        try:
            self.check_space(_bytes_of_tensors(state))
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            digest = _digest(temporary)
            manifest = self._read_manifest()
            # Until the rename, the file of that name is still the old one: both are right.
            old = manifest.get(name, {}).get("sha256", [])
            entry = {"iteration": iteration, "bytes": temporary.stat().st_size, "sha256": [digest, *old]}
            self._write_manifest({**manifest, name: entry})
            temporary.replace(path)
            sync_folder(self.folder)
            self._write_manifest({**manifest, name: {**entry, "sha256": [digest]}})
            if is_last:
                write_atomically(self.folder / LAST_NAME, name)
            self._prune()
        except (OSError, RuntimeError) as error:
            # torch.save reports a failed write as RuntimeError.
            temporary.unlink(missing_ok=True)
            raise CheckpointError(
                f"Cannot save {path}: {error}. The checkpoints saved before are whole; free some room or mend the "
                "folder, then go on with --resume."
            ) from error
        return path

    def latest(self) -> Path | None:
        """The checkpoint to resume from, verified; None where the folder has none.

        Raises:
            CheckpointError: The one that `last_checkpoint` names is damaged, or no intact one is left.
        """
        named = self._named_by_pointer()
        candidates = self._newest_first()
        if named is not None:
            try:
                self.verify(named)
            except CheckpointError as error:
                intact = next((path for path in candidates if path != named and self._is_intact(path)), None)
                way_out = f"Delete it to resume from {intact.name}." if intact else "No intact one is left beside it."
                raise CheckpointError(f"{error} {way_out}") from error
            return named
        for path in candidates:
            if self._is_intact(path):
                logger.warning(
                    "%s in %s is missing or torn: going on from %s, the newest intact checkpoint.",
                    LAST_NAME,
                    self.folder,
                    path.name,
                )
                return path
        if candidates:
            raise CheckpointError(
                f"Every checkpoint in {self.folder} is damaged ({', '.join(path.name for path in candidates)}): start "
                "again in another folder with --output."
            )
        return None

    def verify(self, path: Path) -> None:
        """Check a file of this folder against the manifest, or, where that lacks it, its own check sums.

        Raises:
            CheckpointError: The file is missing, truncated or altered.
        """
        entry = self._read_manifest().get(path.name)
        try:
            if entry is not None:
                intact = _digest(path) in entry["sha256"]
            else:
                with zipfile.ZipFile(path) as archive:
                    intact = archive.testzip() is None
        except (OSError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
        if not intact:
            raise CheckpointError(f"{path} is damaged: its content is not what was saved (SHA-256 differs).")

    def verify_if_listed(self, path: Path) -> int:
        """Check a file that may have been written by `save`, or come from elsewhere.

        Returns:
            The number of iterations that it was saved after; 0 where it comes from elsewhere.

        Raises:
            CheckpointError: The manifest lists it with another content.
        """
        entry = self._read_manifest().get(path.name)
        if entry is None:
            return 0
        self.verify(path)
        return int(entry["iteration"]) + 1

    def load(self, path: Path) -> dict[str, Any]:
        """Read a checkpoint that `save` wrote, onto the CPU, after verifying it; nothing in it can run.

        Raises:
            CheckpointError: The file is damaged, unsafe or no checkpoint of a run.
        """
        self.verify(path)
        state = read_file(path)
        if not isinstance(state, dict) or not {"model", "iteration", "optimizer", "random", "seed"} <= state.keys():
            raise CheckpointError(f"{path} holds no training state: give it as MODEL.WEIGHTS, without --resume.")
        for key in state.keys() & _KINDS.keys():
            if type(state[key]) not in _KINDS[key]:
                kind = type(state[key]).__name__
                raise CheckpointError(f"{path} holds no training state: its {key!r} is one {kind}. Fetch it again.")
        for key in state.keys() & set(_COUNTS):
            if state[key] < 0:
                raise CheckpointError(
                    f"{path} holds no training state: its {key!r} is {state[key]}, and none is negative. Fetch it "
                    "again, or resume from another one."
                )
        return state

    def _named_by_pointer(self) -> Path | None:
        try:
            name = (self.folder / LAST_NAME).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        path = self.folder / Path(name).name
        return path if name and path.is_file() else None

    def _newest_first(self) -> list[Path]:
        manifest = self._read_manifest()

        def age(path: Path) -> tuple[int, float]:
            return manifest.get(path.name, {}).get("iteration", -1), path.stat().st_mtime

        return sorted(self.folder.glob("model_*.pth"), key=age, reverse=True)

    def _is_intact(self, path: Path) -> bool:
        try:
            self.verify(path)
        except CheckpointError as error:
            logger.warning("%s", error)
            return False
        return True

    def _prune(self) -> None:
        periodic = [path for path in self._newest_first() if _PERIODIC.fullmatch(path.name)]
        for path in periodic[KEEP_PERIODIC:]:
            path.unlink()
        manifest = self._read_manifest()
        self._write_manifest({name: entry for name, entry in manifest.items() if (self.folder / name).exists()})

    def _read_manifest(self) -> dict[str, dict[str, Any]]:
        try:
            manifest = json.loads((self.folder / MANIFEST_NAME).read_text(encoding="utf-8"))
            return {
                name: {**entry, "iteration": int(entry["iteration"]), "sha256": list(entry["sha256"])}
                for name, entry in manifest.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s cannot be read (%r): using the files' own check sums.", MANIFEST_NAME, error)
            return {}

    def _write_manifest(self, manifest: dict[str, dict[str, Any]]) -> None:
        write_atomically(self.folder / MANIFEST_NAME, json.dumps(manifest, indent=1))

    def _temporary(self, name: str) -> Path:
        return self.folder / f".{name}{TEMPORARY_SUFFIX}"


def check_finite(weights: Mapping[str, Any]) -> None:
    """Check weights before they are saved or handed on.

    Args:
        weights: A model's state dict.

    Raises:
        NumericError: One of them is NaN or infinite; names it.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NumericError(
                f"{name} holds NaN or infinity: these weights are not saved, and the checkpoints from before are "
                "sound. Go on from the last of them, with a lower learning rate."
            )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes_of_tensors(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(map(_bytes_of_tensors, state.values()))
    if isinstance(state, (list, tuple)):
        return sum(map(_bytes_of_tensors, state))
    return 0
