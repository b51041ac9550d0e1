"""Create models by name."""

from __future__ import annotations

from pvt_det.errors import ConfigError
from pvt_det.models.pvt import PyramidVisionTransformer
from pvt_det.models.pvt_v2 import PyramidVisionTransformerV2
from pvt_det.models.trunk import MIN_SIDE, Trunk
from pvt_det.models.variants import get_variant


def create_model(
    name: str,
    num_classes: int = 1000,
    drop_path_rate: float = 0.0,
    img_size: int | tuple[int, int] = 224,
    *,
    pretrained: bool = False,
) -> Trunk:
    """Build a PVT with random or published weights.

    Args:
        name: One of `list_models()`.
        num_classes: Number of classes. 0 builds the trunk for dense prediction, without class token (v1), final norm
            (v1) and head.
        drop_path_rate: Stochastic depth rate of the last block, in [0, 1). It rises linearly from 0 at the first block.
        img_size: Image size in pixels, as one side or `(height, width)`, at least 32, for which the position embeddings
            are created (v1 only). They are resized for images of other sizes.
        pretrained: Whether to load the published ImageNet weights, which are downloaded on first use. A head for a
            number of classes other than 1000 keeps its random weights.

    Returns:
        The model in training mode. Its `state_dict` has the published keys and shapes.

    Raises:
        CheckpointError: The weights cannot be downloaded or are broken.
        ConfigError: The name is unknown, or an argument is out of range.
    """
    model = _build(name, num_classes, drop_path_rate, img_size)
    if pretrained:
        # Only here does the model know where its weights come from.
        from pvt_det.weights import load_pretrained

        load_pretrained(model, f"pvt://{name}")
    return model


def _build(name: str, num_classes: int, drop_path_rate: float, img_size: object) -> Trunk:
    variant = get_variant(name)
    if not isinstance(num_classes, int) or num_classes < 0:
        raise ConfigError(f"num_classes of {name} is {num_classes!r}: expected the number of classes, or 0 for no head")
    size = _image_size(img_size)
    if variant.family == "v1":
        return PyramidVisionTransformer(variant, num_classes, drop_path_rate, size)
    return PyramidVisionTransformerV2(variant, num_classes, drop_path_rate)


def _image_size(img_size: object) -> tuple[int, int]:
    match img_size:
        case int(side) if side >= MIN_SIDE:
            return side, side
        case (int(height), int(width)) if min(height, width) >= MIN_SIDE:
            return height, width
    raise ConfigError(f"img_size is {img_size!r}: expected one side or (height, width) in pixels, at least {MIN_SIDE}")
