"""Output folders are created, or refused in one line before any work is done."""

from __future__ import annotations

import errno
import os
import sys
import tempfile

import pytest

from pvt_det.cli.start import start
from pvt_det.errors import ConfigError
from pvt_det.utils.paths import make_folder, make_parent_folder


def test_folder_is_created_with_parents_and_left_empty(tmp_path):
    for _ in range(2):
        make_folder(tmp_path / "a/b")
    assert list((tmp_path / "a/b").iterdir()) == []


@pytest.mark.parametrize("below", ["", "/a/b"])
def test_file_in_the_way_is_reported(tmp_path, below):
    (tmp_path / "file").touch()
    message = rf"^folder .*file{below} cannot be created: a file is in the way\. Choose another output folder\.$"
    with pytest.raises(ConfigError, match=message):
        make_folder(f"{tmp_path}/file{below}")


# The error is simulated because tests may run as root, which ignores the permissions of a folder.
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOENT])
def test_existing_folder_that_is_not_writable_is_refused(tmp_path, monkeypatch, number):
    def refuse(**_):
        raise OSError(number, os.strerror(number), str(tmp_path))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ConfigError, match=f"^folder {tmp_path} cannot be written to: {os.strerror(number)}"):
        make_folder(tmp_path)


def test_folder_in_place_of_output_file_is_refused(tmp_path):
    make_parent_folder(tmp_path / "new/page.html")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(ConfigError, match=r"new is a folder\. Choose a file name for the output"):
        make_parent_folder(tmp_path / "new")


# The models do not exist: the output folder is checked before them.
COMMANDS = {
    "train": "--config-file configs/retinanet_pvt_tiny.yaml --output {}",
    "train-cls": "--model pvt_tiny --data absent --output {}",
    "train-cls ": "--model pvt_tiny --data absent --eval-only --weights absent --output {}",
    "inspect": "absent.json absent --html {}/page.html",
    "inspect ": "absent.json absent --write-config {}/mine.yaml",
    "benchmark": "--models absent --json {}/found.json",
    "report": "absent --output {}/page.html",
    "compare": "absent --output {}/table.md",
    "export": "--config-file absent --output {}/mine.pt2",
    "explain": "absent.png --model pvt_tiny --output {}/map.png",
    "convert": "absent --to published --output {}/trunk.pth",
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc exists only on Linux")
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_check_output_folder_first(command, repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)
    with pytest.raises(ConfigError, match=r"^folder /proc/absent\S* cannot be created: "):
        start(command.strip(), COMMANDS[command].format("/proc/absent").split(), "pvt-det")
