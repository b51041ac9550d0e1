"""Exit codes, one-line messages, suggestions, the folder lock and random states."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import random
import sys

import numpy as np
import pytest
import torch

from pvt_det import errors
from pvt_det.utils.cli import ArgumentParser, run_cli
from pvt_det.utils.lock import FolderLock
from pvt_det.utils.rng import preserve_random_state, random_state, seed_all, set_random_state


@pytest.mark.parametrize("error", errors.PvtDetError.__subclasses__())
def test_user_error_prints_one_line_and_returns_exit_code(error, capsys):
    def main():
        raise error("a.json: broken.")

    assert run_cli(main) == error.exit_code
    kind = "stopped" if error is errors.Interrupted else "error"
    assert capsys.readouterr().err == f"{kind}: a.json: broken.\n"


def test_exit_codes_of_ctrl_c_and_success(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert run_cli(interrupted) == 130
    assert capsys.readouterr().err.startswith("stopped: ")
    assert run_cli(lambda: None) == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG])
def test_unusable_folder_is_a_user_error(number, capsys):
    def main():
        raise OSError(number, os.strerror(number), "found/results.json")

    assert run_cli(main) == 2
    assert capsys.readouterr().err.startswith(f"error: found/results.json: {os.strerror(number)}. ")


def test_unprintable_characters_are_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert run_cli(lambda: print("a\udcff → b", flush=True)) == 0
    assert written.getvalue() == b"a\\udcff \\u2192 b\n"


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_cli(lambda: 1 // 0)


def test_arguments_in_any_order_and_suggestions():
    parser = ArgumentParser(prog="x")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--count", type=int)
    parser.add_argument("words", nargs="*")
    parsed = parser.parse_words(["A", "1", "--resume", "B", "-2"])
    assert (parsed.resume, parsed.words) == (True, ["A", "1", "B", "-2"])
    with pytest.raises(errors.ConfigError, match=r"--resum3.*Did you mean --resume\?"):
        parser.parse_words(["--resum3"])
    with pytest.raises(errors.ConfigError, match="invalid int value: 'two'"):
        parser.parse_words(["--count", "two"])


def _hold(folder, held, done):
    with FolderLock(folder):
        held.set()
        done.wait(30)


def test_folder_is_locked_until_its_process_ends(tmp_path):
    processes = multiprocessing.get_context("fork")
    held, done = processes.Event(), processes.Event()
    holder = processes.Process(target=_hold, args=(tmp_path, held, done))
    holder.start()
    try:
        assert held.wait(30)
        with pytest.raises(errors.ConfigError, match=rf"process {holder.pid}.*--output"), FolderLock(tmp_path):
            pass
    finally:
        holder.kill()
        holder.join()
    with FolderLock(tmp_path):
        pass


def test_lock_refuses_folder_that_is_not_writable(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(errors.ConfigError, match="cannot be written"), FolderLock(tmp_path):
        pass


def test_random_states_are_restored():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item(), np.random.randn()

    seed_all(5)
    np.random.randn()  # NumPy draws normal numbers in pairs and keeps the second in its state
    state = random_state()
    first = draw()
    set_random_state(state)
    with preserve_random_state():
        draw()
    assert draw() == first
