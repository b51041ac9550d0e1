"""Pyramid Vision Transformers for dense prediction with Detectron2.

Importing the package registers its backbones and heads with Detectron2 where Detectron2 is installed. The trunk
(`pvt_det.models`), the weights (`pvt_det.weights`) and classification work without it. `pvt_det.Predictor` runs a
trained detector, `pvt_det.Segmentor` a trained model for semantic segmentation.
"""

import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pvt_det.engine.predictor import Predictor as Predictor
    from pvt_det.engine.segmentor import Segmentor as Segmentor

__version__ = "0.1.0"

if find_spec("detectron2") is not None:
    with warnings.catch_warnings():
        # Detectron2 and fvcore compile functions with TorchScript as they are imported.
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        from pvt_det import modeling as _modeling  # noqa: F401  (registers the builders)


def __getattr__(name: str) -> Any:
    # Reading images, configs and checkpoints is for those who ask for it.
    if name == "Predictor":
        from pvt_det.engine.predictor import Predictor

        return Predictor
    if name == "Segmentor":
        from pvt_det.engine.segmentor import Segmentor

        return Segmentor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
