"""Files, targets and commands named in the documentation exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pvt_det import __version__

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("[bcd]*/*.md"))  # benchmarks, configs, datasets, docs
OURS = re.compile(r"(?<![\w/.~-])(?:pvt_det|tools|configs|tests|datasets|benchmarks)/[\w/.-]*\.(?:py|yaml|md)\b")
CONFIG = re.compile(r"`((?:retinanet|mask_rcnn)_\w+\.yaml)`")


@pytest.mark.parametrize("page", [*DOCUMENTS, ROOT / "Makefile", ROOT / ".ci/run"], ids=lambda path: path.name)
def test_files_named_in_documents_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {ROOT / name for name in OURS.findall(text)} | {ROOT / "configs" / name for name in CONFIG.findall(text)}
    missing = [str(path.relative_to(ROOT)) for path in sorted(named) if not path.exists()]
    assert missing == []


@pytest.mark.parametrize("page", [path for path in DOCUMENTS if path.parent.name != "docs"], ids=lambda path: path.name)
def test_links_outside_the_site_exist(page: Path) -> None:
    """MkDocs checks the links of the pages in docs/."""
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    files = [link.partition("#")[0] for link in links if "://" not in link]
    assert [file for file in files if not (page.parent / file).exists()] == []


def test_make_targets_named_in_documents_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (*DOCUMENTS, ROOT / ".ci/run"):
        named = set(re.findall(r"(?:`|^)make (\w+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= targets, page


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_readme_has_the_test_command_of_the_makefile(repo_root: Path) -> None:
    recipe = re.search(r"^test: setup\n\t(.+)$", (repo_root / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    command = recipe[1].replace("$(RUN)", ".venv/bin/python")
    assert f"python3 tools/setup_env.py && {command}\n" in (repo_root / "README.md").read_text(encoding="utf-8")


def test_changelog_starts_with_this_version(repo_root: Path) -> None:
    headings = re.findall(r"^## \[(.+?)\]", (repo_root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] in ("Unreleased", __version__)
