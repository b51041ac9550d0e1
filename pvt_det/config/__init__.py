"""Configuration: the keys added to Detectron2's, a safe YAML loader, and checks of the values."""

from pvt_det.config.digest import config_digest
from pvt_det.config.keys import add_pvt_config, get_config
from pvt_det.config.loader import load_config
from pvt_det.config.validate import validate_config

__all__ = ["add_pvt_config", "config_digest", "get_config", "load_config", "validate_config"]
