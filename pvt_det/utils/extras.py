"""Optional packages, which the extras of this package install."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

from packaging.requirements import Requirement

from pvt_det.errors import ConfigError


def require_packages(purpose: str, *requirements: str, extra: str) -> None:
    """Check that optional packages are installed, without importing them.

    Args:
        purpose: What needs them, as the start of the message, such as "RT-DETRv2".
        *requirements: Names of modules, optionally with versions of the packages of the same name, such as
            "transformers>=5.20".
        extra: The extra of this package that installs them.

    Raises:
        ConfigError: A package is missing, or its version is not supported.
    """
    needed = [Requirement(requirement) for requirement in requirements]
    install = f"Run pip install 'pvt_det[{extra}]', or pip install -e '.[{extra}]' in a checkout."
    if missing := [str(each) for each in needed if find_spec(each.name) is None]:
        verb = "is" if len(missing) == 1 else "are"
        raise ConfigError(f"{purpose} needs {' and '.join(missing)}, which {verb} missing. {install}")
    for each in needed:
        # The package of a module without a required version may have another name.
        if each.specifier and not each.specifier.contains(found := version(each.name), prereleases=True):
            raise ConfigError(f"{purpose} needs {each}, but {found} is installed. {install}")
