"""Fast forms of the layers for a CPU: the same computation in chunks that stay in the cache, and by oneDNN.

Each layer of `pvt_det.layers` is written in its reference form, preceded by one line: `if use_fast_…: return fast_…`.
Here are those functions, one module for each layer. Compiled, exported and traced graphs never contain a fast form.

The fast forms are on by default. They are turned off with the environment variable `PVT_DET_FAST_CPU=0`, or in Python
with `set_fast_cpu(False)`, which is a context manager too.
"""

from pvt_det.layers.cpu.switch import set_fast_cpu, use_fast_cpu

__all__ = ["set_fast_cpu", "use_fast_cpu"]
