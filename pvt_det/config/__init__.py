"""Configuration: this package's keys beside Detectron2's, a safe loader, and the checks of a config's values."""

from pvt_det.config.keys import add_pvt_config, get_config
from pvt_det.config.loader import load_config
from pvt_det.config.validate import validate_config

__all__ = ["add_pvt_config", "get_config", "load_config", "validate_config"]
