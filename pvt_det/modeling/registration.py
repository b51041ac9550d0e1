"""Register builders and classes with Detectron2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fvcore.common.registry import Registry

T = TypeVar("T", bound=Callable[..., Any])


def register(registry: Registry) -> Callable[[T], T]:
    """Return a decorator that registers a builder or class under its name.

    Registering the same item again, for example when its module is reloaded, has no effect. It is an error if another
    module has registered an item with the same name.

    Args:
        registry: Registry of Detectron2 to which the item is added.
    """

    def decorate(item: T) -> T:
        existing = registry.get(item.__name__) if item.__name__ in registry else None
        if existing is None or existing.__module__ != item.__module__:
            registry.register(item)
        return item

    return decorate
