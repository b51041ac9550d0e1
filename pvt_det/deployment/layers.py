"""Choose the layers of an exported graph that become int8.

Only convolutions and matrix products with weights are quantized, and of these neither the first layer, which sees the
pixels, nor the last layers of the heads, whose outputs are scores and box deltas. These, attention scores, softmax,
LayerNorm, box decoding and non-maximum suppression stay in floating point: they cost accuracy, and OpenVINO runs
attention faster as one fused operator in bf16 than in int8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

_OPENVINO_LAYERS = ("Convolution", "GroupConvolution", "MatMul")
_ONNX_LAYERS = ("Conv", "Gemm", "MatMul")
# Between a weight and the operator that uses it, in either format.
_RESHAPED = ("Cast", "Convert", "Identity", "Reshape", "Transpose", "Unsqueeze")
# Last layers that other layers follow: the second stage of an R-CNN.
_LAST = re.compile(r"(objectness_logits|anchor_deltas|cls_score|bbox_pred)\.weight$")


@dataclass(frozen=True)
class Operator:
    """An operator of an exported graph.

    Attributes:
        weight: Name of its weight if it is a convolution or a matrix product with one, otherwise "".
        sources: Names of the operators whose outputs it reads.
        readers: Names of the operators that read its outputs.
    """

    weight: str
    sources: Sequence[str]
    readers: Sequence[str]


def openvino_operators(model: Any) -> dict[str, Operator]:
    """Return the operators of an OpenVINO model by name.

    Args:
        model: The `openvino.Model`.
    """
    return {
        operator.get_friendly_name(): Operator(
            weight=_openvino_weight(operator),
            sources=[value.get_node().get_friendly_name() for value in operator.input_values()],
            readers=[
                reader.get_node().get_friendly_name()
                for output in operator.outputs()
                for reader in output.get_target_inputs()
            ],
        )
        for operator in model.get_ordered_ops()
        if operator.get_type_name() not in ("Constant", "Parameter", "Result")
    }


def onnx_operators(model: onnx.ModelProto) -> dict[str, Operator]:
    """Return the operators of an ONNX model by name.

    Args:
        model: The model.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    writers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.name)
    return {
        node.name: Operator(
            weight=_onnx_weight(node, writers, weights),
            sources=[writers[name].name for name in node.input if name in writers],
            readers=[reader for output in node.output for reader in readers.get(output, ())],
        )
        for node in model.graph.node
    }


def float_operators(operators: Mapping[str, Operator]) -> list[str]:
    """Return the names of all operators that are not quantized.

    Args:
        operators: All operators by name.
    """
    return [name for name, operator in operators.items() if not operator.weight or _is_kept(operator, operators)]


def _is_kept(layer: Operator, operators: Mapping[str, Operator]) -> bool:
    """Return whether a layer stays in floating point: the first one of the model, and the last ones of the heads."""
    if _LAST.search(layer.weight):
        return True
    has_layer_before = _meets_layer(layer, operators, lambda operator: operator.sources)
    return not (has_layer_before and _meets_layer(layer, operators, lambda operator: operator.readers))


def _meets_layer(
    start: Operator, operators: Mapping[str, Operator], neighbors: Callable[[Operator], Sequence[str]]
) -> bool:
    """Return whether following neighbors from an operator leads to a layer with a weight."""
    waiting, seen = [start], set()
    while waiting:
        for name in neighbors(waiting.pop()):
            # Constants, inputs and results are not operators.
            if name in seen or name not in operators:
                continue
            if operators[name].weight:
                return True
            seen.add(name)
            waiting.append(operators[name])
    return False


def _openvino_weight(operator: Any) -> str:
    if operator.get_type_name() not in _OPENVINO_LAYERS:
        return ""
    source = operator.input_value(1).get_node()
    while source.get_type_name() in _RESHAPED:
        source = source.input_value(0).get_node()
    return str(source.get_friendly_name()) if source.get_type_name() == "Constant" else ""


def _onnx_weight(node: onnx.NodeProto, writers: Mapping[str, onnx.NodeProto], weights: set[str]) -> str:
    if node.op_type not in _ONNX_LAYERS:
        return ""
    name = node.input[1]
    while name in writers and writers[name].op_type in _RESHAPED:
        name = writers[name].input[0]
    return name if name in weights else ""
