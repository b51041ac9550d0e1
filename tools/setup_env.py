"""Install PyTorch, Detectron2, this package and its development tools.

    python3 tools/setup_env.py             into .venv in this checkout, which is created if it does not exist
    python3 tools/setup_env.py --here      into the Python that runs this script (an active environment)
    python3 tools/setup_env.py --oldest    the oldest supported versions, into .venv-oldest

The script needs only Python 3.11 or newer. It can be run repeatedly and skips the steps that are already done.

.venv and .venv-oldest get the versions in requirements/, and pip checks the hash of every file. Those are for Linux
and the Pythons in `LOCKED_PYTHONS`; elsewhere, the newest versions that setup.py allows are installed. `--here` keeps
every installed version that setup.py allows.

Detectron2 is not available under its own name on the package index. If it can already be imported, for example from an
official build, it is left unchanged. Otherwise `sal-detectron2` is downloaded by hash and repacked. Its wheel is tagged
for CPython 3.10 only because of a compiled extension, which no other Python loads and this package does not need.

`trackers`, which `pvt-det predict --track` uses, is repacked too. It requires opencv-python, which would overwrite
files of opencv-python-headless.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
OLDEST_VENV = ROOT / ".venv-oldest"
OLDEST_PYTHON = (3, 11)

LOCKS = ROOT / "requirements"
# setuptools and wheel, which some of the other packages need to be built.
BUILD_LOCK = LOCKS / "build.txt"
DEV_LOCK = LOCKS / "dev.txt"
OLDEST_LOCK = LOCKS / "oldest.txt"
REPACKED_LOCK = LOCKS / "repacked.txt"
# What DEV_LOCK is for. OLDEST_LOCK is for the first of the Pythons only.
LOCKED_PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LOCKED_MACHINES = ("x86_64", "aarch64")


@dataclass(frozen=True)
class Repacked:
    """A wheel that is changed before it is installed.

    Attributes:
        name: Name on the package index.
        module: What is imported. requirements/MODULE.txt has the version to download and its hash.
        version: Version after the change.
        corrected: Requirements to install instead of declared ones; None for one that is not needed.
        missing: Requirements that the wheel does not declare.
        python: Version of Python to download the wheel for.
        unwanted: Patterns of files to remove.
    """

    name: str
    module: str
    version: str
    corrected: Mapping[str, str | None]
    missing: tuple[str, ...] = ()
    python: str = "{}.{}".format(*OLDEST_PYTHON)
    unwanted: tuple[str, ...] = ()


DETECTRON2 = Repacked(
    name="sal-detectron2",
    module="detectron2",
    version="0.7.2+pure",
    # The wheel runs with NumPy 2. No supported Python needs `dataclasses`.
    corrected={"numpy<2": "numpy>=1.24", 'dataclasses; python_version < "3.7"': None},
    # `detectron2.model_zoo` imports pkg_resources, which setuptools 82 removed.
    missing=("fvcore<0.1.6,>=0.1.5", "iopath>=0.1.7", "setuptools<82"),
    python="3.10",
    # An installed package named `tools` would hide this project's folder of scripts.
    unwanted=("tools/**/*", "detectron2/_C*"),
)
TRACKERS = Repacked(
    name="trackers",
    module="trackers",
    version="2.6.0+headless",
    corrected={"opencv-python>=4.8.0": "opencv-python-headless>=4.8.0"},
)

DESCRIBE_PYTHON = """
import platform, sys
print(platform.python_implementation(), "%d.%d" % sys.version_info[:2], platform.system(), platform.machine())
"""
FIND_MODULE = "import sys; from importlib.util import find_spec; print(find_spec(sys.argv[1]) is not None)"
VERIFY = """
import torch, torchvision, detectron2, detectron2.engine, detectron2.model_zoo, pvt_det
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, detectron2 {detectron2.__version__}, "
      f"pvt_det {pvt_det.__version__}, device {device}")
"""


class SetupError(Exception):
    """Raised when set-up cannot continue. The message says what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the set-up.

    Args:
        argv: Command-line arguments. By default those of the process.

    Returns:
        Exit code of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--here", action="store_true", help="install into the running Python instead of .venv")
    place.add_argument("--oldest", action="store_true", help="install the oldest versions into .venv-oldest")
    args = parser.parse_args(argv)

    def set_up() -> None:
        check_python()
        if args.here:
            install(sys.executable)
        elif args.oldest:
            set_up_venv(OLDEST_VENV, OLDEST_LOCK)
        else:
            set_up_venv(VENV, DEV_LOCK)

    return reported(set_up)


def reported(function: Callable[[], None]) -> int:
    """Call a function, and print its error if it raises a `SetupError`.

    Args:
        function: The function.

    Returns:
        Exit code of the process.
    """
    try:
        function()
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def check_python() -> None:
    """Check the version of the running Python.

    Raises:
        SetupError: Python is too old.
    """
    if sys.version_info < OLDEST_PYTHON:
        found, needed = (".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST_PYTHON))
        raise SetupError(
            f"this is Python {found} ({sys.executable}); expected Python {needed} or newer. Run "
            f"`python{needed} tools/setup_env.py` or `make PYTHON=python{needed} ...`"
        )


def set_up_venv(venv: Path, lock: Path) -> None:
    """Create a virtual environment if it does not exist, and install into it.

    Nothing is done if nothing has changed since the last installation.

    Args:
        venv: Folder of the virtual environment.
        lock: Requirements file with the versions and hashes to install, if it is for this Python and machine.

    Raises:
        SetupError: The environment has an old Python, or a command fails.
    """
    python = venv_python(venv)
    stamp = venv / "pvt_det_setup.sha256"
    if python.exists() and stamp.exists() and stamp.read_text() == fingerprint(venv):
        return
    if not python.exists():
        create_venv(venv)
    version = output_of([str(python), "-c", "import sys; print(*sys.version_info[:2])"])
    if tuple(map(int, version.split())) < OLDEST_PYTHON:
        raise SetupError(f"{venv} has Python {version.replace(' ', '.')}. Delete it and run this again")
    stamp.unlink(missing_ok=True)
    install(str(python), lock)
    stamp.write_text(fingerprint(venv))


def venv_python(venv: Path) -> Path:
    """Return the interpreter of a virtual environment.

    Args:
        venv: Folder of the virtual environment.
    """
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def fingerprint(venv: Path) -> str:
    """Return a hash of everything that the set-up depends on.

    These are this script, the requirements, the Python version and the location of the checkout.

    Args:
        venv: Folder of the virtual environment.
    """
    digest = hashlib.sha256(str(ROOT).encode())
    for path in (Path(__file__), ROOT / "setup.py", venv / "pyvenv.cfg", *sorted(LOCKS.glob("*.txt"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def create_venv(venv: Path) -> None:
    """Create a virtual environment with pip.

    Args:
        venv: Folder to create.

    Raises:
        SetupError: Python's venv or ensurepip module is missing, or the command fails.
    """
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            f"{sys.executable} cannot create a virtual environment: its venv or ensurepip module is missing. "
            "On Debian or Ubuntu, run `apt install python3-venv`"
        )
    say(f"Creating {venv}")
    run([sys.executable, "-m", "venv", str(venv)])


def install(python: str, lock: Path | None = None) -> None:
    """Install this package, its requirements and the repacked packages.

    Args:
        python: Interpreter to install for.
        lock: Requirements file with versions and hashes. Without it, or if it is not for this Python and machine, the
            newest versions are installed, and installed versions that setup.py allows are kept.

    Raises:
        SetupError: A command fails, or the oldest versions are not available for this Python or machine.
    """
    if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        run([python, "-m", "ensurepip"])
    quiet = [] if sys.stdout.isatty() else ["-qq"]  # show progress in a terminal only
    # Python compiles what is used when it is first imported. Compiling all files takes a third of the installation.
    pip_install = [python, "-m", "pip", "install", "--no-compile", *quiet]
    is_locked = lock is not None and is_for(lock, python)
    say("Installing torch and the other requirements (with an empty cache this takes several minutes and 3 GB)")
    if is_locked:
        # The build tools come first: without build isolation, nothing is installed that has no hash here.
        run([*pip_install, "--require-hashes", f"--requirement={BUILD_LOCK}"])
        run([*pip_install, "--require-hashes", "--no-build-isolation", f"--requirement={lock}"])
        run([*pip_install, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
    else:
        run([*pip_install, "--editable", f"{ROOT}[dev]"])
    # The oldest versions do not include supervision, which trackers needs.
    for package in (DETECTRON2,) if lock == OLDEST_LOCK else (DETECTRON2, TRACKERS):
        install_repacked(package, python, ["--no-deps"] if is_locked else [])
    say("Checking")
    run([python, "-m", "pip", "check"])
    run([python, "-P", "-W", "ignore", "-c", VERIFY])
    say("Ready")


def is_for(lock: Path, python: str) -> bool:
    """Return whether a lock file is for a Python and its machine. Print a message if not.

    Args:
        lock: The lock file.
        python: Interpreter to install for.

    Raises:
        SetupError: The file lists the oldest versions and is not for this Python, so that there is nothing to test.
    """
    implementation, version, system, machine = output_of([python, "-c", DESCRIBE_PYTHON]).split()
    versions = LOCKED_PYTHONS[:1] if lock == OLDEST_LOCK else LOCKED_PYTHONS
    # Windows calls x86_64 AMD64, but no lock is for Windows.
    if (implementation, system) == ("CPython", "Linux") and version in versions and machine in LOCKED_MACHINES:
        return True
    found = (
        f"{lock.relative_to(ROOT)} is for CPython {', '.join(versions)} on Linux ({' or '.join(LOCKED_MACHINES)}). "
        f"This is {implementation} {version} on {system} ({machine})"
    )
    if lock == OLDEST_LOCK:
        fix = f"Delete {OLDEST_VENV.name} and run `python{versions[0]} tools/setup_env.py --oldest`"
        raise SetupError(f"{found}. {fix}")
    say(f"{found}: installing the newest versions that setup.py allows, without fixed hashes")
    return False


def install_repacked(package: Repacked, python: str, options: Sequence[str] = ()) -> None:
    """Download a wheel by hash, repack and install it, unless its module can already be imported.

    Args:
        package: The package.
        python: Interpreter to install for.
        options: Options of `pip install`.

    Raises:
        SetupError: A command fails, for example because the hash differs.
    """
    # -P ignores a folder of this name in the current directory.
    if output_of([python, "-P", "-c", FIND_MODULE, package.module]) == "True":
        say(f"{package.module} is already installed and is left unchanged")
        return
    say(f"Installing {package.module}")
    with tempfile.TemporaryDirectory() as folder:
        wheel = repack(package, download(package, python, Path(folder)), Path(folder, "repacked"), python)
        run([python, "-m", "pip", "install", "-qq", *options, str(wheel)])


def download(package: Repacked, python: str, folder: Path) -> Path:
    """Download the wheel of a package. Its hash is checked before anything reads it.

    Args:
        package: The package.
        python: Interpreter with pip.
        folder: Folder for the file.

    Returns:
        The wheel file.

    Raises:
        SetupError: The download fails, or the hash differs.
    """
    command = [python, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:"]
    command += [f"--python-version={package.python}", "--require-hashes"]
    run([*command, f"--dest={folder}", f"--requirement={LOCKS / package.module}.txt"])
    return next(folder.glob(f"{package.name.replace('-', '_')}-*.whl"))


def repack(package: Repacked, wheel: Path, folder: Path, python: str) -> Path:
    """Convert the wheel of a package to one with the right requirements, for any Python 3.

    Args:
        package: The package.
        wheel: The wheel file to convert.
        folder: Folder for the new file. It is created.
        python: Interpreter with the `wheel` package.

    Returns:
        The new wheel file.

    Raises:
        SetupError: A command fails.
    """
    output_of([python, "-m", "wheel", "unpack", str(wheel), f"--dest={folder}"])
    tree = next(path for path in folder.iterdir() if path.is_dir())
    for path in [path for pattern in package.unwanted for path in tree.glob(pattern)]:
        if path.is_file():
            path.unlink()
    info = next(tree.glob("*.dist-info"))
    info = info.rename(info.with_name(f"{info.name.split('-')[0]}-{package.version}.dist-info"))
    (info / "METADATA").write_text(metadata(package, (info / "METADATA").read_text(encoding="utf-8")), encoding="utf-8")
    (info / "WHEEL").write_text(pure_tags((info / "WHEEL").read_text(encoding="utf-8")), encoding="utf-8")
    (info / "top_level.txt").write_text(f"{package.module}\n")
    output_of([python, "-m", "wheel", "pack", str(tree), f"--dest-dir={folder}"])
    return next(folder.glob(f"*-{package.version}-*.whl"))


def metadata(package: Repacked, content: str) -> str:
    """Correct the version and the requirements of a wheel.

    Args:
        package: The package.
        content: Content of the wheel's METADATA file.
    """
    lines = []
    for line in content.splitlines():
        field, _, value = line.partition(": ")
        if field == "Version":
            line = f"Version: {package.version}"
            lines += [f"Requires-Dist: {requirement}" for requirement in package.missing]
        elif field == "Requires-Dist" and value in package.corrected:
            if package.corrected[value] is None:
                continue
            line = f"Requires-Dist: {package.corrected[value]}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def pure_tags(content: str) -> str:
    """Mark a wheel as pure Python.

    Args:
        content: Content of the wheel's WHEEL file.
    """
    kept = [line for line in content.splitlines() if line and not line.startswith(("Root-Is-Purelib:", "Tag:"))]
    return "\n".join([*kept, "Root-Is-Purelib: true", "Tag: py3-none-any"]) + "\n"


def run(command: list[str]) -> None:
    """Run a command.

    Args:
        command: The command and its arguments.

    Raises:
        SetupError: The command fails.
    """
    check(command, subprocess.run(command, check=False).returncode)


def output_of(command: list[str], folder: Path | None = None) -> str:
    """Run a command and return its output.

    Args:
        command: The command and its arguments.
        folder: Folder to run it in. By default the current one.

    Raises:
        SetupError: The command fails.
    """
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=folder)
    check(command, result.returncode)
    return result.stdout.strip()


def check(command: list[str], code: int) -> None:
    """Check the exit code of a command.

    Args:
        command: The command and its arguments.
        code: Its exit code.

    Raises:
        SetupError: The exit code is not 0.
    """
    if code:
        raise SetupError(f"`{' '.join(command)}` ended with exit code {code}. Its own message is above")


def say(line: str) -> None:
    """Print a line and flush it, so that it appears before the output of the next command.

    Args:
        line: The line to print.
    """
    print(f"[setup] {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
