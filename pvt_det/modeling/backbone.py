"""The PVT trunk as a Detectron2 backbone."""

from __future__ import annotations

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
from pvt_det.models.trunk import STRIDES, check_drop_path_rate, pad_image
from pvt_det.models.variants import Variant, get_variant

# Four stages, training or inference, batches of one or more, number formats: some of each.
_MOST_PROGRAMS = 64
STAGES = ("stage1", "stage2", "stage3", "stage4")
_EMBED_NORM = re.compile(r"patch_embed\d\.norm|block\d\.\d+\.attn\.norm")


class PVTBackbone(Backbone):
    """Base class of the PVT trunks that return their maps by name; `create_backbone` builds one.

    The keys of its state dict are the published ones, without a prefix. Stages after the last one asked for exist, so
    that published weights fit, but are neither run nor trained.

    Args:
        variant: A row of `pvt_det.models.variants`, of the family of the class.
        out_features: The maps that `forward` returns: some of "stage1" … "stage4", of strides 4, 8, 16 and 32, in this
            order.
        drop_path_rate: Stochastic depth of the last block, in [0, 1), rising linearly from 0 at the first.
        pretrain_img_size: Side in pixels of the images that the position embeddings were made for, a multiple of 32
            (v1 only).
        embed_norm_eps: Epsilon of the LayerNorms after patch embedding and spatial reduction: 1e-5 in the published
            code, 1e-6 in MMDetection's PVT.
        frozen_stages: Stages 1 … n get no gradient and stay in evaluation mode; 0 freezes none.
        checkpoint_stages: Stages of 1 … 4 whose activations are recomputed in the backward pass.

    Raises:
        ConfigError: An argument is out of its range.

    Attributes:
        trains_compiled: Whether `compile_trunk` compiles the stages for training too.
    """

    trains_compiled: bool

    def __init__(
        self,
        variant: Variant,
        *,
        out_features: Sequence[str] = STAGES,
        drop_path_rate: float = 0.0,
        pretrain_img_size: int = 224,
        embed_norm_eps: float = 1e-5,
        frozen_stages: int = 0,
        checkpoint_stages: Collection[int] = (),
    ) -> None:
        check_backbone_arguments(
            out_features=out_features,
            drop_path_rate=drop_path_rate,
            pretrain_img_size=pretrain_img_size,
            frozen_stages=frozen_stages,
            checkpoint_stages=checkpoint_stages,
        )
        self._init_trunk(variant, drop_path_rate, pretrain_img_size)
        for name, norm in self.named_modules():
            if isinstance(norm, nn.LayerNorm) and _EMBED_NORM.fullmatch(name):
                norm.eps = embed_norm_eps
        self.checkpoint_stages = set(checkpoint_stages)
        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(STAGES, self.embed_dims, strict=True))
        self._out_feature_strides = dict(zip(STAGES, STRIDES, strict=True))
        self._last_stage = 1 + max(STAGES.index(name) for name in out_features)
        self._frozen_stages = frozen_stages
        # The compiled stage, with gradients (True) and without.
        self._compiled_stage: dict[bool, Callable[[int, Tensor], Tensor]] = {}
        self._cuda_graphs: bool | None = None
        idle = range(self._last_stage + 1, 5)
        for i in (*range(1, frozen_stages + 1), *idle):
            for part in self.stage_modules(i):
                part.requires_grad_(False)
        self.train(self.training)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the maps of `out_features`.

        Args:
            x: Normalised images `N×3×H×W` of any size.

        Returns:
            `{"stage1": N×C1×H/4×W/4, …}`, only the names in `out_features`, in channels-last memory.
        """
        x = pad_image(x)
        maps = {}
        if self._cuda_graphs and not torch.is_grad_enabled():
            # Otherwise each stage counts as a new call, which frees the maps of the stages before.
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
        """Run the stages through `torch.compile` from now on, in copies of this backbone too.

        Each stage is compiled once for inference and once for training, each for maps of all sizes and for batches of
        one and of more. PVT v2 is not compiled for training, because `torch.compile` would recompile the backward pass
        of a convolution for each size (torch 2.14).

        Args:
            cuda_graphs: Whether inference replays CUDA graphs, one for each image size. Each call then overwrites the
                maps of the one before, and all calls must come from one thread. Training uses none: they would
                overwrite gradients that are accumulated over batches, and its images have too many sizes.
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
        """The divisor of image sides, in pixels, with which each map is exactly twice as large as the next."""
        return STRIDES[-1]

    @abstractmethod
    def _init_trunk(self, variant: Variant, drop_path_rate: float, img_size: int) -> None:
        """Call the constructor of the trunk."""


# `forward` returns a dictionary of maps, where that of the trunk returns logits.
class PVTv1Backbone(PVTBackbone, PyramidVisionTransformer):  # type: ignore[misc]
    """PVT v1 as a backbone; its arguments are those of `PVTBackbone`."""

    trains_compiled = True

    def _init_trunk(self, variant: Variant, drop_path_rate: float, img_size: int) -> None:
        PyramidVisionTransformer.__init__(self, variant, 0, drop_path_rate, (img_size, img_size))


class PVTv2Backbone(PVTBackbone, PyramidVisionTransformerV2):  # type: ignore[misc]
    """PVT v2, which has no position embeddings, as a backbone; its arguments are those of `PVTBackbone`."""

    trains_compiled = False

    def _init_trunk(self, variant: Variant, drop_path_rate: float, img_size: int) -> None:
        PyramidVisionTransformerV2.__init__(self, variant, 0, drop_path_rate)


def check_backbone_arguments(
    *,
    out_features: Sequence[str],
    drop_path_rate: float,
    pretrain_img_size: int,
    frozen_stages: int,
    checkpoint_stages: Collection[int],
    name_of: Callable[[str], str] = str,
) -> None:
    """Check the ranges of a backbone's arguments, which `PVTBackbone` describes.

    Args:
        out_features: Names of stages, each once, in order; at least one.
        drop_path_rate: In [0, 1).
        pretrain_img_size: A multiple of 32, in pixels.
        frozen_stages: 0 … 4.
        checkpoint_stages: Some of 1 … 4.
        name_of: Maps the name of an argument to what messages call it, such as a config key.

    Raises:
        ConfigError: Names the argument, its value and what was expected.
    """

    def require(is_valid: bool, argument: str, value: object, expected: str) -> None:
        if not is_valid:
            raise ConfigError(f"{name_of(argument)} = {value!r}: expected {expected}.")

    in_order = [name for name in STAGES if name in out_features]
    require(
        bool(in_order) and in_order == list(out_features),
        "out_features",
        out_features,
        f"some of {', '.join(STAGES)}, each once, in this order",
    )
    check_drop_path_rate(drop_path_rate, name_of("drop_path_rate"))
    require(frozen_stages in range(5), "frozen_stages", frozen_stages, "0 to 4")
    require(set(checkpoint_stages) <= {1, 2, 3, 4}, "checkpoint_stages", checkpoint_stages, "some of 1, 2, 3, 4")
    require(
        pretrain_img_size > 0 and pretrain_img_size % STRIDES[-1] == 0,
        "pretrain_img_size",
        pretrain_img_size,
        f"a multiple of {STRIDES[-1]}, the stride of stage 4",
    )


def create_backbone(variant: str, **arguments: Any) -> PVTBackbone:
    """Build the backbone of a variant with fresh weights.

    Args:
        variant: A name of `pvt_det.models.list_models()`.
        **arguments: Keyword arguments of `PVTBackbone`, such as `out_features=["stage2", "stage4"]`.

    Raises:
        ConfigError: The variant is unknown, or an argument is out of its range.
    """
    row = get_variant(variant)
    family = PVTv1Backbone if row.family == "v1" else PVTv2Backbone
    return family(row, **arguments)


@register(BACKBONE_REGISTRY)
def build_pvt_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PVTBackbone:
    """Build the backbone of `MODEL.PVT`, without an FPN.

    Args:
        cfg: `MODEL.PVT` and `MODEL.DEVICE` are read.
        input_shape: The images; must have three channels.

    Raises:
        ConfigError: The images do not have three channels, or a value of `MODEL.PVT` is out of its range.
    """
    if input_shape.channels != 3:
        raise ConfigError(f"MODEL.PIXEL_MEAN has {input_shape.channels} numbers: PVT takes images of three channels.")
    pvt = cfg.MODEL.PVT
    backbone = create_backbone(
        pvt.VARIANT,
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
