"""Missing and old optional packages are named with the command that installs them."""

import pytest

from pvt_det.errors import ConfigError
from pvt_det.utils import extras
from pvt_det.utils.extras import require_packages


def test_installed_packages():
    require_packages("A test", "torch>=2", "numpy", extra="none")


@pytest.mark.parametrize(
    ("requirements", "state"),
    [
        (["numpy", "no_such_module"], "needs no_such_module, which is missing"),
        (["no_such_module>=2", "nor_this"], "needs no_such_module>=2 and nor_this, which are missing"),
        (["numpy", "torch>=99"], r"needs torch>=99, but 2\.\S+ is installed"),
    ],
)
def test_what_is_missing_is_named(requirements, state):
    with pytest.raises(ConfigError, match=rf"^A test {state}\. Run pip install 'pvt_det\[extra\]'"):
        require_packages("A test", *requirements, extra="extra")


def test_prereleases_count(monkeypatch):
    monkeypatch.setattr(extras, "version", lambda name: "3.0rc1")
    require_packages("A test", "torch>=2", extra="extra")
