"""Checkpoints of a run: saved atomically, and verified before they are loaded.

Periodic checkpoints hold the whole training state. The best and the final one hold weights only.

A save writes a temporary file, flushes it to disk and renames it. `checkpoints.json` lists the SHA-256 of every
checkpoint, and `last_checkpoint` names the one to resume from. A process that is killed at any moment leaves the
previous checkpoint readable.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pvt_det.errors import CheckpointError, NumericError
from pvt_det.utils.agreement import shortened
from pvt_det.utils.digest import file_digest
from pvt_det.utils.files import TEMPORARY_SUFFIX, sync_folder, write_atomically
from pvt_det.weights.reader import read_file

MANIFEST_NAME = "checkpoints.json"
LAST_NAME = "last_checkpoint"
_PERIODIC = re.compile(r"model_(\d{7,})\.pth")
# What a checkpoint holds, in `checkpoints.json`. Earlier versions did not record it: all theirs hold a training state.
_STATE, _WEIGHTS = "training state", "weights"
_STATE_KEYS = frozenset({"model", "iteration", "optimizer"})
# That of a detector has a seed and that of a classifier its options. Other programs' checkpoints have neither.
_OWN_KEYS = frozenset({"seed", "options"})
# Version of the training state. Increase it if earlier versions of this package could not resume from a new state.
FORMAT = 1
_MARGIN_BYTES = 16 * 2**20
# Temporary files of a store, whether written by `save` or atomically. Others in the folder are not its own.
_TEMPORARY = re.compile(
    rf"\.(model_(\d{{7,}}|best|final|last)\.pth|{re.escape(MANIFEST_NAME)}|{LAST_NAME})(\.\d+)?"
    rf"{re.escape(TEMPORARY_SUFFIX)}"
)
# Expected types of the entries of a training state.
_COUNTS = ("iteration", "skipped", "skipped_in_row", "ema_updates")
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys((*_COUNTS, "seed"), (int,)),
    **dict.fromkeys(("model", "training_model", "optimizer", "scaler", "hooks", "fingerprint"), (dict, OrderedDict)),
    **dict.fromkeys(("random", "classes", "changes"), (list,)),
}
logger = logging.getLogger(__name__)


class CheckpointStore:
    """Saves, verifies and loads the checkpoints of a run folder.

    Only one process may write to the folder, see `pvt_det.utils.lock`.

    Args:
        folder: The run folder. It must exist.
        keep: Number of periodic checkpoints to keep, at least 1. The best and the final one are always kept.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.folder = folder
        self._keep = keep

    def clean(self) -> None:
        """Remove temporary files of a save that was killed. Hidden files of other programs are kept."""
        for path in self.folder.glob(f".*{TEMPORARY_SUFFIX}"):
            if _TEMPORARY.fullmatch(path.name):
                path.unlink()

    def check_space(self, needed: int) -> None:
        """Check that the disk has room for a checkpoint, plus a margin of 16 MiB.

        Args:
            needed: Size of the checkpoint in bytes.

        Raises:
            CheckpointError: If the free space is too small.
        """
        free = shutil.disk_usage(self.folder).free
        if free < needed + _MARGIN_BYTES:
            raise CheckpointError(
                f"Not enough disk space in {self.folder}: a checkpoint takes {needed / 2**20:,.0f} MiB and "
                f"{free / 2**20:,.0f} MiB are free. Free some space, or choose another folder with --output."
            )

    def save(self, name: str, state: Mapping[str, Any], iteration: int) -> Path:
        """Save a training state atomically, as the checkpoint to resume from. Older periodic ones are deleted.

        Args:
            name: File name in the folder. An existing file is replaced.
            state: The training state: tensors, numbers, strings and containers of them.
            iteration: Index of the last finished iteration. If `last_checkpoint` is lost, the checkpoint with the
                highest index is resumed.

        Returns:
            Path of the checkpoint.

        Raises:
            CheckpointError: If the disk is full or the folder cannot be written to. An existing file of that name is
                then unchanged.
        """
        with self._saving(name):
            self._write(name, state, iteration, _STATE)
            write_atomically(self.folder / LAST_NAME, name)
            self._prune()
        return self.folder / name

    def save_weights(self, name: str, weights: Mapping[str, torch.Tensor], iteration: int) -> Path:
        """Save weights atomically, without what a resumed run needs.

        The file is a dictionary with `model` and `iteration`, as Detectron2's checkpointer reads it.

        Args:
            name: File name in the folder. An existing file is replaced.
            weights: A model's state dict.
            iteration: Index of the last finished iteration.

        Returns:
            Path of the file.

        Raises:
            CheckpointError: If the disk is full or the folder cannot be written to. An existing file of that name is
                then unchanged.
        """
        with self._saving(name):
            self._write(name, {"model": dict(weights), "iteration": iteration}, iteration, _WEIGHTS)
        return self.folder / name

    def latest(self) -> Path | None:
        """Find and verify the checkpoint to resume from.

        Returns:
            The checkpoint that `last_checkpoint` names, or the newest intact one with a training state if that file is
            lost. None if the folder has no checkpoints.

        Raises:
            CheckpointError: If the checkpoint that `last_checkpoint` names is damaged, no checkpoint is intact, or all
                of them hold weights only.
        """
        named = self._last_checkpoint()
        found = self._newest_first(self.folder.glob("model_*.pth"))
        candidates = [path for path in found if self._holds_state(path)]
        if named is not None:
            try:
                self.verify(named)
            except CheckpointError as error:
                intact = next((path for path in candidates if path != named and self._is_intact(path)), None)
                fix = f"Delete it to resume from {intact.name}." if intact else "No other checkpoint is intact."
                raise CheckpointError(f"{error} {fix}") from error
            return named
        for path in candidates:
            if self._is_intact(path):
                logger.warning(
                    "%s in %s is missing or incomplete. Resuming from %s, the newest intact checkpoint.",
                    LAST_NAME,
                    self.folder,
                    path.name,
                )
                return path
        if candidates:
            raise CheckpointError(
                f"Every checkpoint in {self.folder} is damaged: {', '.join(path.name for path in candidates)}. Start "
                "again in another folder with --output."
            )
        if found:
            raise CheckpointError(
                f"No checkpoint in {self.folder} holds a training state to resume from, only weights: "
                f"{', '.join(path.name for path in found)}. To train on from them, start a run in another folder "
                f"(--output) with MODEL.WEIGHTS {found[0]}, without --resume."
            )
        return None

    def verify(self, path: Path) -> None:
        """Check a checkpoint against its digest in `checkpoints.json`, or else against its own checksums.

        Args:
            path: A checkpoint in this folder. One that `checkpoints.json` does not list is checked by the CRC-32 sums
                of the zip archive.

        Raises:
            CheckpointError: If the file is missing, truncated or altered.
        """
        entry = self._read_manifest().get(path.name)
        try:
            if entry is not None:
                if file_digest(path) not in entry["sha256"]:
                    raise _damaged(path)
                return
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: the checksum (CRC-32) of its entry {damaged} is wrong.")

    def identify(self, path: Path) -> tuple[str, int]:
        """Compute the digest of a weight file, and verify the file if `save` wrote it.

        Args:
            path: Any file in this folder.

        Returns:
            The SHA-256 of the file, and the number of iterations that the checkpoint was trained for. The number is 0
            if `checkpoints.json` does not list the file.

        Raises:
            CheckpointError: If the file cannot be read, or its content differs from what was saved.
        """
        entry = self._read_manifest().get(path.name)
        try:
            digest = file_digest(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
        if entry is not None and digest not in entry["sha256"]:
            raise _damaged(path)
        return digest, 0 if entry is None else int(entry["iteration"]) + 1

    def saved_digest(self, name: str) -> str:
        """Return the digest of a checkpoint as it was saved, without reading the checkpoint.

        Args:
            name: File name in the folder.

        Returns:
            The SHA-256, or "" if `checkpoints.json` does not list the file.
        """
        entry = self._read_manifest().get(name)
        return entry["sha256"][0] if entry else ""

    def load(self, path: Path) -> dict[str, Any]:
        """Verify a checkpoint and load it onto the CPU, without running any code in it.

        Args:
            path: A checkpoint that `save` wrote.

        Returns:
            The training state.

        Raises:
            CheckpointError: If the file is damaged, unsafe, from a newer version or not the training state of a run.
        """
        self.verify(path)
        state = read_file(path)
        check_format(path, state)
        if not _is_state(state):
            raise CheckpointError(
                f"{path} is not a training state. To start from its weights, use it as MODEL.WEIGHTS, without --resume."
            )
        for key in state.keys() & _TYPES.keys():
            if type(state[key]) not in _TYPES[key]:
                kind = type(state[key]).__name__
                raise CheckpointError(
                    f"{path} is not a valid training state: {key!r} has the type {kind}. Copy the file again."
                )
        for key in state.keys() & set(_COUNTS):
            if state[key] < 0:
                raise CheckpointError(
                    f"{path} is not a valid training state: {key!r} is {state[key]}, expected 0 or more. Copy the file "
                    "again, or resume from another checkpoint."
                )
        return state

    @contextmanager
    def _saving(self, name: str) -> Iterator[None]:
        """Context manager that removes the temporary file of a failed save and says what to do."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            # torch.save reports a failed write as RuntimeError.
            self._temporary(name).unlink(missing_ok=True)
            raise CheckpointError(
                f"Cannot save {self.folder / name}: {error}. Earlier checkpoints are intact. Free some space or fix "
                "the folder, then continue with --resume."
            ) from error

    def _write(self, name: str, content: Mapping[str, Any], iteration: int, kind: str) -> None:
        temporary = self._temporary(name)
        self.check_space(_bytes_of_tensors(content))
        with temporary.open("wb") as file:
            torch.save({**content, "format": FORMAT}, file)
            file.flush()
            os.fsync(file.fileno())
        digest = file_digest(temporary)
        manifest = self._read_manifest()
        # Until the rename, the file of that name is still the old one, so both digests are valid.
        old = manifest.get(name, {}).get("sha256", [])
        size = temporary.stat().st_size
        entry = {"iteration": iteration, "bytes": size, "content": kind, "sha256": [digest, *old]}
        self._write_manifest({**manifest, name: entry})
        temporary.replace(self.folder / name)
        sync_folder(self.folder)
        self._write_manifest({**manifest, name: {**entry, "sha256": [digest]}})

    def _holds_state(self, path: Path) -> bool:
        """Return whether a checkpoint holds a training state. One that cannot be read counts as one that does."""
        entry = self._read_manifest().get(path.name)
        if entry is not None:
            return entry.get("content", _STATE) == _STATE
        if _PERIODIC.fullmatch(path.name):
            return True
        try:
            return _is_state(read_file(path))
        except CheckpointError:
            return True

    def _last_checkpoint(self) -> Path | None:
        try:
            name = (self.folder / LAST_NAME).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        path = self.folder / Path(name).name
        return path if name and path.is_file() else None

    def _newest_first(self, paths: Iterable[Path]) -> list[Path]:
        manifest = self._read_manifest()

        def iteration(path: Path) -> int:
            # Not the time of the file: clocks are set back.
            if path.name in manifest:
                return int(manifest[path.name]["iteration"])
            numbered = _PERIODIC.fullmatch(path.name)
            return int(numbered[1]) if numbered else _read_iteration(path)

        # The final checkpoint comes first among those of the same iteration.
        return sorted(paths, key=lambda path: (iteration(path), path.name), reverse=True)

    def _is_intact(self, path: Path) -> bool:
        try:
            self.verify(path)
        except CheckpointError as error:
            logger.warning("%s", error)
            return False
        return True

    def _prune(self) -> None:
        periodic = [path for path in self.folder.glob("model_*.pth") if _PERIODIC.fullmatch(path.name)]
        # The one to resume from comes first: a run that was resumed from an older checkpoint has newer ones beside it.
        last = self._last_checkpoint()
        for path in sorted(self._newest_first(periodic), key=lambda path: path != last)[self._keep :]:
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
            logger.warning("%s cannot be read (%r). Using the files' own checksums instead.", MANIFEST_NAME, error)
            return {}

    def _write_manifest(self, manifest: dict[str, dict[str, Any]]) -> None:
        write_atomically(self.folder / MANIFEST_NAME, json.dumps(manifest, indent=1))

    def _temporary(self, name: str) -> Path:
        return self.folder / f".{name}{TEMPORARY_SUFFIX}"


def check_finite(weights: Mapping[str, Any]) -> None:
    """Check that all weights are finite.

    Args:
        weights: A model's state dict.

    Raises:
        NumericError: If a tensor contains NaN or infinity. The message names the tensor.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NumericError(
                f"{name} contains NaN or infinity. These weights are not saved, and earlier checkpoints are intact. "
                "Resume from the last one with a lower learning rate."
            )


def check_format(path: Path, state: Any) -> None:
    """Check that a checkpoint is not from a newer version of this package.

    Args:
        path: The file that the state was read from, for the message.
        state: Content of the file.

    Raises:
        CheckpointError: If a newer version wrote the state in a format that this version does not know.
    """
    found = state.get("format", 0) if isinstance(state, dict) else 0
    if type(found) is not int or not 0 <= found <= FORMAT:
        fingerprint = state.get("fingerprint")
        code = fingerprint.get("code version", "unknown") if isinstance(fingerprint, dict) else "unknown"
        raise CheckpointError(
            f"{path} was saved by a newer version of pvt_det: its format is {shortened(found)} (code version "
            f"{shortened(code)}). Expected at most format {FORMAT}. Update pvt_det, or resume with the version that "
            "saved it."
        )


def _is_state(content: Any) -> bool:
    """Return whether the content of a file is a training state."""
    return isinstance(content, dict) and content.keys() >= _STATE_KEYS and not _OWN_KEYS.isdisjoint(content)


def _read_iteration(path: Path) -> int:
    """Return the iteration of a checkpoint that the manifest does not list, or -1 if it cannot be read."""
    try:
        state = read_file(path)
    except CheckpointError:
        return -1
    found = state.get("iteration") if isinstance(state, dict) else None
    return found if type(found) is int else -1


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: its content differs from what was saved (SHA-256 mismatch).")


def _bytes_of_tensors(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(map(_bytes_of_tensors, state.values()))
    if isinstance(state, (list, tuple)):
        return sum(map(_bytes_of_tensors, state))
    return 0
