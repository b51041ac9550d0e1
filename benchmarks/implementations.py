"""What is compared: this package's models, compiled and not, and the same architectures as others write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from benchmarks.detectors import build_detector, random_annotations, run_detector
from benchmarks.textbook import Textbook
from pvt_det.models import create_model
from pvt_det.models.variants import VARIANTS
from pvt_det.utils.precision import autocast

# How each contestant is called in tables; all others are compared with the first.
OURS = "pvt_det"
COMPILED = "pvt_det compiled"
TEXTBOOK = "textbook"
TIMM = "timm"
TRANSFORMERS = "transformers"

Made = tuple[nn.Module, Callable[[Any], Any]]
DTYPE_NAMES = ("fp32", "bf16")


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        model: Name of a variant, or "resnet50"; for a detector the config file.
        task: "pyramid" (four maps), "classifier" (logits) or "detector".
        mode: "inference", or "training": forward and backward pass; the optimizer step is the same for all.
        dtype: "fp32", or "bf16" by autocast.
        batch: Images.
        height: Of the images, pixels.
        width: Of the images, pixels.
        checkpointed: Recompute all stages in the backward pass.
    """

    model: str
    task: str
    mode: str
    dtype: str
    batch: int
    height: int
    width: int
    checkpointed: bool = False


def contestants(case: Case, compiled: bool) -> list[str]:
    """Who can run `case`: transformers has v1 for 224×224 and its classifier only, timm has v2."""
    names = [OURS, *([COMPILED] if compiled else []), TEXTBOOK]
    fixed_size = (case.height, case.width) == (224, 224) and case.task == "classifier"
    if VARIANTS[case.model].family == "v2":
        return [*names, TIMM]
    return [*names, TRANSFORMERS] if fixed_size and find_spec("transformers") else names


def build(contestant: str, case: Case, device: torch.device) -> Callable[[], object]:
    """Make a function that runs one step of `case`, from gradients set to None, on images that stay the same."""
    module, forward = make(contestant, case, device)
    run = step(forward, random_inputs(case, device), case, device)

    def clean_step() -> None:
        module.zero_grad(set_to_none=True)
        run()

    return clean_step


def make(contestant: str, case: Case, device: torch.device) -> Made:
    """Make the model in the case's mode on `device`, and the function of it that is called."""
    torch.manual_seed(0)
    module, forward = _MAKERS[contestant](case)
    module.to(device).train(case.mode == "training")
    if contestant != COMPILED:
        return module, forward
    # On a GPU CUDA graphs save what a small batch waits for the interpreter; a CPU has none.
    return module, torch.compile(forward, mode="reduce-overhead" if case.mode == "inference" else "default")


def random_inputs(case: Case, device: torch.device) -> Any:
    """Images of noise; for a detector as a list of dictionaries with ten boxes each."""
    images = torch.randn(case.batch, 3, case.height, case.width, device=device)
    return random_annotations(images) if case.task == "detector" else images


def step(forward: Callable[[Any], Any], inputs: Any, case: Case, device: torch.device) -> Callable[[], None]:
    """Make a function that runs a forward pass, and in training a backward pass that adds to the gradients."""

    def infer() -> None:
        with torch.inference_mode(), autocast(device, case.dtype):
            forward(inputs)

    def train() -> None:
        with autocast(device, case.dtype):
            outputs = forward(inputs)
            outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
            loss = torch.stack([output.float().square().mean() for output in outputs]).sum()
        loss.backward()

    return infer if case.mode == "inference" else train


def _ours(case: Case) -> Made:
    if case.task == "detector":
        model = build_detector(case.model, {1, 2, 3, 4} if case.checkpointed else set())
        return model, partial(run_detector, model)
    if case.model == "resnet50":
        return _resnet50()
    model = create_model(case.model, num_classes=1000 if case.task == "classifier" else 0)
    if case.checkpointed:
        model.checkpoint_stages = {1, 2, 3, 4}
    return model, model.forward_pyramid if case.task == "pyramid" else model


def _textbook(case: Case) -> Made:
    model = Textbook(create_model(case.model, num_classes=1000 if case.task == "classifier" else 0))
    return model, model.forward_pyramid if case.task == "pyramid" else model


def _timm(case: Case) -> Made:
    import timm

    model = timm.create_model(case.model, features_only=case.task == "pyramid")
    return model, model


def _transformers(case: Case) -> Made:
    from transformers import PvtConfig, PvtForImageClassification

    model = PvtForImageClassification(PvtConfig(depths=list(VARIANTS[case.model].depths), num_labels=1000))
    return model, lambda images: model(images).logits


def _resnet50() -> Made:
    from torchvision.models import resnet50
    from torchvision.models.feature_extraction import create_feature_extractor

    model = create_feature_extractor(resnet50(), [f"layer{i}" for i in range(1, 5)])
    return model, lambda images: list(model(images).values())


_MAKERS: dict[str, Callable[[Case], Made]] = {
    OURS: _ours,
    COMPILED: _ours,
    TEXTBOOK: _textbook,
    TIMM: _timm,
    TRANSFORMERS: _transformers,
}
