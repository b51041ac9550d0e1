"""Errors that a user can cause, each with the exit code that `tools/*.py` end with.

Raise one of these when a file, key or value that a user handed in is at fault; the message names it, says what
was expected, and what to do. For our own mistakes use `assert`.
"""


class PvtDetError(ValueError):
    """Base of every error that a user can cause."""

    exit_code = 1


class ConfigError(PvtDetError):
    """A configuration file, key, value, option or model name is wrong."""

    exit_code = 2


class DataError(PvtDetError):
    """A data set, annotation file or image is missing, broken or inconsistent."""

    exit_code = 3


class CheckpointError(PvtDetError):
    """A weight file is missing, broken, unsafe, or does not fit the model."""

    exit_code = 4


class NumericError(PvtDetError):
    """Training or evaluation met NaN or infinity."""

    exit_code = 5


class Interrupted(PvtDetError):
    """The run was stopped by a signal after saving; it can be resumed."""

    exit_code = 75


def diverged(outputs: str) -> NumericError:
    """The error to raise for a model's outputs that are not finite.

    Args:
        outputs: Which ones, such as "image 7: the model gives scores".
    """
    return NumericError(
        f"{outputs} that are NaN or infinite; its weights have probably diverged: use an earlier checkpoint, or train "
        "with a lower learning rate"
    )
