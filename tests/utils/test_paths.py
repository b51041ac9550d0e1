"""Folders for output: made, or refused in one line before any work is done for them."""

from __future__ import annotations

import errno
import os
import sys
import tempfile

import pytest

from pvt_det.cli.start import start
from pvt_det.errors import ConfigError
from pvt_det.utils.paths import make_folder, make_place


def test_a_folder_is_made_with_those_above_it_and_left_empty(tmp_path):
    for _ in range(2):
        make_folder(tmp_path / "a/b")
    assert list((tmp_path / "a/b").iterdir()) == []


@pytest.mark.parametrize("below", ["", "/a/b"])
def test_a_file_in_the_way_is_named_with_what_to_do(tmp_path, below):
    (tmp_path / "file").touch()
    message = rf"^folder .*file{below} cannot be made: a file is in its place\. Name another folder for the output\.$"
    with pytest.raises(ConfigError, match=message):
        make_folder(f"{tmp_path}/file{below}")


# Root, as whom tests may run, is kept from writing by no mode of a folder.
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOENT])
def test_a_folder_that_is_there_and_takes_no_file_is_refused(tmp_path, monkeypatch, number):
    def refuse(**_):
        raise OSError(number, os.strerror(number), str(tmp_path))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ConfigError, match=f"^folder {tmp_path} cannot be written in: {os.strerror(number)}"):
        make_folder(tmp_path)


def test_a_folder_where_a_file_shall_be_is_refused(tmp_path):
    make_place(tmp_path / "new/page.html")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(ConfigError, match="new is a folder: name a file for the output"):
        make_place(tmp_path / "new")


# A model is named that is not there: the folder comes first.
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_before_their_work(command, repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)
    with pytest.raises(ConfigError, match=r"^folder /proc/absent\S* cannot be made: "):
        start(command.strip(), COMMANDS[command].format("/proc/absent").split(), "pvt-det")
