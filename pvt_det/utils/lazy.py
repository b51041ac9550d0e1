"""Import the public names of a package when they are first used, so that importing the package is fast."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions `__getattr__` and `__dir__` of a package.

    Type checkers do not follow them. Import the same names under `if TYPE_CHECKING`.

    Args:
        package: Name of the package.
        modules: Names of the modules that define the package's public names, by public name. A public name can also be
            that of a module of the package.

    Returns:
        The two functions, which the package assigns to `__getattr__` and `__dir__`.
    """

    def getattribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(modules[name])
        return module if modules[name] == f"{package}.{name}" else getattr(module, name)

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return getattribute, list_names
