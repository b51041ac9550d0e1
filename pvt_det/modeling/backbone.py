"""The PVT trunk as a Detectron2 backbone."""

from __future__ import annotations

import difflib
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from pvt_det.errors import ConfigError
from pvt_det.modeling.registration import register
from pvt_det.models.pvt import PyramidVisionTransformer
from pvt_det.models.pvt_v2 import PyramidVisionTransformerV2
from pvt_det.models.trunk import STRIDES, pad_image
from pvt_det.models.variants import VARIANTS, Variant

# Four stages, training or inference, batches of one or more, number formats: some of each.
_MOST_PROGRAMS = 64
STAGES = ("stage1", "stage2", "stage3", "stage4")
_EMBED_NORM = re.compile(r"patch_embed\d\.norm|block\d\.\d+\.attn\.norm")


class PVTBackbone(Backbone):
    """A PVT trunk that gives its maps by name.

    `PVTBackbone(variant=...)` makes an instance of the subclass that suits the variant's family. The keys of its state
    dict are the published ones, without a prefix. Stages behind the last one asked for are there, so that published
    weights fit, but neither run nor trained.

    Args:
        variant: A name of `pvt_det.models.list_models()`.
        out_features: Which of "stage1" … "stage4", of strides 4, 8, 16, 32, `forward` returns.
        drop_path_rate: Stochastic depth of the last block, in [0, 1), rising linearly from 0 at the first.
        pretrain_img_size: Side in pixels of the images that the position embeddings were made for (v1 only).
        embed_norm_eps: Epsilon of the LayerNorms after patch embedding and spatial reduction: 1e-5 in the published
            code, 1e-6 in MMDetection's PVT.
        frozen_stages: Stages 1 … n get no gradient and stay in evaluation mode; 0 freezes none.
        checkpoint_stages: Stages of 1 … 4 whose activations are recomputed in the backward pass.

    Raises:
        ConfigError: A name is unknown or a number out of its range.

    Attributes:
        trains_compiled: Whether `compile_trunk` makes programs for training too.
    """

    trains_compiled: bool

    def __new__(cls, *, variant: str = "", **_: Any) -> PVTBackbone:
        """Choose the subclass by the variant's family. Copying and unpickling name the subclass and no variant."""
        if cls is not PVTBackbone:
            return super().__new__(cls)
        if variant not in VARIANTS:
            near = difflib.get_close_matches(str(variant), VARIANTS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"unknown PVT variant {variant!r}: {hint}Known are {', '.join(VARIANTS)}.")
        return super().__new__(_FAMILIES[VARIANTS[variant].family])

    def __init__(
        self,
        *,
        variant: str,
        out_features: Sequence[str] = STAGES,
        drop_path_rate: float = 0.0,
        pretrain_img_size: int = 224,
        embed_norm_eps: float = 1e-5,
        frozen_stages: int = 0,
        checkpoint_stages: Collection[int] = (),
    ) -> None:
        _check_arguments(out_features, drop_path_rate, frozen_stages, checkpoint_stages)
        self._init_trunk(VARIANTS[variant], drop_path_rate, pretrain_img_size)
        for name, norm in self.named_modules():
            if isinstance(norm, nn.LayerNorm) and _EMBED_NORM.fullmatch(name):
                norm.eps = embed_norm_eps
        self.checkpoint_stages = set(checkpoint_stages)
        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(STAGES, self.embed_dims, strict=True))
        self._out_feature_strides = dict(zip(STAGES, STRIDES, strict=True))
        self._last_stage = 1 + max(STAGES.index(name) for name in out_features)
        self._frozen_stages = frozen_stages
        # The programs to run stages by, with gradients and without.
        self._compiled_stage: dict[bool, Callable[[int, Tensor], Tensor]] = {}
        self._cuda_graphs: bool | None = None
        idle = range(self._last_stage + 1, 5)
        for i in (*range(1, frozen_stages + 1), *idle):
            for part in self.stage_modules(i):
                part.requires_grad_(False)
        self.train(self.training)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the maps asked for.

        Args:
            x: Normalised images `N×3×H×W` of any size.

        Returns:
            `{"stage1": N×C1×H/4×W/4, …}`, only the names in `out_features`, in channels-last memory.
        """
        x = pad_image(x)
        maps = {}
        if self._cuda_graphs and not torch.is_grad_enabled():
            # Otherwise each stage's program takes its own call for a new one, and frees the maps of the stages before.
            torch.compiler.cudagraph_mark_step_begin()
        for i in range(1, self._last_stage + 1):
            x = self.forward_stage(i, x)
            if STAGES[i - 1] in self._out_features:
                maps[STAGES[i - 1]] = x
        return maps

    def train(self, mode: bool = True) -> PVTBackbone:
        """Set the mode of all but the frozen stages, which stay in evaluation mode (no stochastic depth)."""
        super().train(mode)
        for i in range(1, self._frozen_stages + 1):
            for part in self.stage_modules(i):
                if isinstance(part, nn.Module):
                    part.eval()
        return self

    def compile_trunk(self, *, cuda_graphs: bool) -> None:
        """Run the stages through `torch.compile` from now on; so do copies.

        Each stage has one program for inference and one for training, each for maps of all sizes, in batches of one
        and of more. PVT v2 is trained as it is: `torch.compile` makes the backward pass of a convolution anew for each
        size (torch 2.14).

        Args:
            cuda_graphs: In inference, replay CUDA graphs, one for each size of images. The maps of one call are
                overwritten by the next, and all calls have to come from one thread. In training there are none: they
                would overwrite gradients that several batches add up, and its images have too many sizes.
        """
        self._cuda_graphs = cuda_graphs
        plain = self._compile(cuda_graphs=False)
        self._compiled_stage = {True: plain, False: self._compile(cuda_graphs=True) if cuda_graphs else plain}

    def _compile(self, *, cuda_graphs: bool) -> Callable[[int, Tensor], Tensor]:
        options = {
            "triton.cudagraphs": cuda_graphs,
            # Keeps the compiler from sorting strides of open sizes, at which it fails:
            # https://github.com/pytorch/pytorch/issues/185510
            "strict_output_strides": True,
        }
        return torch.compile(  # type: ignore[call-overload]  # its overloads lack the limit
            super().forward_stage, dynamic=True, options=options, recompile_limit=_MOST_PROGRAMS
        )

    def forward_stage(self, i: int, x: Tensor) -> Tensor:
        """Run stage `i` of 1 … 4 alone, from the image or the previous stage's map to its own map, both `N×C×H×W`."""
        with_gradients = torch.is_grad_enabled()
        if not self._compiled_stage or (with_gradients and not self.trains_compiled):
            return super().forward_stage(i, x)
        return self._compiled_stage[with_gradients](i, x)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compiled_stage": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._cuda_graphs is not None:
            self.compile_trunk(cuda_graphs=self._cuda_graphs)

    @property
    def size_divisibility(self) -> int:
        """Sides of the images have to be multiples of this for an FPN's maps to be exactly twice one another's."""
        return STRIDES[-1]

    @abstractmethod
    def _init_trunk(self, variant: Variant, drop_path_rate: float, img_size: int) -> None:
        """Call the trunk's constructor."""


# The backbone gives a dict of maps, where the trunk's forward gives logits.
class PVTv1Backbone(PVTBackbone, PyramidVisionTransformer):  # type: ignore[misc]
    """PVT v1."""

    trains_compiled = True

    def _init_trunk(self, variant: Variant, drop_path_rate: float, img_size: int) -> None:
        PyramidVisionTransformer.__init__(self, variant, 0, drop_path_rate, (img_size, img_size))


class PVTv2Backbone(PVTBackbone, PyramidVisionTransformerV2):  # type: ignore[misc]
    """PVT v2, which has no position embeddings."""

    trains_compiled = False

    def _init_trunk(self, variant: Variant, drop_path_rate: float, img_size: int) -> None:
        PyramidVisionTransformerV2.__init__(self, variant, 0, drop_path_rate)


_FAMILIES: dict[str, type[PVTBackbone]] = {"v1": PVTv1Backbone, "v2": PVTv2Backbone}


def _check_arguments(
    out_features: Sequence[str], drop_path_rate: float, frozen_stages: int, checkpoint_stages: Collection[int]
) -> None:
    if not out_features or not set(out_features) <= set(STAGES):
        raise ConfigError(f"out_features {list(out_features)}: expected some of {', '.join(STAGES)}.")
    if not 0 <= drop_path_rate < 1:
        raise ConfigError(f"drop_path_rate {drop_path_rate}: expected 0 or more and less than 1.")
    if frozen_stages not in range(5):
        raise ConfigError(f"frozen_stages {frozen_stages}: expected 0 to 4.")
    if not set(checkpoint_stages) <= {1, 2, 3, 4}:
        raise ConfigError(f"checkpoint_stages {sorted(checkpoint_stages)}: expected some of 1, 2, 3, 4.")


@register(BACKBONE_REGISTRY)
def build_pvt_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PVTBackbone:
    """Build the trunk of `MODEL.PVT` alone.

    Raises:
        ConfigError: The images are not to have three channels, or a value of `MODEL.PVT` is wrong.
    """
    if input_shape.channels != 3:
        raise ConfigError(f"MODEL.PIXEL_MEAN has {input_shape.channels} numbers: PVT takes images of three channels.")
    pvt = cfg.MODEL.PVT
    backbone = PVTBackbone(
        variant=pvt.VARIANT,
        out_features=pvt.OUT_FEATURES,
        drop_path_rate=pvt.DROP_PATH_RATE,
        pretrain_img_size=pvt.PRETRAIN_IMG_SIZE,
        embed_norm_eps=pvt.EMBED_NORM_EPS,
        frozen_stages=pvt.FROZEN_STAGES,
        checkpoint_stages=pvt.CHECKPOINT_STAGES,
    )
    if pvt.COMPILE and torch.device(cfg.MODEL.DEVICE).type != "cpu":
        backbone.compile_trunk(cuda_graphs=pvt.COMPILE == "reduce-overhead")
    return backbone
