"""The public names and the options of the commands change only on purpose.

`tests/public_api.txt` lists them. After an intended change, write it anew:

    python -m tests.test_public_api
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvt_det.cli.main import COMMANDS
from pvt_det.cli.start import load

ROOT = Path(__file__).parents[1]
FILE = ROOT / "tests/public_api.txt"
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "tools/train_net.py"]
MODULES = (
    "pvt_det",
    "pvt_det.api",
    "pvt_det.classification",
    "pvt_det.config",
    "pvt_det.data.augmentation.torchvision",
    "pvt_det.data.coco.registration",
    "pvt_det.data.sets",
    "pvt_det.engine.default_trainer",
    "pvt_det.engine.defaults",
    "pvt_det.engine.evaluate",
    "pvt_det.engine.launch",
    "pvt_det.engine.trainer",
    "pvt_det.errors",
    "pvt_det.inference.predictions",
    "pvt_det.inference.segments",
    "pvt_det.interop",
    "pvt_det.interop.ray",
    "pvt_det.layers.cpu",
    "pvt_det.model_zoo",
    "pvt_det.models",
    "pvt_det.solver.build",
    "pvt_det.utils.cli",
    "pvt_det.utils.resume",
    "pvt_det.weights",
)


def listing() -> str:
    """List the public names with their signatures, and the options of all commands."""
    lines = ["# Public names and options. Written by: python -m tests.test_public_api"]
    for name in MODULES:
        module = importlib.import_module(name)
        lines += ["", name]
        for public in sorted(module.__all__):
            lines += [f"  {line}" for line in describe(public, getattr(module, public))]
    for command in COMMANDS:
        lines += ["", f"pvt-det {command}", *(f"  {line}" for line in options(load(command).build_parser()))]
    return "\n".join(lines) + "\n"


def describe(name: str, value: object) -> Iterator[str]:
    """Yield the signature of a function, or those of a class and of its public methods and properties."""
    if inspect.ismodule(value) or isinstance(value, str):
        yield f"{name}: {type(value).__name__}"
        return
    yield name + signature(value)
    if inspect.isclass(value):
        for member, found in sorted(vars(value).items()):
            if not member.startswith("_"):
                call = found.__func__ if isinstance(found, classmethod | staticmethod) else found
                yield f"  .{member}{signature(call) if inspect.isfunction(call) else ''}"


def signature(value: object) -> str:
    """Return the arguments and the result, without the addresses of default values."""
    try:
        text = str(inspect.signature(value))  # type: ignore[arg-type]
    except ValueError:  # a subclass of a class that is written in C
        return ""
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)  # annotations are strings
    return re.sub(r" at 0x\w+", "", text)


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the arguments of a parser with their values."""
    for action in parser._actions:
        value = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else str(action.metavar or "")
        yield " ".join([*action.option_strings, *([value or action.dest] if action.nargs != 0 else [])])


def test_public_names_and_options_are_those_of_the_file() -> None:
    before, now = FILE.read_text(encoding="utf-8").splitlines(), listing().splitlines()
    changes = list(difflib.unified_diff(before, now, FILE.name, "now", lineterm="", n=0))
    assert changes == [], "If this is intended, run: python -m tests.test_public_api"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_import_public_names_only(path: Path) -> None:
    for name, imported in re.findall(r"from (pvt_det[\w.]*) import ([\w, ]+)", path.read_text(encoding="utf-8")):
        assert name in MODULES
        public = importlib.import_module(name).__all__
        names = [each.strip() for each in imported.split(",")]
        submodules = [each for each in names if f"{name}.{each}" in MODULES]
        assert set(names) - set(submodules) <= set(public), path


def test_import_is_light() -> None:
    code = "import sys, pvt_det; assert {'train', 'export'} <= set(dir(pvt_det)); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


if __name__ == "__main__":
    FILE.write_text(listing(), encoding="utf-8")
