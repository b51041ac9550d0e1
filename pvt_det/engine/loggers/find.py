"""Find the loggers that installed packages offer, and build their writers.

A package offers a logger by an entry point in the group `pvt_det.writers`. Its value is a callable
`(cfg, folder) -> EventWriter`, and its name is what `LOGGERS` and `--logger` take. This package's own are listed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter

from pvt_det.errors import ConfigError
from pvt_det.utils.text import did_you_mean, listed

GROUP = "pvt_det.writers"
_PACKAGE = "pvt_det"
_OWN = tuple(
    EntryPoint(name, f"pvt_det.engine.loggers.{name}:build_writer", GROUP)
    for name in ("mlflow", "tensorboard", "wandb")
)


def build_writers(cfg: CfgNode, folder: Path) -> list[EventWriter]:
    """Build the writers of the loggers in `LOGGERS`. Call it on the main process only.

    Args:
        cfg: The run's config. Its `LOGGERS` are names of loggers.
        folder: The run folder.

    Returns:
        The writers, in the order of `LOGGERS`.

    Raises:
        ConfigError: If a logger is unknown or cannot be used, or its callable does not return an `EventWriter`.
    """
    writers = []
    for name, build in find_loggers(cfg.LOGGERS).items():
        writer = build(cfg, folder)
        if not isinstance(writer, EventWriter):
            raise ConfigError(
                f"LOGGERS: the logger {name} returned {type(writer).__name__}. Expected an EventWriter of Detectron2. "
                f"Correct the callable of its entry point in {GROUP}, or remove {name} from LOGGERS."
            )
        writers.append(writer)
    return writers


def find_loggers(names: Sequence[str]) -> dict[str, Callable[[CfgNode, Path], Any]]:
    """Find loggers by name, and import what they need.

    Args:
        names: Names of loggers.

    Returns:
        The callables that build their writers, by name.

    Raises:
        ConfigError: If a logger is unknown, is offered by several packages, or needs a package that is not installed.
    """
    found = (*_OWN, *entry_points(group=GROUP))
    return {name: _load(name, found) for name in names}


def _load(name: str, found: Sequence[EntryPoint]) -> Callable[[CfgNode, Path], Any]:
    points = [point for point in found if point.name == name]
    if not points:
        raise ConfigError(_unknown(name, found))
    if len(points) > 1:
        packages = listed(sorted(map(_package, points)))
        raise ConfigError(
            f"LOGGERS: several installed packages offer the logger {name}: {packages}. Uninstall all but one."
        )
    try:
        loaded: Callable[[CfgNode, Path], Any] = points[0].load()
    except ModuleNotFoundError as error:
        extra, package = f"it with pip install '{_PACKAGE}[{name}]'", _package(points[0])
        fix = extra if points[0] in _OWN else f"what the package {package} requires"
        raise ConfigError(
            f"LOGGERS: the logger {name} needs the package {error.name}, which is not installed. Install {fix}, or "
            f"remove {name} from LOGGERS (--logger)."
        ) from error
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"LOGGERS: the logger {name} of {_package(points[0])} cannot be imported: {error}. Correct its entry point "
            f"{points[0].value}, or remove {name} from LOGGERS (--logger)."
        ) from error
    return loaded


def _unknown(name: str, found: Sequence[EntryPoint]) -> str:
    names = sorted(point.name for point in found)
    return (
        f"LOGGERS: unknown logger {name!r}.{did_you_mean(name, names)} Found: {listed(names, 20)}. Use one of these "
        f"(mlflow and wandb need pip install '{_PACKAGE}[mlflow]' or '{_PACKAGE}[wandb]'), none, or install the "
        "package that offers it."
    )


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else _PACKAGE
