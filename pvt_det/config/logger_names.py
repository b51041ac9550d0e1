"""Valid names of loggers, for the config and for the command line, which imports no heavy library."""

from __future__ import annotations

import re

LOGGER_NAMES = "names of loggers, in lowercase letters, digits, - and _"
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


def is_logger_name(name: str) -> bool:
    """Return whether a word can be the name of a logger.

    Args:
        name: Any word.
    """
    return _NAME.fullmatch(name) is not None
