"""Digests do not depend on where files are, and change with their names and contents."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pvt_det.utils import digest
from pvt_det.utils.digest import folder_digest


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "below").mkdir()
    for name, content in (("b.png", b"2"), ("a.PNG", b"1"), ("below/c.png", b"3"), ("a.txt", b"4")):
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("batch", [1, 200])
def test_folder_digest_is_that_of_names_and_contents(folder, monkeypatch, batch):
    monkeypatch.setattr(digest, "_FILES_AT_A_TIME", batch)
    files = {"a.PNG": b"1", "b.png": b"2", "below/c.png": b"3"}
    expected = json.dumps([[name, hashlib.sha256(content).hexdigest()] for name, content in files.items()])
    assert folder_digest(folder, ".png") == hashlib.sha256(expected.encode()).hexdigest()


def test_folder_digest_changes_with_every_file(folder):
    before = folder_digest(folder, ".png")
    (folder / "a.txt").write_bytes(b"5")
    assert folder_digest(folder, ".png") == before
    (folder / "below/c.png").write_bytes(b"5")
    changed = folder_digest(folder, ".png")
    (folder / "below/c.png").rename(folder / "below/d.png")
    assert len({before, changed, folder_digest(folder, ".png")}) == 3


def test_folder_digest_without_files(tmp_path):
    assert folder_digest(tmp_path, ".png") == folder_digest(tmp_path / "missing", ".png") == ""
