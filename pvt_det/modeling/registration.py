"""Registering with Detectron2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fvcore.common.registry import Registry

T = TypeVar("T", bound=Callable[..., Any])


def register(registry: Registry) -> Callable[[T], T]:
    """Decorator: put a builder or class into `registry` under its own name.

    Doing so again, as a reload of its module does, replaces nothing and is no error. Another package's entry of the
    same name stays an error.
    """

    def decorate(item: T) -> T:
        known = registry.get(item.__name__) if item.__name__ in registry else None
        if known is None or known.__module__ != item.__module__:
            registry.register(item)
        return item

    return decorate
