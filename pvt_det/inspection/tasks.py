"""Tasks that training settings can be recommended for."""

# Detectors, which learn from annotated objects.
TASKS = ("retinanet", "atss", "gfl", "mask-rcnn")
# Segmentation models, which learn from label maps.
SEMANTIC = "semantic"
