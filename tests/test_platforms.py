"""The package can be imported where modules, signals and functions of Linux are missing."""

from __future__ import annotations

import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from pvt_det.data import workers
from pvt_det.engine import console
from pvt_det.errors import ConfigError
from pvt_det.utils import files, lock, memory
from pvt_det.utils.lock import FolderLock
from pvt_det.utils.signals import StopRequest

# Runs in a process of its own. Only imports of this package are restricted: libraries look after themselves.
IMPORT_ALL = """
import builtins, importlib, pkgutil, sys, types

MODULES = {"curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
MISSING = {
    "signal": ["SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGSTOP", "alarm"],
    "os": ["fork", "getuid", "geteuid", "getloadavg", "killpg", "mkfifo", "pread", "pwrite", "sched_getaffinity",
           "setsid", "statvfs", "uname"],
}


def without(module, names):
    copy = types.ModuleType(module.__name__)
    copy.__dict__.update({name: value for name, value in vars(module).items() if name not in names})
    return copy


original = builtins.__import__
REPLACED = {name: without(original(name), names) for name, names in MISSING.items()}


def restricted(name, globals=None, locals=None, fromlist=(), level=0):
    if (globals or {}).get("__name__", "").partition(".")[0] == "pvt_det":
        if name.partition(".")[0] in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}")
        if name in REPLACED:
            return REPLACED[name]
    return original(name, globals, locals, fromlist, level)


builtins.__import__ = restricted
import pvt_det

names = [module.name for module in pkgutil.walk_packages(pvt_det.__path__, "pvt_det.") if "__main__" not in module.name]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_every_module_can_be_imported_without_linux(repo_root: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", IMPORT_ALL]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    modules = len(list((repo_root / "pvt_det").rglob("*.py")))
    assert int(done.stdout.split()[-1]) >= modules - 5


def test_stop_requests_without_sighup(monkeypatch):
    monkeypatch.setattr("pvt_det.utils.signals._HANGUP", None)
    monkeypatch.setattr("pvt_det.utils.signals._REQUESTS", [signal.SIGINT, signal.SIGTERM])
    hangup = signal.getsignal(signal.SIGHUP)
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGHUP) is hangup
        signal.raise_signal(signal.SIGTERM)
    assert stop.signal_name == "SIGTERM"


class Msvcrt(types.ModuleType):
    """Windows' file locks, for one process: a list of the locked bytes."""

    LK_NBLCK = 2

    def __init__(self):
        super().__init__("msvcrt")
        self.locked = []

    def locking(self, file, mode, count):
        if self.locked:
            raise PermissionError(13, "Permission denied")
        self.locked.append((mode, count))


def test_folders_are_locked_on_windows(monkeypatch, tmp_path):
    msvcrt = Msvcrt()
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    monkeypatch.setattr(lock, "fcntl", None)
    with FolderLock(tmp_path):
        assert msvcrt.locked == [(2, 1)]
        with pytest.raises(ConfigError, match=r"Another run \(process \d+\) is writing"), FolderLock(tmp_path):
            pass
    assert (tmp_path / lock.LOCK_NAME).stat().st_size < 32


def test_memory_that_the_system_does_not_report_is_left_out(monkeypatch):
    assert console.peak_memory_gib("cpu") * 2**30 == pytest.approx(memory.peak_resident_memory(), rel=0.1)
    monkeypatch.setattr(memory, "resource", None)
    assert memory.peak_resident_memory() is None
    assert memory.open_file_limits() is None
    assert console.peak_memory_gib("cpu") is None


def test_macos_reports_memory_in_bytes(monkeypatch):
    kibibytes = memory.peak_resident_memory()
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert memory.peak_resident_memory() == pytest.approx(kibibytes / 1024, rel=0.1)


def test_workers_start_without_linux(monkeypatch):
    calls = []
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr(workers, "_prctl_pr_set_pdeathsig", calls.append)
    monkeypatch.setattr(workers.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(workers.cv2, "setNumThreads", lambda number: None)
    monkeypatch.setattr(workers.ForkingPickler, "register", lambda kind, function: calls.append(kind))
    workers.start_worker(0)
    assert calls == [torch.UntypedStorage]


def test_folders_are_not_flushed_on_windows(monkeypatch, tmp_path):
    monkeypatch.setattr(files.os, "name", "nt")
    opened = []
    monkeypatch.setattr(files.os, "open", lambda *args: opened.append(args))
    files.sync_folder(tmp_path)
    monkeypatch.undo()
    assert opened == []
