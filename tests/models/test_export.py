"""The trunk works with `torch.export` with dynamic sizes, and with `torch.compile`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from pvt_det.models import create_model
from tests.shallow import shallow


class Pyramid(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.trunk.forward_pyramid(x)


NAMES = ["pvt_tiny", "pvt_v2_b2_li"]


@pytest.mark.parametrize("name", NAMES)
def test_export_with_dynamic_sizes(name):
    module = Pyramid(shallow(create_model(name, num_classes=0))).eval()
    height, width = Dim("height", min=2, max=40), Dim("width", min=2, max=40)
    shapes = {"x": {0: Dim("batch", min=1, max=8), 2: 32 * height, 3: 32 * width}}
    exported = torch.export.export(module, (torch.randn(2, 3, 128, 192),), dynamic_shapes=shapes)
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert not any("adaptive" in target for target in targets)
    for size in ((3, 96, 160), (1, 224, 224)):
        image = torch.randn(size[0], 3, *size[1:])
        with torch.no_grad():
            for got, want in zip(exported.module()(image), module(image), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


# PyTorch specializes on the sizes of small convolutions, so PVT v2 needs larger images here.
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("pvt_tiny", ((64, 96), (96, 128), (224, 224))), ("pvt_v2_b0", ((320, 352), (352, 448)))],
)
def test_compile_without_graph_breaks_or_recompilation_for_new_sizes(name, sizes):
    trunk = shallow(create_model(name, num_classes=0)).eval()
    # Run only the compiler's front end, because code generation needs a C++ compiler.
    graphs = []
    compiled = torch.compile(
        trunk.forward_pyramid, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph, dynamic=True
    )
    for size in sizes:
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            for got, want in zip(compiled(image), trunk.forward_pyramid(image), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1
