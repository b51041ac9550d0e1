"""Tasks that training settings can be recommended for."""

TASKS = ("retinanet", "mask-rcnn")
