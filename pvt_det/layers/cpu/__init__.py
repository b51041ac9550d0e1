"""Fast CPU implementations of the layers, which compute in cache-sized chunks and call oneDNN.

Each layer of `pvt_det.layers` contains its reference implementation and, before it, the line `if use_fast_…: return
fast_…`. This package contains those functions, with one module per layer. Compiled, exported and traced graphs never
contain a fast implementation.

The fast implementations are enabled by default. To disable them, set the environment variable `PVT_DET_FAST_CPU=0` or
call `set_fast_cpu(False)`, which is also a context manager.
"""

from pvt_det.layers.cpu.switch import set_fast_cpu, use_fast_cpu

__all__ = ["set_fast_cpu", "use_fast_cpu"]
