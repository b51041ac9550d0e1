"""Exchange detections with other tools: supervision, YOLO label files and LabelMe."""

from pvt_det.interop.supervision import from_supervision, to_supervision

__all__ = ["from_supervision", "to_supervision"]
