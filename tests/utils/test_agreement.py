"""An output folder that not all processes share is refused in every process, and the check leaves nothing behind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pvt_det.errors import ConfigError
from pvt_det.utils import agreement
from pvt_det.utils.agreement import check_shared_folder


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(agreement, "_APPEARS", 0.3)
    monkeypatch.setattr(agreement, "_LOOK", 0.05)


def check(*folders):
    """Check the folders of several ranks, each in a thread, and return their errors."""
    barrier, values = threading.Barrier(len(folders)), [None] * len(folders)

    def run(rank):
        def gather(value):
            values[rank] = value
            barrier.wait(10)
            found = list(values)
            barrier.wait(10)
            return found

        try:
            check_shared_folder(folders[rank], rank, gather)
        except ConfigError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(folders)) as pool:
        return list(pool.map(run, range(len(folders))))


def test_shared_folder_under_different_paths(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert check(tmp_path / "run", tmp_path / "link", tmp_path / "run") == ["", "", ""]
    assert not list((tmp_path / "run").iterdir())


def test_folder_that_is_not_shared(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    errors = check(tmp_path / "a", tmp_path / "a", tmp_path / "b", tmp_path / "gone")
    assert len(set(errors)) == 1
    assert "The output folder is not shared: rank 2 (" in errors[0]
    assert f": {tmp_path / 'b'}), rank 3 (" in errors[0]
    assert "cannot read what rank 0 (" in errors[0]
    assert not [*(tmp_path / "a").iterdir(), *(tmp_path / "b").iterdir()]


def test_first_rank_cannot_write(tmp_path):
    errors = check(tmp_path / "gone", tmp_path)
    assert len(set(errors)) == 1
    assert "gone) cannot write to the output folder: No such file or directory" in errors[0]


def test_file_that_appears_late_is_waited_for(tmp_path, monkeypatch):
    """A network file system may show a new file after some time."""
    looks = iter([False, False, True])
    monkeypatch.setattr(agreement, "_holds", lambda file, content: next(looks))
    monkeypatch.setattr(agreement, "_APPEARS", 10)
    assert agreement._appears(tmp_path / "x", "x")


def test_single_process_writes_nothing(tmp_path):
    assert check(tmp_path / "gone") == [""]
