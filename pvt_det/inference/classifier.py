"""A trained PVT classifier, with as many classes as its weights have."""

from __future__ import annotations

from pvt_det.models import create_model
from pvt_det.models.trunk import Trunk
from pvt_det.weights import load_pretrained, read_translation


def trained_classifier(name: str, source: str, img_size: int = 224) -> Trunk:
    """Load a trained classifier.

    Args:
        name: A variant, such as "pvt_small".
        source: Anything that `MODEL.WEIGHTS` takes.
        img_size: Side of its images in pixels.

    Raises:
        CheckpointError: The weights are missing, damaged, or not of a whole classifier of this variant.
        ConfigError: The name is unknown.
    """
    translation = read_translation(source)
    head = translation.tensors.get("head.weight")
    model = create_model(name, num_classes=1000 if head is None else len(head), img_size=img_size).eval()
    load_pretrained(model, translation).require_whole()
    return model
