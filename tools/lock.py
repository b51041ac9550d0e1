"""Write the files in requirements/, which fix the versions and hashes that `tools/setup_env.py` installs.

    python3 tools/lock.py      (make lock)

The newest versions that setup.py allows go to dev.txt, the oldest ones to oldest.txt, and the tools that build packages
to build.txt. The script installs uv into a
temporary environment to resolve them, and downloads metadata only. Limits that pip is configured with on this machine
(`pip config get global.constraint`) apply here too.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.setup_env import (
    BUILD_LOCK,
    DETECTRON2,
    DEV_LOCK,
    LOCKED_MACHINES,
    LOCKED_PYTHONS,
    OLDEST_LOCK,
    ROOT,
    TRACKERS,
    Repacked,
    create_venv,
    download,
    output_of,
    repack,
    reported,
    run,
    say,
    venv_python,
)

UV = "uv>=0.13"
BUILD_TOOLS = ("packaging", "setuptools", "wheel")  # wheel needs packaging
# Extras whose lower bounds are tested, and the tools for it, which have their newest version.
OLDEST_EXTRAS = ("export", "imagenet", "openvino", "signing", "video")
TEST_TOOLS = ("hypothesis", "psutil", "pytest", "pytest-xdist")
HEADER = "# Written by `make lock`. Do not edit.\n"
# An entry starts with its name; its hashes follow in indented lines.
ENTRY = re.compile(r"^(?P<name>[a-z0-9-]+)==\S+.*\n(?: .*\n)+", re.MULTILINE)


def write_locks() -> None:
    """Resolve all requirements and write the files.

    Raises:
        SetupError: A command fails, or the requirements contradict each other.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        create_venv(work / "venv")
        python = str(venv_python(work / "venv"))
        run([python, "-m", "pip", "install", "-qq", UV, "wheel"])
        for package in (DETECTRON2, TRACKERS):
            say(f"Repacking {package.module}, whose requirements are locked too")
            wheel = repack(package, download(package, python, work), work / package.module, python)
            wheel.rename(work / wheel.name)
        say(f"Resolving {DEV_LOCK.name}")
        environments = [f"python_version < '{after(LOCKED_PYTHONS[-1])}'"]
        newest = resolve(work, (DETECTRON2, TRACKERS), environments, ["--extra=dev", "--fork-strategy=fewest"])
        say(f"Resolving {OLDEST_LOCK.name}")
        environments = [f"python_version < '{after(LOCKED_PYTHONS[0])}'"]
        (work / "tools.txt").write_text("".join(entry(newest, name).split(" ")[0] + "\n" for name in TEST_TOOLS))
        extras = [f"--extra={extra}" for extra in OLDEST_EXTRAS]
        oldest = resolve(work, (DETECTRON2,), environments, ["tools.txt", *extras, "--resolution=lowest-direct"])
    DEV_LOCK.write_text(HEADER + newest)
    OLDEST_LOCK.write_text(HEADER + oldest)
    BUILD_LOCK.write_text(HEADER + "".join(entry(newest, name) for name in BUILD_TOOLS))
    say(f"Wrote {DEV_LOCK.parent}; detectron2.txt and trackers.txt are edited by hand")


def after(version: str) -> str:
    """Return the Python version after one such as "3.11".

    Args:
        version: Major and minor version.
    """
    major, minor = version.split(".")
    return f"{major}.{int(minor) + 1}"


def resolve(work: Path, repacked: tuple[Repacked, ...], environments: list[str], options: list[str]) -> str:
    """Resolve the requirements of setup.py and the repacked packages for all supported machines.

    Args:
        work: Temporary folder with uv in `venv` and the repacked wheels.
        repacked: Packages whose requirements are needed.
        environments: Conditions on Python for which a solution is needed, as environment markers.
        options: Further inputs and options of `uv pip compile`.

    Returns:
        The entries of all other packages, with the hashes of all their files.

    Raises:
        SetupError: The requirements contradict each other.
    """
    machines = [f"platform_machine == '{machine}'" for machine in LOCKED_MACHINES]
    cpython = "sys_platform == 'linux' and platform_python_implementation == 'CPython'"
    markers = [f"{python} and {cpython} and {machine}" for python in environments for machine in machines]
    # uv reads this file from the current directory.
    (work / "pyproject.toml").write_text(f"[tool.uv]\nenvironments = {markers}\n")
    (work / "repacked.txt").write_text("".join(f"{package.name}=={package.version}\n" for package in repacked))
    (work / "limits.txt").write_text(pip_limits())
    uv = str(venv_python(work / "venv").with_name("uv"))
    command = [uv, "pip", "compile", "--quiet", "--universal", f"--python-version={LOCKED_PYTHONS[0]}"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--constraints=limits.txt"]
    command += [f"--find-links={work}", *(f"--no-emit-package={package.name}" for package in repacked)]
    return without_common_marker(output_of([*command, str(ROOT / "setup.py"), "repacked.txt", *options], work))


def pip_limits() -> str:
    """Return the content of the constraint files that pip is configured with."""
    names = output_of([sys.executable, "-m", "pip", "config", "list"])
    found = re.findall(r"^(?:global|install)\.constraint='(.+)'$", names, re.MULTILINE)
    files = [*(name for line in found for name in line.split()), *os.environ.get("PIP_CONSTRAINT", "").split()]
    return "".join(Path(name).read_text() + "\n" for name in files)


def without_common_marker(content: str) -> str:
    """Remove the marker that almost every entry has: that this is a supported machine and Python.

    `tools/setup_env.py` checks it once. Elsewhere, pip would skip every entry without a message.

    Args:
        content: Output of uv.
    """
    lines = content.splitlines()
    markers = [line.partition(" ; ")[2] for line in lines if " ; " in line]
    common = max(markers, key=markers.count)
    entries = "\n".join(line.replace(f" ; {common}", " \\") for line in lines)
    return "".join(found[0] for found in ENTRY.finditer(entries + "\n"))


def entry(content: str, name: str) -> str:
    """Return the lines of a package.

    Args:
        content: Content of a lock file.
        name: Normalized name of the package.
    """
    return next(found[0] for found in ENTRY.finditer(content) if found["name"] == name)


if __name__ == "__main__":
    sys.exit(reported(write_locks))
