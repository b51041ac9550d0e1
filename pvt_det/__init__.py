"""Pyramid Vision Transformers for dense prediction with Detectron2.

`import pvt_det` is fast because torch and Detectron2 are imported only when a name is first used. The backbones and
heads are registered with Detectron2 when their config keys are added (`add_pvt_config`, `get_config`) or when
`pvt_det.modeling` is imported. The models (`pvt_det.models`), the weights (`pvt_det.weights`) and classification work
without Detectron2.
"""

import os
import warnings
from typing import TYPE_CHECKING

from pvt_det.utils.lazy import lazy_names

# Waiting threads of OpenMP sleep instead of spinning, which starves the others when the processor is busy. The OpenMP
# library reads this when torch is loaded. docs/benchmarks.md has measurements.
if not {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from pvt_det import errors as errors
    from pvt_det import model_zoo as model_zoo
    from pvt_det import models as models
    from pvt_det.config import add_pvt_config as add_pvt_config
    from pvt_det.config import get_config as get_config
    from pvt_det.functions.evaluate import EvaluationResults as EvaluationResults
    from pvt_det.functions.evaluate import evaluate as evaluate
    from pvt_det.functions.export import export as export
    from pvt_det.functions.inspect import inspect as inspect
    from pvt_det.functions.train import TrainingResults as TrainingResults
    from pvt_det.functions.train import train as train
    from pvt_det.inference.panoptic import PanopticPredictor as PanopticPredictor
    from pvt_det.inference.predictor import Predictor as Predictor
    from pvt_det.inference.segmentor import Segmentor as Segmentor
    from pvt_det.inspection.result import InspectionResult as InspectionResult

__version__ = "0.1.0"

# Importing Detectron2 and fvcore compiles functions with TorchScript, which warns in every process of a run.
warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
# A warning of torch about Detectron2's code, which users cannot fix.
warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)

__all__ = [
    "EvaluationResults",
    "InspectionResult",
    "PanopticPredictor",
    "Predictor",
    "Segmentor",
    "TrainingResults",
    "__version__",
    "add_pvt_config",
    "errors",
    "evaluate",
    "export",
    "get_config",
    "inspect",
    "model_zoo",
    "models",
    "train",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "EvaluationResults": "pvt_det.functions.evaluate",
        "InspectionResult": "pvt_det.inspection.result",
        "PanopticPredictor": "pvt_det.inference.panoptic",
        "Predictor": "pvt_det.inference.predictor",
        "Segmentor": "pvt_det.inference.segmentor",
        "TrainingResults": "pvt_det.functions.train",
        "add_pvt_config": "pvt_det.config",
        "errors": "pvt_det.errors",
        "evaluate": "pvt_det.functions.evaluate",
        "export": "pvt_det.functions.export",
        "get_config": "pvt_det.config",
        "inspect": "pvt_det.functions.inspect",
        "model_zoo": "pvt_det.model_zoo",
        "models": "pvt_det.models",
        "train": "pvt_det.functions.train",
    },
)
