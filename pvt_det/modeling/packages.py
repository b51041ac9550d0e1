"""Check the optional packages of detectors."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement

from pvt_det.errors import ConfigError


def require_packages(*requirements: str, purpose: str) -> None:
    """Check that optional packages are installed, without importing them.

    Args:
        *requirements: Names of packages, optionally with versions, such as "transformers>=5.20".
        purpose: What needs them, at the start of the message, such as "RT-DETRv2".

    Raises:
        ConfigError: A package is missing, or its version is not supported.
    """
    for requirement in map(Requirement, requirements):
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = ""
        if not found or not requirement.specifier.contains(found, prereleases=True):
            state = f"but {found} is installed" if found else "which is missing"
            raise ConfigError(
                f"{purpose} needs the package {requirement}, {state}. Run pip install '{requirement}', or pip install "
                "-e '.[detr]' in a checkout."
            )
