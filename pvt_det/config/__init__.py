"""Configuration: the keys added to Detectron2's, a safe YAML loader, and checks of the values.

Importing the table of keys (`pvt_det.config.table`) does not import Detectron2.
"""

from typing import TYPE_CHECKING

from pvt_det.utils.lazy import lazy_names

if TYPE_CHECKING:
    from pvt_det.config.digest import config_digest as config_digest
    from pvt_det.config.keys import add_pvt_config as add_pvt_config
    from pvt_det.config.keys import get_config as get_config
    from pvt_det.config.loader import load_config as load_config
    from pvt_det.config.validate import validate_config as validate_config

__all__ = ["add_pvt_config", "config_digest", "get_config", "load_config", "validate_config"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "add_pvt_config": "pvt_det.config.keys",
        "config_digest": "pvt_det.config.digest",
        "get_config": "pvt_det.config.keys",
        "load_config": "pvt_det.config.loader",
        "validate_config": "pvt_det.config.validate",
    },
)
