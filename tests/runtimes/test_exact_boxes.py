"""The boxes at which OpenVINO pools features are exact also in bf16."""

from __future__ import annotations

from pvt_det.runtimes.exact_boxes import keep_boxes_exact
from pvt_det.runtimes.openvino_folder import import_openvino


def test_what_computes_the_boxes_is_marked_but_not_the_features(exported):
    model = import_openvino().Core().read_model(exported / "mine_openvino/model.xml")
    keep_boxes_exact(model)
    nodes = model.get_ordered_ops()
    marked = {node.get_friendly_name() for node in nodes if "precise_0" in node.get_rt_info()}
    aligns = [node for node in nodes if node.get_type_name() == "ROIAlign"]
    assert len(aligns) == 4
    for node in aligns:
        features, boxes, images = (value.get_node() for value in node.input_values())
        assert boxes.get_type_name() != "Slice"
        assert {boxes.get_friendly_name(), images.get_friendly_name()} <= marked
        assert features.get_friendly_name() not in marked
    layers = {node.get_friendly_name() for node in nodes if node.get_type_name() in ("Convolution", "MatMul")}
    assert not layers & marked
