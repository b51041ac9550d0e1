"""Tests of the files in requirements/, of the scripts that write them, and of the software bill of materials."""

from __future__ import annotations

import importlib.metadata
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools import lock, sbom, setup_env

FILES = sorted(setup_env.LOCKS.glob("*.txt"))
ENTRY = re.compile(
    r"^(?P<need>[a-z0-9-]+==\S+)(?: ; (?P<marker>[^\\]+))?(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
)


def versions(path: Path) -> dict[str, str]:
    """Return the versions in a lock file by name. Fails on anything else than comments and entries with hashes."""
    content = "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("#"))
    found = {}
    while content:
        entry = ENTRY.match(content)
        assert entry, content[:200]
        name, version = entry["need"].split("==")
        assert name not in found
        found[name] = version
        content = content[entry.end() :]
    return found


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch, repo_root: Path) -> dict[str, Any]:
    """The arguments of `setup` in setup.py."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: found.update(arguments))
    runpy.run_path(str(repo_root / "setup.py"))
    return found


def unmet(needs: list[str], found: dict[str, str]) -> list[str]:
    wanted = [Requirement(need) for need in needs]
    wanted = [need for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]
    return [str(need) for need in wanted if found.get(canonicalize_name(need.name), "0") not in need.specifier]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_entry_has_a_version_and_hashes_and_no_place(path: Path) -> None:
    assert len(versions(path)) >= 1
    assert "/" not in path.read_text().replace("tools/setup_env.py", "")


def test_locked_versions_satisfy_setup_py(declared: dict[str, Any]) -> None:
    found = versions(setup_env.DEV_LOCK)
    assert unmet([*declared["install_requires"], *declared["extras_require"]["dev"]], found) == []
    assert unmet(["setuptools==0"], found) == ["setuptools==0"]
    build = versions(setup_env.BUILD_LOCK)
    assert build.items() <= found.items()
    assert unmet(declared["install_requires"], versions(setup_env.OLDEST_LOCK)) == []


@pytest.mark.parametrize(
    ("package", "path"),
    [
        (setup_env.DETECTRON2, setup_env.DEV_LOCK),
        (setup_env.DETECTRON2, setup_env.OLDEST_LOCK),
        (setup_env.TRACKERS, setup_env.DEV_LOCK),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else value.module,
)
def test_locked_versions_satisfy_the_repacked_packages(package: setup_env.Repacked, path: Path) -> None:
    try:
        distribution = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs the repacked {package.module}")
    assert distribution.version == package.version
    assert unmet(distribution.requires or [], versions(path)) == []


def test_oldest_versions_are_the_lower_bounds(declared: dict[str, Any]) -> None:
    found = versions(setup_env.OLDEST_LOCK)
    for need in map(Requirement, declared["install_requires"]):
        bound = next(Version(part.version) for part in need.specifier if part.operator == ">=")
        oldest = Version(found[canonicalize_name(need.name)])
        assert oldest.release[: len(bound.release)] == bound.release, need


@pytest.mark.parametrize(
    ("described", "lock_file", "expected"),
    [
        ("CPython 3.11 Linux x86_64", setup_env.DEV_LOCK, True),
        ("CPython 3.14 Linux aarch64", setup_env.DEV_LOCK, True),
        ("CPython 3.15 Linux x86_64", setup_env.DEV_LOCK, False),
        ("CPython 3.11 Darwin arm64", setup_env.DEV_LOCK, False),
        ("PyPy 3.11 Linux x86_64", setup_env.DEV_LOCK, False),
        ("CPython 3.11 Linux x86_64", setup_env.OLDEST_LOCK, True),
    ],
)
def test_other_systems_get_the_newest_versions_and_a_message(monkeypatch, capsys, described, lock_file, expected):
    monkeypatch.setattr(setup_env, "output_of", lambda command: described)
    assert setup_env.is_for(lock_file, "python") == expected
    printed = capsys.readouterr().out
    assert ("without fixed hashes" in printed) == (not expected)
    if not expected:
        assert "requirements/dev.txt is for CPython 3.11, 3.12, 3.13, 3.14 on Linux (x86_64 or aarch64)" in printed


def test_oldest_versions_need_the_oldest_python(monkeypatch):
    monkeypatch.setattr(setup_env, "output_of", lambda command: "CPython 3.12 Linux x86_64")
    with pytest.raises(
        setup_env.SetupError, match=r"Delete \.venv-oldest and run `python3\.11 tools/setup_env\.py --oldest`"
    ):
        setup_env.is_for(setup_env.OLDEST_LOCK, "python")


@pytest.mark.parametrize("is_locked", [True, False])
def test_what_setup_installs(monkeypatch, is_locked):
    commands = []
    monkeypatch.setattr(setup_env, "run", commands.append)
    monkeypatch.setattr(setup_env, "output_of", lambda command: "True")
    monkeypatch.setattr(setup_env, "is_for", lambda lock_file, python: is_locked)
    setup_env.install(setup_env.sys.executable, setup_env.DEV_LOCK)
    installs = [[word for word in command[4:] if word != "-qq"] for command in commands if "install" in command]
    root = str(setup_env.ROOT)
    assert installs == (
        [
            ["--no-compile", "--require-hashes", f"--requirement={root}/requirements/build.txt"],
            ["--no-compile", "--require-hashes", "--no-build-isolation", f"--requirement={root}/requirements/dev.txt"],
            ["--no-compile", "--no-deps", "--no-build-isolation", "--editable", root],
        ]
        if is_locked
        else [["--no-compile", "--editable", f"{root}[dev]"]]
    )


def test_changed_detectron2_is_refused_before_it_is_read(monkeypatch, tmp_path, capfd):
    (tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl").write_bytes(b"changed")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(setup_env.SetupError, match="exit code 1"):
        setup_env.download(setup_env.DETECTRON2, setup_env.sys.executable, tmp_path / "out")
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in capfd.readouterr().err


RESOLVED = """\
absl-py==2.5.1 ; sys_platform == 'linux' \\
    --hash=sha256:aa \\
    --hash=sha256:bb
triton==3.5.0 ; platform_machine == 'x86_64' and sys_platform == 'linux' \\
    --hash=sha256:cc
wheel==0.48.0 ; sys_platform == 'linux' \\
    --hash=sha256:dd

# The following packages were excluded from the output:
# sal-detectron2
"""


def test_condition_of_all_entries_is_removed():
    content = lock.without_common_marker(RESOLVED)
    assert content == (
        "absl-py==2.5.1 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "triton==3.5.0 ; platform_machine == 'x86_64' and sys_platform == 'linux' \\\n    --hash=sha256:cc\n"
        "wheel==0.48.0 \\\n    --hash=sha256:dd\n"
    )
    assert lock.entry(content, "wheel") == "wheel==0.48.0 \\\n    --hash=sha256:dd\n"


def test_pythons_after_the_supported_ones():
    assert [lock.after(version) for version in ("3.11", "3.14")] == ["3.12", "3.15"]


def test_bill_of_materials_lists_what_is_needed_at_run_time(tmp_path):
    needed = sbom.needed_at_run_time(["pvt_det"])
    assert {"pvt-det", "torch", "timm", "huggingface-hub", "pyyaml"} <= needed.keys()
    assert needed.keys() & {"pytest", "ruff", "mkdocs", "transformers", "mypy"} == set()
    assert list(needed) == sorted(needed)


def test_bill_of_materials_names_no_folder_of_this_machine(tmp_path):
    names = ("pvt-det", "pyyaml", "packaging")
    packages = {name: importlib.metadata.distribution(name) for name in names}
    folder = sbom.describe(packages, tmp_path / "described")
    assert f'version = "{packages["pvt-det"].version}"' in (folder / "pyproject.toml").read_text()
    described = {path.name: path for path in folder.rglob("*.dist-info")}
    assert set(described) == {f"{name}-{packages[name].version}.dist-info" for name in names[1:]}
    assert not list(folder.rglob("direct_url.json"))
