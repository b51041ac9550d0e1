"""The fixture of the tests of studies."""

from tests.studies.fakes import fake_runs  # noqa: F401  (fixture)
