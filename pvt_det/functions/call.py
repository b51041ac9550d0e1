"""What the functions of the Python API share: their arguments, and a program that is left as it was."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from pvt_det.config.architecture import is_segmentor
from pvt_det.data.catalogs import catalogs_restored
from pvt_det.errors import ConfigError
from pvt_det.functions.messages import DATA, python_messages
from pvt_det.utils.logs import errors_only
from pvt_det.utils.rng import preserve_random_state

PathLike = str | os.PathLike[str]
# Annotations and the folder of their images.
Data = tuple[PathLike, PathLike]


@contextmanager
def library_call(names: Mapping[str, str] = DATA) -> Iterator[None]:
    """Context manager for a run inside someone else's program.

    On exit, random states, Detectron2's catalogs of data sets and warning filters are what they were before.

    Args:
        names: Arguments by option of the command, for error messages, as in `python_messages`.
    """
    with ExitStack() as stack:
        stack.enter_context(python_messages(names))
        stack.enter_context(preserve_random_state())
        stack.enter_context(catalogs_restored())
        stack.enter_context(warnings.catch_warnings())
        # Warnings of torch about Detectron2's code, which users cannot fix.
        warnings.filterwarnings("ignore", message="torch.meshgrid")
        stack.enter_context(errors_only("torch.fx._symbolic_trace"))
        yield


def override_words(overrides: Mapping[str, Any] | None) -> list[Any]:
    """Return config keys and values, alternating.

    Args:
        overrides: Values by config key, or None.

    Raises:
        ConfigError: It is not a dictionary.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ConfigError(
            f'overrides: {overrides!r} is a {type(overrides).__name__}. Expected a dict, such as {{"SEED": 1}}.'
        )
    pairs = (overrides or {}).items()
    return [word for key, value in pairs for word in (key, os.fspath(value) if isinstance(value, Path) else value)]


def data_options(name: str, data: Data | Sequence[Data] | None, part: str, cfg: CfgNode) -> dict[str, Any]:
    """Return the options of the command for annotations and images.

    Args:
        name: Name of the argument, for messages.
        data: Annotations and images. For a semantic segmentation model, the annotations are a folder of label maps. For
            training, it can be a list of such pairs.
        part: "train" or "val".
        cfg: The config, which says what kind of model it is.

    Raises:
        ConfigError: The data is not a pair of paths.
    """
    if data is None:
        return {}
    several = part == "train" and isinstance(data, Sequence) and all(isinstance(each, tuple | list) for each in data)
    pairs = [as_pair(name, each) for each in data] if several else [as_pair(name, data)]
    if not pairs:
        raise ConfigError(f"{name}: the list of data sets is empty. Expected one or more, or None.")
    annotations, images = ([*column] if len(pairs) > 1 else column[0] for column in zip(*pairs, strict=True))
    return {f"{part}_{'labels' if is_segmentor(cfg) else 'json'}": annotations, f"{part}_images": images}


def as_pair(name: str, data: Any) -> tuple[str, str]:
    """Check that an argument is a pair of paths, and return them as strings.

    Args:
        name: Name of the argument, for the message.
        data: Value of the argument.

    Raises:
        ConfigError: It is not a pair of paths.
    """
    match data:
        case (str() | os.PathLike() as annotations, str() | os.PathLike() as images):
            return os.fspath(annotations), os.fspath(images)
    raise ConfigError(
        f'{name}: {data!r} is not a pair of paths. Expected (annotations, images), such as ("{name}.json", "images/").'
    )


def patterns(name: str, values: Sequence[PathLike]) -> tuple[str, ...]:
    """Check that an argument is a list of strings or paths, and return them as strings.

    Args:
        name: Name of the argument, for the message.
        values: Value of the argument.

    Raises:
        ConfigError: It is a single string.
    """
    if isinstance(values, str):
        raise ConfigError(f'{name}: {values!r} is a string. Expected a list of strings: ["{values}"].')
    return tuple(os.fspath(value) for value in values)
