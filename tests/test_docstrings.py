"""Every public function and class of the package describes every argument in a sentence.

Ruff's D417 checks this only for docstrings that have an `Args:` section.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pvt_det

PACKAGE = Path(pvt_det.__file__).parent
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public_definitions(path: Path) -> Iterator[tuple[str, Definition, list[str]]]:
    """Yield the name, the node and the arguments of each public function, method and class of a module."""

    def visit(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Definition, list[str]]]:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield prefix + node.name, node, fields(node)
                yield from visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                yield prefix + node.name, node, parameters(node, method=bool(prefix))

    yield from visit(ast.parse(path.read_text(encoding="utf-8")).body, "")


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef, *, method: bool) -> list[str]:
    """The names of a function's public arguments, without `self` or `cls`."""
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    static = any(ast.unparse(decorator) == "staticmethod" for decorator in function.decorator_list)
    names = names[1:] if method and not static else names
    names += [a.arg for a in (*arguments.kwonlyargs, arguments.vararg, arguments.kwarg) if a is not None]
    return [name for name in names if not name.startswith("_")]


def fields(node: ast.ClassDef) -> list[str]:
    """The arguments of a class: those of `__init__`, or the fields of a dataclass or named tuple."""
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return parameters(statement, method=True)
    made = [ast.unparse(part) for part in (*node.decorator_list, *node.bases)]
    if not any("dataclass" in part or part == "NamedTuple" for part in made):
        return []
    declared = [s for s in node.body if isinstance(s, ast.AnnAssign) and "ClassVar" not in ast.unparse(s.annotation)]
    names = [s.target.id for s in declared if isinstance(s.target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def descriptions(node: Definition) -> dict[str, str]:
    """The entries of the `Args:` or `Attributes:` section of a docstring, each with its whole text."""
    doc = ast.get_docstring(node) or ""
    found: dict[str, str] = {}
    for section in re.findall(r"^(?:Args|Attributes):\n((?:[ ]+.*\n?|\n)+)", doc, re.MULTILINE):
        for name, text in re.findall(r"^ {4}\*{0,2}(\w+):((?:.*\n?)(?: {8}.*\n?|\n)*)", section, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_argument_is_described_in_a_sentence(path: Path) -> None:
    problems = []
    for name, node, arguments in public_definitions(path):
        texts = descriptions(node)
        problems += [f"{node.lineno}: {name} does not describe {a}" for a in arguments if a not in texts]
        for argument, text in texts.items():
            if not re.match(r"[^a-z]", text) or not re.search(r"[.!?:)`]$", text):
                problems.append(f"{node.lineno}: {name}: {argument} is not a sentence: {text[:60]}")
    assert problems == []
