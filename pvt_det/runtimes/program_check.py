"""Check that loading a `torch.export` program runs no code from the file.

PyTorch reads parts of such a file with pickle, evaluates its expressions as Python, and looks up functions by name. So
everything in the file that is not data is compared with what `pvt-det export` writes, and PyTorch gets a copy of the
entries that were checked.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvt_det.errors import CheckpointError
from pvt_det.runtimes.backend import damaged, read_bytes

_PROGRAM = "models/model.json"
_SAMPLE = "data/sample_inputs/model.pt"
_TABLES = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_EXTRA = "extra/"
_NATIVE = "data/aotinductor/"
_ENTRIES = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|extra/[\w.-]+|archive_format|archive_version|byteorder|"
    r"\.?data/version|version|\.data/serialization_id|\.format_version|\.storage_alignment"
)
_TARGETS = re.compile(
    r"torch\.ops\.(?:aten(?!\.from_file\b)|torchvision|higher_order)\.\w+(?:\.\w+)?|torch\.sym_\w+|math\.(?:ceil|floor|trunc|sqrt)|"
    r"_operator\.(?:add|sub|mul|truediv|floordiv|mod|neg|pow|pos|abs|and_|or_|not_|xor|eq|ne|lt|le|gt|ge|getitem)"
)
# An expression without attributes, subscripts and strings, except for the names of symbols.
_EXPRESSION = re.compile(r"(?:'[a-z]+\d+'|[A-Za-z]\w*|[\s\d()+*/,=<>&|~-]|\d\.\d)*")
_WORDS = re.compile(r"[A-Za-z_]\w*")
_KNOWN_WORDS = re.compile(
    r"[a-z]\d+|Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Min|Max|Abs|And|Or|Not|Eq|Ne|Equality|Unequality|"
    r"(?:Strict)?(?:Greater|Less)Than|Piecewise|Where|FloorDiv|CeilDiv|CleanDiv|PythonMod|ModularIndexing|"
    r"(?:Int|Float)TrueDiv|(?:Ceil|Floor|Trunc|Round)ToInt|ToFloat|TruncToFloat|PowByNatural|FloatPow|"
    r"IsNonOverlappingAndDenseIndicator|OpaqueUnaryFn_\w+|BooleanTrue|BooleanFalse|"
    r"positive|negative|nonnegative|integer|real|zero|finite|precision|True|False|None|oo"
)


@dataclass(frozen=True)
class Program:
    """A checked program.

    Attributes:
        entries: Content of the archive by name, without the name of its folder.
    """

    entries: dict[str, bytes]

    @property
    def extra(self) -> dict[str, bytes]:
        """The extra files of the program by name."""
        return {name.removeprefix(_EXTRA): data for name, data in self.entries.items() if name.startswith(_EXTRA)}

    def copy(self) -> io.BytesIO:
        """Return an archive of the entries, for `torch.export.load`."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in self.entries.items():
                archive.writestr(f"model/{name}", data)
        buffer.seek(0)
        return buffer


def checked_program(path: Path) -> Program:
    """Read a `torch.export` program and check that it holds data only.

    Args:
        path: A file that `torch.export.save` wrote.

    Raises:
        CheckpointError: The file is damaged, or has something in it that a program of `pvt-det export` does not have.
    """
    content = read_bytes(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            entries = {name.partition("/")[2]: archive.read(name) for name in names}
        if len(entries) != len(names):
            raise damaged(path, "an entry appears twice")
        _check_names(path, entries)
        for table in _TABLES:
            if any(each.get("use_pickle") for each in json.loads(entries[table])["config"].values()):
                raise _refused(path, "pickled weights")
        program = json.loads(entries[_PROGRAM])
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, EOFError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise damaged(path, error) from error
    _check_program(path, program)
    import torch

    try:
        torch.load(io.BytesIO(entries[_SAMPLE]), weights_only=True)
    except Exception as error:
        raise _refused(path, "a pickle with more than tensors") from error
    return Program(entries)


def _check_names(path: Path, entries: dict[str, bytes]) -> None:
    for name in entries:
        if name.startswith(_NATIVE):
            raise CheckpointError(
                f"{path} contains machine code, compiled by AOTInductor, which is not run. Expected a torch.export "
                "program. Export the model again."
            )
        if name not in (_PROGRAM, _SAMPLE, *_TABLES) and not _ENTRIES.fullmatch(name):
            raise _refused(path, f"an entry {name[:60]!r}")


def _check_program(path: Path, program: Any) -> None:
    for key, value in _pairs(program):
        if key == "target" and isinstance(value, str) and not _TARGETS.fullmatch(value):
            raise _refused(path, f"an operator {value[:60]!r}")
        if key == "expr_str" and not _is_plain(value):
            raise _refused(path, f"an expression {str(value)[:60]!r}")


def _is_plain(expression: Any) -> bool:
    if not isinstance(expression, str) or not _EXPRESSION.fullmatch(expression):
        return False
    return all(_KNOWN_WORDS.fullmatch(word) for word in _WORDS.findall(expression))


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value at any depth."""
    stack = [value]
    while stack:
        top = stack.pop()
        if isinstance(top, dict):
            yield from top.items()
            stack += top.values()
        elif isinstance(top, list):
            stack += top


def _refused(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} contains {what}, which is refused because loading it could run code. Expected a program that pvt-det "
        "export wrote with this version."
    )
