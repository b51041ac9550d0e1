"""Errors that a user can cause, each with the exit code of the commands and scripts.

Raise one of these when a file, key or value from the user is wrong. The message names it, and says what was expected
and what to do. Use `assert` for bugs in this package.
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Interrupted",
    "NumericError",
    "PvtDetError",
    "RankError",
    "StorageError",
]


class PvtDetError(ValueError):
    """Base class of all errors that a user can cause."""

    exit_code = 1


class ConfigError(PvtDetError):
    """A configuration file, key, value, option or model name is wrong."""

    exit_code = 2


class DataError(PvtDetError):
    """A data set, annotation file or image is missing, broken or inconsistent."""

    exit_code = 3


class StorageError(DataError):
    """An object store does not answer, refuses access, or its data has changed. No other image could replace it."""


class CheckpointError(PvtDetError):
    """A weight file is missing, broken, unsafe, or does not fit the model."""

    exit_code = 4


class NumericError(PvtDetError):
    """NaN or infinity occurred in training or evaluation."""

    exit_code = 5


class RankError(PvtDetError):
    """Another process of the run has died or does not respond."""

    exit_code = 6


class Interrupted(PvtDetError):
    """The run saved its state and was stopped by a signal. It can be resumed."""

    exit_code = 75


def diverged(outputs: str) -> NumericError:
    """Build the error for model outputs that are NaN or infinite.

    Args:
        outputs: Which outputs of what, as the start of the message, such as "image 7: the model predicts scores".

    Returns:
        The error to raise.
    """
    return NumericError(
        f"{outputs} that are NaN or infinite. Its weights have probably diverged. Use an earlier checkpoint, or train "
        "with a lower learning rate."
    )
