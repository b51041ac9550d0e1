"""Output folders are created, or refused in one line before any work is done."""

from __future__ import annotations

import errno
import os
import sys
import tempfile

import pytest

from pvt_det.cli.start import start
from pvt_det.errors import ConfigError
from pvt_det.run_folder import config_file
from pvt_det.utils.paths import make_folder, make_parent_folder, similar_path


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
    with pytest.raises(
        ConfigError, match=r"^(pvt-det: argument --write-config: )?folder /proc/absent\S* cannot be created: "
    ):
        start(command.strip(), COMMANDS[command].format("/proc/absent").split(), "pvt-det")


def test_similar_path_suggests_a_misspelled_name(tmp_path):
    (tmp_path / "instances_train.json").touch()
    (tmp_path / "mine").mkdir()
    assert similar_path(tmp_path / "instance_train.json") == f" Did you mean {tmp_path}/instances_train.json?"
    assert similar_path(tmp_path / "mien") == f" Did you mean {tmp_path}/mine?"
    assert similar_path(tmp_path / "photos") == ""
    assert similar_path(tmp_path / "absent/mine") == ""
    assert similar_path(tmp_path / "mine") == ""


def test_a_folder_of_runs_names_them(tmp_path):
    (tmp_path / "output/mine").mkdir(parents=True)
    (tmp_path / "output/mine/config.yaml").touch()
    with pytest.raises(ConfigError, match=r"output contains no config\.yaml\. .* It contains the runs .*mine\.$"):
        config_file(tmp_path / "output")
    with pytest.raises(ConfigError, match=r"does not exist\. .* Did you mean .*output/mine\?$"):
        config_file(tmp_path / "output/mien")
