"""The recorded commit is this project's, never that of another repository that contains the package."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import pvt_det
from pvt_det.utils.environment import available_cores, commit_or_version, environment

IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *IDENTITY, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one commit and no package."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "notes.txt").write_text("mine")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "Begin")
    return tmp_path


def copy_package(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(Path(pvt_det.__file__).parent, folder / "pvt_det", ignore=ignored))


def test_checkout_reports_commit_and_changes(repository):
    package = copy_package(repository)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "Add the package")
    commit = git(repository, "rev-parse", "HEAD")
    found = commit_or_version(package)
    assert len(found) >= 7
    assert commit.startswith(found)
    (package / "__init__.py").write_text("changed")
    assert commit_or_version(package) == f"{found}-dirty"


@pytest.mark.parametrize("place", [".venv/lib/python3.11/site-packages", "."])
def test_package_installed_in_another_repository_reports_version(repository, place):
    folder = repository / place
    folder.mkdir(parents=True, exist_ok=True)
    assert commit_or_version(copy_package(folder)) == pvt_det.__version__


def test_vendored_package_reports_version(repository):
    package = copy_package(repository / "third_party")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "Vendor the package")
    assert commit_or_version(package) == pvt_det.__version__


def test_version_is_reported_without_git(repository, monkeypatch):
    package = copy_package(repository)
    monkeypatch.setenv("PATH", str(repository / "empty"))
    assert commit_or_version(package) == pvt_det.__version__


def test_environment_is_complete():
    found = environment(torch.device("cpu"))
    assert list(found) == ["device", "threads", "python", "system", "versions", "commit", "date"]
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert all(found.values())


def test_cores_are_counted_on_every_system(monkeypatch):
    assert available_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores() == 6
