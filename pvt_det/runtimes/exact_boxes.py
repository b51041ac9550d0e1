"""Keep the boxes of an R-CNN in fp32 when OpenVINO computes in bf16.

In bf16, a coordinate of 1,100 pixels is a multiple of 8. OpenVINO keeps the end of a graph in fp32, but not the
proposals, from which ROIAlign pools features.
"""

from __future__ import annotations

from typing import Any

# Runtime information of a node that OpenVINO leaves in its own precision.
_PRECISE = "precise_0"
# Before these, the features are not boxes yet.
_LAYERS = ("Convolution", "ConvolutionBackpropData", "GroupConvolution", "MatMul")


def keep_boxes_exact(model: Any) -> None:
    """Mark the nodes that compute the boxes of ROIAlign, up to the layers that predict them.

    Args:
        model: An `openvino.Model`, changed in place.
    """
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "ROIAlign"]
    for node in nodes:
        _replace_slice(node)
    # The boxes and their image indices.
    pending = [node.input_value(port).get_node() for node in nodes for port in (1, 2)]
    done = set()
    while pending:
        node = pending.pop()
        name = node.get_friendly_name()
        if name in done or node.get_type_name() in _LAYERS:
            continue
        done.add(name)
        node.get_rt_info()[_PRECISE] = ""
        pending += [value.get_source_output().get_node() for value in node.inputs()]


def _replace_slice(roi_align: Any) -> None:
    """Take the boxes from their table with the image indices by a gather.

    OpenVINO replaces slices by other nodes, which are not marked.
    """
    import numpy as np
    from openvino import opset13 as ops

    boxes = roi_align.input_value(1).get_node()
    if boxes.get_type_name() == "Slice":
        columns = ops.constant(np.arange(1, 5))
        gathered = ops.gather(boxes.input_value(0), columns, ops.constant(np.int64(1)))
        roi_align.input(1).replace_source_output(gathered.output(0))
