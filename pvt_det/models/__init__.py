"""Pyramid Vision Transformers in PyTorch. Importing the names of the variants does not import torch."""

from typing import TYPE_CHECKING

from pvt_det.models.variants import list_models
from pvt_det.utils.lazy import lazy_names

if TYPE_CHECKING:
    from pvt_det.models.create import create_model as create_model

__all__ = ["create_model", "list_models"]

__getattr__, __dir__ = lazy_names(__name__, {"create_model": "pvt_det.models.create"})
