"""Pyramid Vision Transformers for dense prediction with Detectron2.

`import pvt_det` is fast because torch and Detectron2 are imported only when a name is first used. The backbones and
heads are registered with Detectron2 when their config keys are added (`add_pvt_config`, `get_config`) or when
`pvt_det.modeling` is imported. The models (`pvt_det.models`), the weights (`pvt_det.weights`) and classification work
without Detectron2.
"""

import importlib
import os
import warnings
from typing import TYPE_CHECKING, Any

# Waiting threads of OpenMP sleep instead of spinning, which starves the others when the processor is busy. The OpenMP
# library reads this when torch is loaded. docs/benchmarks.md has measurements.
if not {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from pvt_det.config import add_pvt_config as add_pvt_config
    from pvt_det.config import get_config as get_config
    from pvt_det.inference.predictor import Predictor as Predictor
    from pvt_det.inference.segmentor import Segmentor as Segmentor

__version__ = "0.1.0"

# Importing Detectron2 and fvcore compiles functions with TorchScript, which warns in every process of a run.
warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)

_EXPORTS = {
    "add_pvt_config": "pvt_det.config",
    "get_config": "pvt_det.config",
    "Predictor": "pvt_det.inference.predictor",
    "Segmentor": "pvt_det.inference.segmentor",
}
__all__ = ["Predictor", "Segmentor", "__version__", "add_pvt_config", "get_config"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
