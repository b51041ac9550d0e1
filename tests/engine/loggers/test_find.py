"""Loggers are found by entry point, and every reason why one cannot be used is an error that says what to do."""

from __future__ import annotations

import sys

import pytest

from pvt_det.engine.loggers import find
from pvt_det.errors import ConfigError

WRITER = """
from detectron2.utils.events import EventWriter
class Writer(EventWriter):
    def __init__(self, cfg, folder): self.given = (cfg.SEED, folder)
    def write(self): pass
def wrong(cfg, folder): return 3
"""


def test_logger_of_another_package_is_built(offer, cfg, tmp_path):
    offer("acme_found", WRITER, csv="acme_found:Writer")
    cfg.SEED, cfg.LOGGERS = 7, ["csv"]
    (writer,) = find.build_writers(cfg, tmp_path)
    assert writer.given == (7, tmp_path)


def test_no_logger(cfg, tmp_path):
    cfg.LOGGERS = []
    assert find.build_writers(cfg, tmp_path) == []


def test_unknown_logger_lists_those_found(offer):
    offer("acme_known", WRITER, csvfile="acme_known:Writer")
    with pytest.raises(ConfigError, match=r"unknown logger 'csvfil'\. Did you mean csvfile\? Found: .*csvfile"):
        find.find_loggers(["csvfil"])


def test_name_offered_twice_is_refused(offer):
    for package in ("acme_one", "acme_two"):
        offer(package, WRITER, twice=f"{package}:Writer", other=f"{package}:Writer")
    with pytest.raises(ConfigError, match="packages offer the logger twice: acme-one, acme-two"):
        find.find_loggers(["twice"])


def test_name_of_our_own_logger_is_taken(offer):
    offer("acme_board", WRITER, tensorboard="acme_board:Writer")
    with pytest.raises(ConfigError, match="packages offer the logger tensorboard: acme-board, pvt_det"):
        find.find_loggers(["tensorboard"])


def test_missing_package_is_named(offer):
    offer("acme_needs", "import nowhere_to_be_found", needy="acme_needs:Writer")
    with pytest.raises(ConfigError, match="needs the package nowhere_to_be_found, which is not installed"):
        find.find_loggers(["needy"])


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_missing_package_of_our_own_logger_names_the_extra(name, monkeypatch):
    monkeypatch.delitem(sys.modules, f"pvt_det.engine.loggers.{name}", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"needs the package {name}.* pip install 'pvt_det\[{name}\]'"):
        find.find_loggers([name])


def test_wrong_entry_points_are_reported(offer, cfg, tmp_path):
    offer("acme_wrong", WRITER, number="acme_wrong:wrong", absent="acme_wrong:absent")
    cfg.LOGGERS = ["number"]
    with pytest.raises(ConfigError, match="the logger number returned int"):
        find.build_writers(cfg, tmp_path)
    with pytest.raises(ConfigError, match=r"absent of acme-wrong cannot be imported: .*entry point acme_wrong:absent"):
        find.find_loggers(["absent"])
