"""The formats of other tools by their names in `pvt-det predict --format`."""

from pvt_det.inference.formats import DetectionFormat
from pvt_det.interop.labelme import LabelMeFiles
from pvt_det.interop.yolo import YoloFiles

FORMATS: dict[str, type[DetectionFormat]] = {"labelme": LabelMeFiles, "yolo": YoloFiles}
