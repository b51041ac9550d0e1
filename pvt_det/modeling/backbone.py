"""PVT as a Detectron2 backbone."""

from __future__ import annotations

import inspect
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
from pvt_det.models.trunk import check_drop_path_rate, pad_image
from pvt_det.models.variants import STAGES, STRIDES, Variant, get_variant

# Enough for four stages, each in training and inference, with one or several images, in several dtypes.
_RECOMPILE_LIMIT = 64
# Before this option, PyTorch had one limit for all compiled functions of the process.
_LIMITS_EACH_FUNCTION = "recompile_limit" in inspect.signature(torch.compile).parameters
_EMBED_NORM = re.compile(r"patch_embed\d\.norm|block\d\.\d+\.attn\.norm")


class PVTBackbone(Backbone):
    """Base class of PVT backbones, which return feature maps by name. Use `create_backbone` to build one.

    The keys of the state dict are the published ones, without a prefix. Stages after the last one in `out_features`
    exist, so that published weights fit, but are neither run nor trained.

    Args:
        variant: A variant of `pvt_det.models.variants`, of the same family as the class.
        out_features: Names of the feature maps that `forward` returns: one or more of "stage1" … "stage4", in this
            order. Their strides are 4, 8, 16 and 32.
        drop_path_rate: Stochastic depth rate of the last block, in [0, 1). It rises linearly from 0 at the first block.
        pretrain_img_size: Side in pixels of the images for which the position embeddings were learned, a multiple of 32
            (v1 only).
        embed_norm_eps: Epsilon of the LayerNorms after patch embedding and spatial reduction: 1e-5 in the published
            code, 1e-6 in MMDetection's PVT.
        frozen_stages: Number of stages to freeze, 0 to 4. Frozen stages get no gradients and stay in evaluation mode.
        checkpoint_stages: Stages, from 1 to 4, whose activations are recomputed in the backward pass.

    Raises:
        ConfigError: An argument is out of range.

    Attributes:
        compiles_training: Whether `compile_trunk` also compiles the stages for training.
    """

    compiles_training: bool

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
        _check_arguments(
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
        # Compiled `forward_stage`, with gradients (True) and without (False).
        self._compiled_stage: dict[bool, Callable[[int, Tensor], Tensor]] = {}
        self._cuda_graphs: bool | None = None
        unused_stages = range(self._last_stage + 1, 5)
        for i in (*range(1, frozen_stages + 1), *unused_stages):
            for part in self.stage_modules(i):
                part.requires_grad_(False)
        self.train(self.training)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the feature maps named in `out_features`.

        Args:
            x: Normalized images `N×3×H×W` of any size.

        Returns:
            Feature maps by name, `{"stage1": N×C1×H/4×W/4, …}`, in channels-last memory.
        """
        x = pad_image(x)
        maps = {}
        if self._cuda_graphs and not torch.is_grad_enabled():
            # Otherwise each stage counts as a new step, which frees the maps of the previous stages.
            torch.compiler.cudagraph_mark_step_begin()
        for i in range(1, self._last_stage + 1):
            x = self.forward_stage(i, x)
            if STAGES[i - 1] in self._out_features:
                maps[STAGES[i - 1]] = x
        return maps

    def train(self, mode: bool = True) -> PVTBackbone:
        """Set the mode. Frozen stages stay in evaluation mode (no stochastic depth).

        Args:
            mode: Whether to set training mode (True) or evaluation mode (False).

        Returns:
            The backbone itself.
        """
        super().train(mode)
        for i in range(1, self._frozen_stages + 1):
            for part in self.stage_modules(i):
                if isinstance(part, nn.Module):
                    part.eval()
        return self

    def compile_trunk(self, *, cuda_graphs: bool) -> None:
        """Compile the stages with `torch.compile` from now on, also in copies of this backbone.

        Each stage is compiled once for inference and once for training, with dynamic sizes, and separately for batches
        of one image and of several. PVT v2 is not compiled for training, because `torch.compile` would recompile the
        backward pass of a convolution for each size (torch 2.14).

        Args:
            cuda_graphs: Whether inference replays CUDA graphs, one per image size. Each call then overwrites the
                feature maps of the previous call, and all calls must come from the same thread. Training never uses
                CUDA graphs: they would overwrite gradients that are accumulated over batches, and its images have too
                many sizes.
        """
        self._cuda_graphs = cuda_graphs
        compiled = self._compile(cuda_graphs=False)
        self._compiled_stage = {True: compiled, False: self._compile(cuda_graphs=True) if cuda_graphs else compiled}

    def _compile(self, *, cuda_graphs: bool) -> Callable[[int, Tensor], Tensor]:
        import torch._dynamo.config
        import torch._inductor.config

        options: dict[str, Any] = {"triton.cudagraphs": cuda_graphs}
        if hasattr(torch._inductor.config, "strict_output_strides"):
            # Without this, the compiler fails when it sorts the strides of dynamic sizes:
            # https://github.com/pytorch/pytorch/issues/185510
            options["strict_output_strides"] = True
        limit: dict[str, Any] = {}
        if _LIMITS_EACH_FUNCTION:
            limit["recompile_limit"] = _RECOMPILE_LIMIT
        else:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
        return torch.compile(super().forward_stage, dynamic=True, options=options, **limit)

    def forward_stage(self, i: int, x: Tensor) -> Tensor:
        """Run a single stage, compiled if `compile_trunk` was called.

        Args:
            i: Stage number, 1 to 4.
            x: Images `N×3×H×W` for stage 1, otherwise the feature map `N×C×H×W` of the previous stage.

        Returns:
            Feature map `N×C×H×W` of the stage.
        """
        needs_grad = torch.is_grad_enabled()
        if not self._compiled_stage or (needs_grad and not self.compiles_training):
            return super().forward_stage(i, x)
        return self._compiled_stage[needs_grad](i, x)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compiled_stage": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._cuda_graphs is not None:
            self.compile_trunk(cuda_graphs=self._cuda_graphs)

    @property
    def size_divisibility(self) -> int:
        """Divisor of image sides, in pixels, for which each map is exactly twice as large as the next."""
        return STRIDES[-1]

    @abstractmethod
    def _init_trunk(self, variant: Variant, drop_path_rate: float, img_size: int) -> None:
        """Call the constructor of the trunk."""


# Type error: `forward` returns a dictionary of feature maps, but the trunk's `forward` returns logits.
class PVTv1Backbone(PVTBackbone, PyramidVisionTransformer):  # type: ignore[misc]
    """PVT v1 as a backbone. It has the arguments of `PVTBackbone`."""

    compiles_training = True

    def _init_trunk(self, variant: Variant, drop_path_rate: float, img_size: int) -> None:
        PyramidVisionTransformer.__init__(self, variant, 0, drop_path_rate, (img_size, img_size))


class PVTv2Backbone(PVTBackbone, PyramidVisionTransformerV2):  # type: ignore[misc]
    """PVT v2, which has no position embeddings, as a backbone. It has the arguments of `PVTBackbone`."""

    compiles_training = False

    def _init_trunk(self, variant: Variant, drop_path_rate: float, img_size: int) -> None:
        PyramidVisionTransformerV2.__init__(self, variant, 0, drop_path_rate)


def _check_arguments(
    *,
    out_features: Sequence[str],
    drop_path_rate: float,
    pretrain_img_size: int,
    frozen_stages: int,
    checkpoint_stages: Collection[int],
) -> None:
    """Raise an error if an argument of `PVTBackbone` is out of range."""

    def require(is_valid: bool, argument: str, value: object, expected: str) -> None:
        if not is_valid:
            raise ConfigError(f"{argument} = {value!r}: expected {expected}.")

    in_order = [name for name in STAGES if name in out_features]
    require(
        bool(in_order) and in_order == list(out_features),
        "out_features",
        out_features,
        f"one or more of {', '.join(STAGES)}, each once, in this order",
    )
    check_drop_path_rate(drop_path_rate)
    require(frozen_stages in range(5), "frozen_stages", frozen_stages, "0 to 4")
    require(set(checkpoint_stages) <= {1, 2, 3, 4}, "checkpoint_stages", checkpoint_stages, "any of 1, 2, 3, 4")
    require(
        pretrain_img_size > 0 and pretrain_img_size % STRIDES[-1] == 0,
        "pretrain_img_size",
        pretrain_img_size,
        f"a multiple of {STRIDES[-1]}, the stride of stage 4",
    )


def create_backbone(variant: str, **arguments: Any) -> PVTBackbone:
    """Build a randomly initialized backbone.

    Args:
        variant: One of `pvt_det.models.list_models()`.
        **arguments: Keyword arguments of `PVTBackbone`, such as `out_features=["stage2", "stage4"]`.

    Raises:
        ConfigError: The variant is unknown, or an argument is out of range.
    """
    row = get_variant(variant)
    family = PVTv1Backbone if row.family == "v1" else PVTv2Backbone
    return family(row, **arguments)


def require_three_channels(input_shape: ShapeSpec) -> None:
    """Check the number of channels of the images.

    Args:
        input_shape: Shape of the images.

    Raises:
        ConfigError: The images do not have three channels.
    """
    if input_shape.channels != 3:
        raise ConfigError(f"MODEL.PIXEL_MEAN has {input_shape.channels} values: expected images with three channels.")


@register(BACKBONE_REGISTRY)
def build_pvt_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PVTBackbone:
    """Build the backbone of `MODEL.PVT`, without an FPN.

    Args:
        cfg: Complete config. Uses `MODEL.PVT` and `MODEL.DEVICE`.
        input_shape: Shape of the images. Must have three channels.

    Raises:
        ConfigError: The images do not have three channels, or a value of `MODEL.PVT` is out of range.
    """
    require_three_channels(input_shape)
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
    if pvt.COMPILE and torch.device(cfg.MODEL.DEVICE).type == "cuda":
        backbone.compile_trunk(cuda_graphs=pvt.COMPILE == "reduce-overhead")
    return backbone
