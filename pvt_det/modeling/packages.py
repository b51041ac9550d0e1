"""Check the optional packages of detectors."""

from __future__ import annotations

from importlib.util import find_spec

from pvt_det.errors import ConfigError


def require_packages(*names: str, purpose: str) -> None:
    """Check that optional packages are installed, without importing them.

    Args:
        *names: Names of the packages.
        purpose: What needs them, at the start of the message, such as "RT-DETRv2".

    Raises:
        ConfigError: A package is missing.
    """
    if missing := [name for name in names if find_spec(name) is None]:
        raise ConfigError(
            f"{purpose} needs the package {missing[0]}, which is missing. Run pip install {' '.join(missing)}, or pip "
            "install -e '.[detr]' in a checkout."
        )
