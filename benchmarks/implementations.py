"""The implementations of the trunk to compare: pvt_det, the textbook form, timm and transformers."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch

from benchmarks.textbook import Textbook
from pvt_det import profiling
from pvt_det.models import create_model
from pvt_det.models.variants import VARIANTS
from pvt_det.profiling import Case, Runnable, build_model

# Names in the tables. Speed-ups and memory ratios are relative to the first one.
OURS = "pvt_det"
COMPILED = "pvt_det compiled"
TEXTBOOK = "textbook"
TIMM = "timm"
TRANSFORMERS = "transformers"
RESNET = "resnet50"


def list_implementations(case: Case, compiled: bool) -> list[str]:
    """List the implementations that can run a case.

    timm has only PVT v2. transformers has only PVT v1, as a classifier of 224×224 pixels.

    Args:
        case: What to measure. `model` is a variant of PVT.
        compiled: Include `COMPILED`.
    """
    names = [OURS, *([COMPILED] if compiled else []), TEXTBOOK]
    fixed_size = (case.height, case.width) == (224, 224) and case.task == "classifier"
    if VARIANTS[case.model].family == "v2":
        return [*names, TIMM]
    return [*names, TRANSFORMERS] if fixed_size and find_spec("transformers") else names


def build_step(case: Case, implementation: str, device: torch.device) -> Callable[[], None]:
    """Build one step of an implementation on a fixed batch of random images.

    Args:
        case: What to measure.
        implementation: Name of the implementation, such as `OURS` or `TIMM`.
        device: Device to run on.
    """
    torch.manual_seed(0)
    module, forward = _BUILDERS[implementation](case, device)
    module.to(device).train(case.mode == "training")
    return profiling.build_step((module, forward), case, device)


def _build_ours(case: Case, device: torch.device) -> Runnable:
    return _build_resnet50() if case.model == RESNET else build_model(case, device)


def _build_compiled(case: Case, device: torch.device) -> Runnable:
    module, forward = build_model(case, device)
    # In inference, CUDA graphs avoid the interpreter's overhead, which dominates small batches.
    return module, torch.compile(forward, mode="reduce-overhead" if case.mode == "inference" else "default")


def _build_textbook(case: Case, device: torch.device) -> Runnable:
    model = Textbook(create_model(case.model, num_classes=1000 if case.task == "classifier" else 0))
    return model, model.forward_pyramid if case.task == "pyramid" else model


def _build_timm(case: Case, device: torch.device) -> Runnable:
    import timm

    model = timm.create_model(case.model, features_only=case.task == "pyramid")
    return model, model


def _build_transformers(case: Case, device: torch.device) -> Runnable:
    from transformers import PvtConfig, PvtForImageClassification

    model = PvtForImageClassification(PvtConfig(depths=list(VARIANTS[case.model].depths), num_labels=1000))
    return model, lambda images: model(images).logits


def _build_resnet50() -> Runnable:
    from torchvision.models import resnet50
    from torchvision.models.feature_extraction import create_feature_extractor

    model = create_feature_extractor(resnet50(), [f"layer{i}" for i in range(1, 5)])
    return model, lambda images: list(model(images).values())


_BUILDERS: dict[str, Callable[[Case, torch.device], Runnable]] = {
    OURS: _build_ours,
    COMPILED: _build_compiled,
    TEXTBOOK: _build_textbook,
    TIMM: _build_timm,
    TRANSFORMERS: _build_transformers,
}
