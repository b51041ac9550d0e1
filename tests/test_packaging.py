"""Tests of the package metadata, the setup script, and the repacking of Detectron2's wheel."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import pvt_det
from tools import setup_env


def test_setup_py_has_name_version_and_license(repo_root: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "--name", "--version", "--license"]
    lines = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True).stdout.split()
    assert lines == ["pvt_det", pvt_det.__version__, "Apache-2.0"]


def test_wheel_contains_the_recipes_and_studies(repo_root: Path, tmp_path: Path) -> None:
    # In a copy, because the build also writes beside the sources.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "README.md", "pyproject.toml"):
        shutil.copy(repo_root / name, source)
    for name in ("configs", "studies", "pvt_det"):
        shutil.copytree(repo_root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(command, cwd=source, capture_output=True, check=True)
    for name in ("configs", "studies"):
        copied = tmp_path / "lib/pvt_det/model_zoo" / name
        found = {path.relative_to(copied) for path in copied.rglob("*.yaml")}
        assert found == {path.relative_to(source / name) for path in (source / name).rglob("*.yaml")} != set()


FILES = {
    "detectron2/__init__.py": "__version__ = '0.7.2'\n",
    "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "machine code",
    "detectron2/model_zoo/configs/Base.yaml": "VERSION: 2\n",
    "tools/__init__.py": "",
    "tools/train_net.py": "print()\n",
    "sal_detectron2-0.7.2.dist-info/LICENSE": "Apache License\n",
    "sal_detectron2-0.7.2.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: sal-detectron2\nVersion: 0.7.2\nLicense-File: LICENSE\n"
        'Requires-Dist: yacs>=0.1.8\nRequires-Dist: numpy<2\nRequires-Dist: dataclasses; python_version < "3.7"\n'
    ),
    "sal_detectron2-0.7.2.dist-info/WHEEL": (
        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: cp310-cp310-linux_x86_64\n\n"
    ),
    "sal_detectron2-0.7.2.dist-info/top_level.txt": "detectron2\ntools\n",
}


def hash_of(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def repacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small wheel with the published wheel's structure, repacked."""
    folder = tmp_path_factory.mktemp("wheels")
    source = folder / "sal_detectron2-0.7.2-cp310-none-any.whl"
    record = "sal_detectron2-0.7.2.dist-info/RECORD"
    with zipfile.ZipFile(source, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
        lines = [f"{name},{hash_of(text.encode())},{len(text)}" for name, text in FILES.items()]
        archive.writestr(record, "\n".join([*lines, f"{record},,", ""]))
    return setup_env.repack(setup_env.DETECTRON2, source, folder / "pure", sys.executable)


def test_repacked_wheel_contains_only_python(repacked: Path) -> None:
    assert repacked.name == "sal_detectron2-0.7.2+pure-py3-none-any.whl"
    info = "sal_detectron2-0.7.2+pure.dist-info"
    with zipfile.ZipFile(repacked) as archive:
        assert set(archive.namelist()) == {
            "detectron2/__init__.py",
            "detectron2/model_zoo/configs/Base.yaml",
            *(f"{info}/{name}" for name in ("LICENSE", "METADATA", "RECORD", "WHEEL", "top_level.txt")),
        }
        assert archive.read(f"{info}/top_level.txt").decode().split() == ["detectron2"]
        wheel = message_from_string(archive.read(f"{info}/WHEEL").decode())
        assert wheel["Root-Is-Purelib"] == "true"
        assert wheel.get_all("Tag") == ["py3-none-any"]
        record = archive.read(f"{info}/RECORD").decode().splitlines()
        for name, expected, size in (line.rsplit(",", 2) for line in record):
            if name != f"{info}/RECORD":
                content = archive.read(name)
                assert (expected, size) == (hash_of(content), str(len(content)))
        assert len(record) == len(archive.namelist())


def test_repacked_wheel_lists_its_requirements(repacked: Path) -> None:
    with zipfile.ZipFile(repacked) as archive:
        text = archive.read("sal_detectron2-0.7.2+pure.dist-info/METADATA").decode()
    metadata = message_from_string(text)
    assert metadata["Version"] == "0.7.2+pure"
    assert sorted(metadata.get_all("Requires-Dist", [])) == [
        "fvcore<0.1.6,>=0.1.5",
        "iopath>=0.1.7",
        "numpy>=1.24",
        "setuptools<82",
        "yacs>=0.1.8",
    ]


def test_setup_is_skipped_if_nothing_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installs: list[tuple[str, Path]] = []
    monkeypatch.setattr(setup_env, "install", lambda *args: installs.append(args))
    python = setup_env.venv_python(tmp_path)
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    (tmp_path / "pyvenv.cfg").write_text("version = 3.11.7\n")
    setup_env.set_up_venv(tmp_path, setup_env.DEV_LOCK)
    setup_env.set_up_venv(tmp_path, setup_env.DEV_LOCK)
    assert installs == [(str(python), setup_env.DEV_LOCK)]
    (tmp_path / "pyvenv.cfg").write_text("version = 3.12.1\n")
    setup_env.set_up_venv(tmp_path, setup_env.DEV_LOCK)
    assert len(installs) == 2


def test_failed_setup_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(python: str, lock: Path) -> None:
        raise setup_env.SetupError(python)

    python = setup_env.venv_python(tmp_path)
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    (tmp_path / "pyvenv.cfg").write_text("version = 3.11.7\n")
    monkeypatch.setattr(setup_env, "install", fail)
    for _ in range(2):
        with pytest.raises(setup_env.SetupError):
            setup_env.set_up_venv(tmp_path, setup_env.DEV_LOCK)


def test_old_python_is_refused_with_a_fix(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(setup_env.sys, "version_info", (3, 9, 2))
    assert setup_env.main([]) == 1
    assert "this is Python 3.9" in (error := capsys.readouterr().err)
    assert "python3.11 tools/setup_env.py" in error


def test_missing_venv_module_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(setup_env.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    with pytest.raises(setup_env.SetupError, match="apt install python3-venv"):
        setup_env.create_venv(tmp_path / ".venv")


def test_failing_command_is_reported() -> None:
    with pytest.raises(setup_env.SetupError, match=r"sys\.exit\(3\)` ended with exit code 3"):
        setup_env.run([sys.executable, "-c", "import sys; sys.exit(3)"])
