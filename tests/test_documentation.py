"""Files, targets and commands named in the documentation exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pvt_det import __version__

PAGES = ("README.md", "CONTRIBUTING.md", "datasets/README.md", "Makefile", ".ci/run")
OURS = re.compile(r"(?<![\w/.~-])(?:pvt_det|tools|configs|tests|datasets)/[\w/.-]*\.(?:py|yaml|md)\b")
CONFIG = re.compile(r"`((?:retinanet|mask_rcnn)_\w+\.yaml)`")


@pytest.mark.parametrize("page", PAGES)
def test_files_named_in_documents_exist(repo_root: Path, page: str) -> None:
    text = (repo_root / page).read_text(encoding="utf-8")
    named = set(OURS.findall(text)) | {f"configs/{name}" for name in CONFIG.findall(text)}
    named |= {link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link}
    assert [name for name in sorted(named) if not (repo_root / name).exists()] == []


def test_make_targets_named_in_documents_exist(repo_root: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (repo_root / "Makefile").read_text(), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md", "datasets/README.md", ".ci/run"):
        named = set(re.findall(r"(?:`|^)make (\w+)", (repo_root / page).read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= targets, page


def test_readme_has_the_test_command_of_the_makefile(repo_root: Path) -> None:
    recipe = re.search(r"^test: setup\n\t(.+)$", (repo_root / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    command = recipe[1].replace("$(RUN)", ".venv/bin/python")
    assert f"python3 tools/setup_env.py && {command}\n" in (repo_root / "README.md").read_text(encoding="utf-8")


def test_changelog_starts_with_this_version(repo_root: Path) -> None:
    headings = re.findall(r"^## \[(.+?)\]", (repo_root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] in ("Unreleased", __version__)
