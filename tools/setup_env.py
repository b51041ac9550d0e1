"""Makes everything ready to run: `.venv`, torch, Detectron2, this package and its development tools.

    python3 tools/setup_env.py           into .venv beside this checkout, made if absent
    python3 tools/setup_env.py --here    into the Python that runs this script (an active environment)

Needs Python 3.11 or newer and nothing else; run it as often as you like, it does only what is left to do.

Detectron2 is no package of its own on the index. Where one can be imported already (an official build, say) it stays
as it is. Otherwise `sal-detectron2` is taken by hash and repacked: its wheel is tagged for CPython 3.10 only because
of a compiled extension that no other Python loads and that this package does not need.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
OLDEST_PYTHON = (3, 11)

DETECTRON2 = "sal-detectron2==0.7.2"
DETECTRON2_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
REPACKED_VERSION = "0.7.2+pure"
# What the wheel says it needs → what it does need. It runs with numpy 2; no supported Python needs `dataclasses`.
CORRECTED_REQUIREMENTS = {"numpy<2": "numpy>=1.24", 'dataclasses; python_version < "3.7"': None}
# Imported but not declared; `detectron2.model_zoo` imports pkg_resources, which setuptools 82 no longer has.
MISSING_REQUIREMENTS = ("fvcore<0.1.6,>=0.1.5", "iopath>=0.1.7", "setuptools<82")

FIND_DETECTRON2 = "from importlib.util import find_spec; print(find_spec('detectron2') is not None)"
VERIFY = """
import torch, torchvision, detectron2, detectron2.engine, detectron2.model_zoo, pvt_det
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, detectron2 {detectron2.__version__}, "
      f"pvt_det {pvt_det.__version__}, device {device}")
"""


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Set up and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--here", action="store_true", help="install into the running Python instead of .venv")
    args = parser.parse_args(argv)
    try:
        check_python()
        if args.here:
            install(sys.executable)
        else:
            set_up_venv(VENV)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def check_python() -> None:
    """Raise `SetupError` where the running Python is too old."""
    if sys.version_info < OLDEST_PYTHON:
        have, need = (".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST_PYTHON))
        raise SetupError(
            f"this is Python {have} ({sys.executable}); Python {need} or newer is needed. Run it with a newer one: "
            f"`python{need} tools/setup_env.py`, or `make PYTHON=python{need} ...`"
        )


def set_up_venv(venv: Path) -> None:
    """Create `venv` where absent and install into it, unless its stamp says that nothing has changed."""
    python = venv_python(venv)
    stamp = venv / "pvt_det_setup.sha256"
    if python.exists() and stamp.exists() and stamp.read_text() == fingerprint(venv):
        return
    if not python.exists():
        create_venv(venv)
    version = output_of([str(python), "-c", "import sys; print(*sys.version_info[:2])"])
    if tuple(map(int, version.split())) < OLDEST_PYTHON:
        raise SetupError(f"{venv} was made with Python {version.replace(' ', '.')}: delete it and run this again")
    stamp.unlink(missing_ok=True)
    install(str(python))
    stamp.write_text(fingerprint(venv))


def venv_python(venv: Path) -> Path:
    """Return the interpreter inside `venv`."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def fingerprint(venv: Path) -> str:
    """Return a hash of all that set-up depends on: this script, the requirements, the Python and the folder."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in (Path(__file__), ROOT / "setup.py", venv / "pyvenv.cfg"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def create_venv(venv: Path) -> None:
    """Create a virtual environment with pip in it."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            f"{sys.executable} cannot make a virtual environment: its venv or ensurepip module is missing. "
            "On Debian or Ubuntu: `apt install python3-venv`"
        )
    say(f"Making {venv}")
    run([sys.executable, "-m", "venv", str(venv)])


def install(python: str) -> None:
    """Install this package, its development tools and Detectron2 for the interpreter `python`."""
    if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        run([python, "-m", "ensurepip"])
    pip = [python, "-m", "pip"]
    quiet = [] if sys.stdout.isatty() else ["-qq"]  # someone who watches wants to see the downloads go on
    say("Installing torch and the other requirements (with an empty cache this takes several minutes and 3 GB)")
    run([*pip, "install", *quiet, "--editable", f"{ROOT}[dev]"])
    # -P: a folder that happens to be called detectron2 where the user stands is not an installed one.
    if output_of([python, "-P", "-c", FIND_DETECTRON2]) == "True":
        say("Detectron2 is there already and stays as it is")
    else:
        say("Installing Detectron2")
        install_detectron2(python)
    say("Checking")
    run([*pip, "check"])
    run([python, "-P", "-W", "ignore", "-c", VERIFY])
    say("Ready")


def install_detectron2(python: str) -> None:
    """Download Detectron2's wheel by hash, repack it as pure Python and install it."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{DETECTRON2} --hash=sha256:{DETECTRON2_SHA256}\n")
        download = [python, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:"]
        download += ["--python-version=3.10", "--require-hashes"]
        run([*download, f"--dest={folder}", f"--requirement={requirements}"])
        wheel = repack(next(Path(folder).glob("*.whl")), Path(folder, "pure"), python)
        run([python, "-m", "pip", "install", "-qq", str(wheel)])


def repack(wheel: Path, folder: Path, python: str) -> Path:
    """Write `wheel` anew as a wheel for any Python 3, without its compiled extension and its scripts.

    Args:
        wheel: the wheel file to start from.
        folder: where to put the new file; made here.
        python: an interpreter that has the `wheel` tool.

    Returns:
        The new wheel file.
    """
    output_of([python, "-m", "wheel", "unpack", str(wheel), f"--dest={folder}"])
    tree = next(folder.iterdir())
    # `tools` would be importable by that name and hide this project's folder of scripts.
    for unwanted in [*tree.glob("tools/**/*"), *tree.glob("detectron2/_C*")]:
        if unwanted.is_file():
            unwanted.unlink()
    info = next(tree.glob("*.dist-info"))
    info = info.rename(info.with_name(f"{info.name.split('-')[0]}-{REPACKED_VERSION}.dist-info"))
    for name, rewrite in (("METADATA", pure_metadata), ("WHEEL", pure_tags)):
        path = info / name
        path.write_text(rewrite(path.read_text(encoding="utf-8")), encoding="utf-8")
    (info / "top_level.txt").write_text("detectron2\n")
    output_of([python, "-m", "wheel", "pack", str(tree), f"--dest-dir={folder}"])
    return next(folder.glob("*.whl"))


def pure_metadata(text: str) -> str:
    """Return a wheel's METADATA with the version and the requirements put right."""
    lines = []
    for line in text.splitlines():
        field, _, value = line.partition(": ")
        if field == "Version":
            line = f"Version: {REPACKED_VERSION}"
            lines += [f"Requires-Dist: {requirement}" for requirement in MISSING_REQUIREMENTS]
        elif field == "Requires-Dist" and value in CORRECTED_REQUIREMENTS:
            if CORRECTED_REQUIREMENTS[value] is None:
                continue
            line = f"Requires-Dist: {CORRECTED_REQUIREMENTS[value]}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def pure_tags(text: str) -> str:
    """Return a wheel's WHEEL file for a wheel that holds Python only."""
    kept = [line for line in text.splitlines() if line and not line.startswith(("Root-Is-Purelib:", "Tag:"))]
    return "\n".join([*kept, "Root-Is-Purelib: true", "Tag: py3-none-any"]) + "\n"


def run(command: list[str]) -> None:
    """Run a command; raise `SetupError` where it fails."""
    check(command, subprocess.run(command, check=False).returncode)


def output_of(command: list[str]) -> str:
    """Return what a command prints; raise `SetupError` where it fails."""
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    check(command, result.returncode)
    return result.stdout.strip()


def check(command: list[str], code: int) -> None:
    """Raise `SetupError` where a command's exit code is not 0."""
    if code:
        raise SetupError(f"`{' '.join(command)}` ended with exit code {code}; its own message stands above")


def say(line: str) -> None:
    """Print a line at once, so that it stands before the output of the command it announces."""
    print(f"[setup] {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
